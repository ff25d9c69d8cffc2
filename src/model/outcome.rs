//! How a turn that the CLI answered ended, and what it used.

use serde::{Deserialize, Serialize};

/// Tokens of a turn, as the model's API counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Usage {
    /// Read, not from the cache.
    pub input_tokens: u64,
    /// Written.
    pub output_tokens: u64,
    /// Written to the cache.
    pub cache_creation_input_tokens: u64,
    /// Read from the cache.
    pub cache_read_input_tokens: u64,
}

/// A turn that the CLI ended with an error while it lives on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// A short machine-readable kind, in the CLI's own words (`rate_limit`, `max_turns`, …).
    pub kind: String,
    /// The HTTP status that the model's API answered, if it did.
    pub api_status: Option<u16>,
    /// The text for a person.
    pub message: String,
    /// The host's own interrupt ended the turn.
    pub interrupted: bool,
}
