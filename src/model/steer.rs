//! Text for a turn that runs.

use thiserror::Error;

/// Maximum length of a text for a running turn. What a person writes meanwhile has some kilobytes.
pub const LONGEST_STEER: usize = 64 << 10;

/// A text that the running turn does not get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SteerError {
    /// No turn runs in the session that a client reads.
    #[error("no turn runs in this session; send the text as a message")]
    NoRunningTurn,
    /// The maximum number of texts waits already.
    #[error("{most} texts wait for the running turn already; wait until it has read them")]
    TooMany {
        /// How many may wait.
        most: usize,
    },
    /// The text is empty or too long.
    #[error("the text must have 1 to {LONGEST_STEER} bytes")]
    Length,
    /// The running turn may use more, or something else, than the caller's key.
    #[error("the running turn was begun with rights that this key does not have")]
    NotAllowed,
}
