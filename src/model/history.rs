//! A conversation that was held elsewhere: messages with real roles and real content.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// Bytes that a message takes on disk beside its content.
const PER_MESSAGE: usize = 512;
/// Bytes that a block takes on disk beside its content.
const PER_BLOCK: usize = 64;

/// Earlier messages of a conversation, for a session that does not have them. Prints redacted.
#[derive(Clone, Default, PartialEq)]
pub struct History {
    messages: Vec<Message>,
    bytes: usize,
}

/// One message of a [`History`].
#[derive(Clone, PartialEq)]
pub struct Message {
    /// The speaker.
    pub role: Role,
    /// The content, in order.
    pub content: Vec<Block>,
}

/// The speaker of a [`Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The user, or a tool that answers the model.
    User,
    /// The model.
    Assistant,
}

/// A part of a [`Message`]. Serialises as a content block of the Messages API.
#[derive(Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Block {
    /// Text.
    #[serde(serialize_with = "text_field")]
    Text(String),
    /// A tool call of the model.
    ToolUse {
        /// Pairs the call with its result.
        id: String,
        /// The tool.
        name: String,
        /// The arguments.
        input: Map<String, Value>,
    },
    /// The answer to a tool call. Users only.
    ToolResult {
        /// The id of the call.
        #[serde(rename = "tool_use_id")]
        id: String,
        /// Texts and media.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        content: Vec<Block>,
        /// Whether the tool failed.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
    },
    /// An image, a document or a search result, as a block of the Messages API. Users and tools only.
    #[serde(untagged)]
    Media(Map<String, Value>),
    /// A `thinking` or `redacted_thinking` block of the Messages API, with its signature. Assistants only.
    #[serde(untagged)]
    Thinking(Map<String, Value>),
}

fn text_field<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map([("text", text)])
}

impl History {
    /// A history of these messages, oldest first. Any sequence of roles and any pairing of tool calls is accepted.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        let bytes =
            messages.iter().map(|it| PER_MESSAGE + it.content.iter().map(Block::bytes).sum::<usize>());
        Self { bytes: bytes.sum(), messages }
    }

    /// The messages, oldest first.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    pub(crate) fn into_messages(self) -> Vec<Message> {
        self.messages
    }

    /// Whether there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The approximate size of the history on disk: all texts and data, and a fixed share per message and block.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Block {
    fn bytes(&self) -> usize {
        PER_BLOCK
            + match self {
                Self::Text(text) => text.len(),
                Self::Media(block) | Self::Thinking(block) => bytes_of(block),
                Self::ToolUse { id, name, input } => id.len() + name.len() + bytes_of(input),
                Self::ToolResult { id, content, .. } => {
                    id.len() + content.iter().map(Self::bytes).sum::<usize>()
                }
            }
    }
}

fn bytes_of(map: &Map<String, Value>) -> usize {
    map.iter().map(|(key, value)| key.len() + value_bytes(value)).sum()
}

/// Parsers bound the depth.
fn value_bytes(value: &Value) -> usize {
    /// Quotes, commas and numbers.
    const PER_VALUE: usize = 8;
    PER_VALUE
        + match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(value_bytes).sum(),
            Value::Object(map) => bytes_of(map),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "History({} messages redacted)", self.messages.len())
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({:?} redacted)", self.role)
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text(_) => "Text(redacted)",
            Self::Media(_) => "Media(redacted)",
            Self::ToolUse { .. } => "ToolUse(redacted)",
            Self::ToolResult { .. } => "ToolResult(redacted)",
            Self::Thinking(_) => "Thinking(redacted)",
        })
    }
}
