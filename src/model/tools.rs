//! Tools that the caller runs: what a model may call, its calls, and what came of them.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longest name: that of the APIs that callers know.
const MAX_NAME: usize = 64;

/// A tool that the caller runs itself: the model sees name, description and schema of the input, and a call of it ends
/// the turn ([`crate::Outcome::tool_calls`]).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerTool {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    input_schema: Map<String, Value>,
}

/// Why something cannot be offered as a tool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTool {
    /// The name is empty, too long or has other characters.
    #[error("a tool's name must have 1 to 64 characters of a-z, A-Z, 0-9, `_` and `-`")]
    Name,
    /// The schema does not describe an object.
    #[error("the input schema of a tool must have the type \"object\"")]
    Schema,
}

impl CallerTool {
    /// A tool with the JSON Schema of its input, an object.
    ///
    /// # Errors
    /// [`InvalidTool`] for a name or a schema that the model's API would refuse.
    pub fn new(
        name: impl Into<String>,
        description: Option<String>,
        mut input_schema: Map<String, Value>,
    ) -> Result<Self, InvalidTool> {
        let name = name.into();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_plain) {
            return Err(InvalidTool::Name);
        }
        match input_schema.get("type") {
            None => drop(input_schema.insert("type".to_owned(), "object".into())),
            Some(kind) if kind == "object" => {}
            Some(_) => return Err(InvalidTool::Schema),
        }
        Ok(Self { name, description, input_schema })
    }

    /// The name under which the model calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    pub(crate) fn input_schema(&self) -> &Map<String, Value> {
        &self.input_schema
    }
}

impl fmt::Debug for CallerTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallerTool(redacted)")
    }
}

/// The model calls a tool of the caller's.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToolCall {
    /// The id that the result has to name.
    pub id: String,
    /// The name of the tool.
    pub name: String,
    /// The input, as the model wrote it. The library does not compare it with the tool's schema.
    pub input: Value,
}

impl ToolCall {
    pub(crate) fn new(id: String, name: String, input: Value) -> Self {
        Self { id, name, input }
    }
}

impl fmt::Debug for ToolCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ToolCall(redacted)")
    }
}

/// What came of a call.
#[derive(Clone, PartialEq)]
pub struct ToolResult {
    /// [`ToolCall::id`].
    pub id: String,
    /// Content blocks as the model's API defines them: text, or an image in base64. Others go on as their JSON text.
    pub content: Vec<Value>,
    /// The tool has failed; the content says why.
    pub is_error: bool,
}

impl ToolResult {
    /// A result that is a text.
    #[must_use]
    pub fn text(id: impl Into<String>, text: impl Into<String>) -> Self {
        let content = vec![serde_json::json!({ "type": "text", "text": text.into() })];
        Self { id: id.into(), content, is_error: false }
    }

    /// As a result of a tool that has failed.
    #[must_use]
    pub fn failed(self) -> Self {
        Self { is_error: true, ..self }
    }
}

impl fmt::Debug for ToolResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ToolResult(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tools_have_plain_names_and_take_objects() {
        let schema = |schema: Value| schema.as_object().unwrap().clone();
        let tool =
            |name: &str, of: Value| CallerTool::new(name, None, schema(of)).map(|tool| tool.input_schema);
        assert_eq!(tool("get_time-2", json!({})), Ok(schema(json!({ "type": "object" }))));
        assert_eq!(
            tool("a", json!({ "type": "object", "x": 1 })),
            Ok(schema(json!({ "type": "object", "x": 1 })))
        );
        for name in ["", "a b", "a.b", "ä", &"a".repeat(65)] {
            assert_eq!(tool(name, json!({})), Err(InvalidTool::Name), "{name}");
        }
        assert_eq!(tool("a", json!({ "type": "string" })), Err(InvalidTool::Schema));
        let secret = CallerTool::new("a", Some("secret".into()), Map::new()).unwrap();
        assert!(!format!("{secret:?}{:?}", ToolResult::text("a", "secret")).contains("secret"));
    }
}
