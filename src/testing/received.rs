//! What the simulated CLI was sent.

use serde::Deserialize;
use serde_json::Value;

/// A message that a simulated CLI has received.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Received {
    /// Text of the message; texts of its blocks, joined.
    pub text: String,
    /// Content of the message as the CLI read it: a text, or a list of blocks.
    pub content: Value,
    /// The CLI's id of the conversation: the same after a crash or an eviction.
    pub session_id: String,
    /// Model of the process.
    pub model: String,
    /// System prompt of the process, if it was given one.
    pub system_prompt: Option<String>,
    /// Whether the process resumed the conversation at its start.
    pub resumed: bool,
    /// Process id of the CLI.
    pub pid: u32,
    /// Index of the rule that answered, in the order in which they were added; `None` if none matched.
    pub rule: Option<usize>,
}
