//! The child layer.

pub(crate) mod framing;
