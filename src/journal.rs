//! The journal of a conversation: what the CLI's transcript holds, in a file of the server that no child can write.
//!
//! The file begins with a mark and grows by one write per turn: a frame with the turn's lines, then a mark with the
//! number of turns. A mark has a fixed size, so the last one is found without reading the rest. A journal that is full
//! or switched off keeps its first mark alone up to date; so does one that waits in memory for room on the disk.
//!
//! ```text
//!  mark │ frame: snapshot of the conversation │ mark │ frame: a turn │ mark │ …
//! ```
//!
//! Knows bytes and files, and nothing of what the lines mean: `adapter` restores a transcript from them. Blocking.

mod file;
mod frame;
mod lines;
mod mark;
#[cfg(test)]
mod tests;
mod unwritten;

pub(crate) use file::{Journal, Noted, is_intact, load, write};
#[cfg(fuzzing)]
pub(crate) use frame::of_records;
pub(crate) use frame::{entries, records};
pub(crate) use lines::Lines;
pub(crate) use mark::{Mark, advance};
pub(crate) use unwritten::Waiting;
