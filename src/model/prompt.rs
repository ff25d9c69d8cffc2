//! The text or the content blocks that a user sends.

use std::fmt;

use super::ToolResult;

/// A user's message.
#[derive(Clone, PartialEq)]
pub enum Prompt {
    /// Plain text.
    Text(String),
    /// Content blocks (text, image, document) as the model's API defines them; passed through the serialiser, never
    /// as bytes.
    Blocks(Vec<serde_json::Value>),
    /// Results of the calls of a turn that ended with [`crate::turn::Outcome::tool_calls`]. They go into the turn that waits
    /// for them; if it waits no longer, the model gets them as a message.
    ToolResults(Vec<ToolResult>),
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

/// Why a prompt was not sent. The child has seen nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PromptRefused {
    /// See [`crate::config::SlashCommands::Refuse`].
    #[error("text that begins with \"/\" is a command of the CLI and is refused here (cli.slash_commands)")]
    SlashCommand,
    /// A content block that is not a JSON object with a `type`.
    #[error("content block {index} is {problem}")]
    Block {
        /// Counted from 0.
        index: usize,
        /// What is wrong.
        problem: &'static str,
    },
}
