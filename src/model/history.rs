//! A conversation that was held elsewhere: messages with real roles and real content.

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};
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
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub enum Block {
    /// Text.
    Text(String),
    /// An image, a document or a search result, as a block of the Messages API. Users and tools only.
    Media(Map<String, Value>),
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
        id: String,
        /// Texts and media.
        content: Vec<Block>,
        /// Whether the tool failed.
        is_error: bool,
    },
    /// A `thinking` or `redacted_thinking` block of the Messages API, with its signature. Assistants only.
    Thinking(Map<String, Value>),
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

impl Serialize for Block {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Media(block) | Self::Thinking(block) => block.serialize(serializer),
            Self::Text(text) => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("type", "text")?;
                map.serialize_entry("text", text)?;
                map.end()
            }
            Self::ToolUse { id, name, input } => {
                let mut map = serializer.serialize_map(Some(4))?;
                map.serialize_entry("type", "tool_use")?;
                map.serialize_entry("id", id)?;
                map.serialize_entry("name", name)?;
                map.serialize_entry("input", input)?;
                map.end()
            }
            Self::ToolResult { id, content, is_error } => {
                let mut map = serializer.serialize_map(None)?;
                map.serialize_entry("type", "tool_result")?;
                map.serialize_entry("tool_use_id", id)?;
                if !content.is_empty() {
                    map.serialize_entry("content", content)?;
                }
                if *is_error {
                    map.serialize_entry("is_error", is_error)?;
                }
                map.end()
            }
        }
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
