//! Rules for the sources themselves: imports go down only, words are the field's, documents name what exists.

mod architecture;
mod layers;
pub(crate) mod names;
pub(crate) mod text;
mod words;
