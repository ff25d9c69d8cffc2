//! What was said in a conversation, and how much of the context it fills.

use std::fmt;
use std::time::SystemTime;

use serde_json::Value;

use super::{Role, Usage};

/// One message of a conversation, as its transcript has it. Prints redacted.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct SpokenMessage {
    /// Names the message. An answer of several parts is named by its last one.
    pub uuid: String,
    /// The speaker. Results of tools are messages of the user, as in the Messages API.
    pub role: Role,
    /// Content blocks of the Messages API. One that is too long has `omitted_bytes` in the place of its content.
    pub blocks: Vec<Value>,
    /// When it was written down.
    pub time: Option<SystemTime>,
    /// The model, of an answer.
    pub model: Option<String>,
    /// Tokens of the request that this is the answer to.
    pub usage: Option<Usage>,
    /// The CLI has put this summary in the place of the messages before it.
    pub is_summary: bool,
    /// The CLI's text about a failure of the model's API.
    pub is_error: bool,
}

/// Some messages of a conversation, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct MessagePage {
    /// The messages.
    pub messages: Vec<SpokenMessage>,
    /// Whether there are more after them.
    pub has_more: bool,
}

/// What fills the model's context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContextUsage {
    /// The model.
    pub model: Option<String>,
    /// Tokens in use.
    pub total_tokens: Option<u64>,
    /// Tokens that the context holds.
    pub max_tokens: Option<u64>,
    /// Tokens at which the CLI compacts the conversation by itself, if it does.
    pub auto_compact_at: Option<u64>,
    /// Tokens by what they are for, in the CLI's words; without the CLI, by how the API counted them.
    pub categories: Vec<ContextCategory>,
    /// The CLI said so; otherwise it is what the last answer's request used.
    pub is_measured: bool,
}

/// A part of what fills the context.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContextCategory {
    /// What the tokens are for.
    pub name: String,
    /// How many.
    pub tokens: u64,
}

impl fmt::Debug for SpokenMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpokenMessage").field("uuid", &self.uuid).finish_non_exhaustive()
    }
}
