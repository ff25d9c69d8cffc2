//! A turn as its reader sees it: the prompt that goes in, the events that come out, the outcome that ends it.
//!
//! The data plane is one bounded channel per turn. A reader that waits takes the child's output from its pipe itself
//! (through the turn's source); what comes while nobody waits is put into the channel by the driver of the child. Items
//! are whole reads of the output; the reader cuts them into lines, so that a burst costs one wake-up.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cli::Failure;
use crate::error::TurnError;
use crate::model::History;

mod channel;
mod earlier;
mod event;
mod mcp;
mod stream;
mod trace;

pub(crate) use channel::{Pulled, Source, TurnSender, aborted, turn_channel, wake};
pub(crate) use earlier::{Conversation, Earlier, FirstLine};
pub use event::Event;
pub use mcp::McpServers;
#[cfg(feature = "server")]
pub(crate) use mcp::Sender;
pub use stream::Turn;
pub(crate) use trace::TurnTrace;

/// A share of something bounded, given back when it is dropped.
pub(crate) type Hold = std::sync::Arc<dyn std::any::Any + Send + Sync>;

/// What a user says.
#[derive(Clone, PartialEq)]
pub enum Prompt {
    /// Plain text.
    Text(String),
    /// Content blocks (text, image, document) as the model's API defines them; passed through the serialiser, never
    /// as bytes.
    Blocks(Vec<serde_json::Value>),
}

impl Default for Prompt {
    /// Empty text.
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prompt(redacted)")
    }
}

/// What a turn may ask for beside its text. The default asks for nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TurnOptions {
    /// The model from this turn on. Bound at start: another than the child's own makes it restart between turns with its
    /// context.
    pub model: Option<String>,
    /// Bound at start: `Some` and different from the child's own makes it restart between turns with its context.
    /// The empty string takes a former one back.
    pub system_prompt: Option<String>,
    /// Bound at start, as above.
    pub fallback_model: Option<String>,
    /// Bound at start: the session's MCP servers. None at all takes former ones back.
    pub mcp_servers: Option<McpServers>,
    /// Earlier messages, brought in if, and only if, the conversation has no context of its own (it is new, or was
    /// lost). For clients that send the whole history with every request.
    pub history: Option<History>,
}

/// Longest model name. Full ids with a provider's prefix have some sixty characters.
const MAX_MODEL: usize = 128;

/// Whether this can be a model's name: nothing that could be taken for a flag, nor that the CLI, which accepts any
/// name and fails later, would choke on.
pub(crate) fn is_model_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/@-[]".contains(&byte);
    let begins_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    begins_well && name.len() <= MAX_MODEL && name.bytes().all(allowed)
}

/// Tokens of a turn, as the model's API counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
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

/// How a turn ended. Every accepted turn has exactly one.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// In one word.
    pub status: Status,
    /// The final text; empty where there is none.
    pub text: String,
    /// Why the model stopped.
    pub stop_reason: Option<String>,
    /// Tokens of this turn.
    pub usage: Usage,
    /// Cost of this turn alone, in US dollars.
    pub cost_usd: f64,
    /// The CLI's id of the conversation after this turn.
    pub cli_session_id: String,
    /// How often the turn was given to another child because the first had died without a word.
    pub retries: u32,
    /// Some or all of the earlier conversation was missing when this turn began.
    pub context_lost: bool,
    /// From `send` to the end.
    pub duration: Duration,
}

/// How a turn ended, in one word.
#[derive(Debug, Clone, PartialEq)]
pub enum Status {
    /// The CLI answered.
    Completed,
    /// The CLI ended the turn with an error of its own or of its API, and lives on.
    Failed(Failure),
    /// There is no answer. The stream's last item is this error.
    Aborted(TurnError),
}

impl Outcome {
    /// Whether the CLI answered without an error.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self.status, Status::Completed)
    }
}

/// The answer to a tool that waits for permission.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It may run, with other input if given.
    Allow {
        /// Replaces what the tool would have been called with.
        updated_input: Option<serde_json::Value>,
    },
    /// It may not.
    Deny {
        /// What the model is told.
        message: String,
    },
}
