//! The vocabulary that all layers share. Values without behaviour.

mod history;

pub use history::{Block, History, Message, Role};
