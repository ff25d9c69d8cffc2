//! The caller's own tools and their results, from the forms of the SDKs. Pure.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::expected::Room;
use super::message::{Content, Message, Object, Role};
use crate::model::{CallerTool, InvalidTool, Prompt, ToolResult};
use crate::server::api::error::ApiError;

/// Maximum tools of a request: the model's API has a lower one in practice.
const MAX_TOOLS: usize = 512;

/// The tools of a request.
#[derive(Default)]
pub(super) struct Offer {
    pub(super) tools: Vec<CallerTool>,
    /// Names of tools and of their fields without effect.
    pub(super) left_out: Vec<String>,
    /// Names of tools whose calls have to match their schemas.
    pub(super) strict: Vec<String>,
    pub(super) choice: Choice,
    room: Room,
}

/// What the model is to do with the tools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Choice {
    #[default]
    Free,
    /// At least one call of any tool.
    Any,
    /// A call of this tool.
    One(String),
}

/// A tool of the Messages API.
#[derive(Deserialize)]
pub(super) struct AnthropicTool {
    r#type: Option<String>,
    name: Option<String>,
    description: Option<String>,
    input_schema: Option<Map<String, Value>>,
    strict: Option<bool>,
}

#[derive(Deserialize)]
pub(super) struct AnthropicChoice {
    r#type: String,
    name: Option<String>,
}

/// A tool of the Chat Completions API.
#[derive(Deserialize)]
pub(super) struct OpenAiTool {
    r#type: String,
    function: Option<Function>,
}

/// A tool of the Responses API.
#[derive(Deserialize)]
pub(super) struct ResponsesTool {
    r#type: String,
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Map<String, Value>>,
    strict: Option<bool>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Map<String, Value>>,
    strict: Option<bool>,
}

impl Offer {
    pub(super) fn of_anthropic(
        tools: Option<Vec<Object<AnthropicTool>>>,
        choice: Option<Object<AnthropicChoice>>,
    ) -> Result<Self, ApiError> {
        let mut offer = Self::default();
        for (index, Object(tool)) in tools.into_iter().flatten().enumerate() {
            match tool.r#type.as_deref() {
                None | Some("custom") => {
                    let at = format!("tools[{index}]");
                    let schema = tool.input_schema;
                    let schema = schema
                        .ok_or_else(|| ApiError::field(format_args!("{at}.input_schema"), "is missing"))?;
                    offer.add(&at, tool.name, tool.description, schema, tool.strict)?;
                }
                // A tool that the API itself runs, or describes to the model.
                Some(other) => offer.leave_out(other),
            }
        }
        let choice = choice.map(|Object(choice)| (choice.r#type, choice.name));
        offer.choose(choice.as_ref().map(|(kind, name)| (kind.as_str(), name.clone())), "tool_choice")
    }

    pub(super) fn of_openai(
        tools: Option<Vec<Object<OpenAiTool>>>,
        choice: Option<Value>,
    ) -> Result<Self, ApiError> {
        let mut offer = Self::default();
        for (index, Object(tool)) in tools.into_iter().flatten().enumerate() {
            match (tool.r#type.as_str(), tool.function) {
                ("function", Some(function)) => {
                    let at = format!("tools[{index}].function");
                    let schema = function.parameters.unwrap_or_default();
                    offer.add(&at, Some(function.name), function.description, schema, function.strict)?;
                }
                ("function", None) => {
                    return Err(ApiError::field(format_args!("tools[{index}].function"), "is missing"));
                }
                (other, _) => offer.leave_out(other),
            }
        }
        offer.choose_openai(choice)
    }

    pub(super) fn of_responses(
        tools: Option<Vec<Object<ResponsesTool>>>,
        choice: Option<Value>,
    ) -> Result<Self, ApiError> {
        let mut offer = Self::default();
        for (index, Object(tool)) in tools.into_iter().flatten().enumerate() {
            if tool.r#type == "function" {
                let schema = tool.parameters.unwrap_or_default();
                let at = format!("tools[{index}]");
                offer.add(&at, tool.name, tool.description, schema, tool.strict)?;
            } else {
                offer.leave_out(&tool.r#type);
            }
        }
        offer.choose_openai(choice)
    }

    fn choose_openai(self, choice: Option<Value>) -> Result<Self, ApiError> {
        let choice = match choice {
            None | Some(Value::Null) => None,
            Some(Value::String(kind)) => Some((kind, None)),
            Some(Value::Object(choice)) => {
                let name = choice.get("function").and_then(|function| function.get("name"));
                let name = name.or_else(|| choice.get("name")).and_then(Value::as_str).map(str::to_owned);
                let kind = choice.get("type").and_then(Value::as_str).unwrap_or_default();
                Some((if kind == "function" { "tool" } else { kind }.to_owned(), name))
            }
            Some(_) => return Err(ApiError::field("tool_choice", "must be a string or an object")),
        };
        self.choose(choice.as_ref().map(|(kind, name)| (kind.as_str(), name.clone())), "tool_choice")
    }

    fn add(
        &mut self,
        at: &str,
        name: Option<String>,
        description: Option<String>,
        schema: Map<String, Value>,
        strict: Option<bool>,
    ) -> Result<(), ApiError> {
        if self.tools.len() == MAX_TOOLS {
            return Err(ApiError::field("tools", format_args!("must be at most {MAX_TOOLS}")));
        }
        let name = name.ok_or_else(|| ApiError::field(format_args!("{at}.name"), "is missing"))?;
        let schema = Value::Object(schema);
        let is_checked = strict == Some(true) && self.room.admits(&schema);
        let Value::Object(schema) = schema else { return Ok(()) };
        let tool = CallerTool::new(name, description, schema).map_err(|error| {
            let part = if error == InvalidTool::Name { "name" } else { "input_schema" };
            ApiError::field(format_args!("{at}.{part}"), error)
        })?;
        match strict {
            Some(true) if is_checked => self.strict.push(tool.name().to_owned()),
            Some(true) => self.leave_out("strict"),
            _ => {}
        }
        self.tools.push(tool);
        Ok(())
    }

    fn leave_out(&mut self, what: &str) {
        let plain = what.chars().filter(|it| it.is_ascii_alphanumeric() || "_-".contains(*it)).take(40);
        let name = format!("tools.{}", plain.collect::<String>());
        if !self.left_out.contains(&name) && self.left_out.len() < 16 {
            self.left_out.push(name);
        }
    }

    fn choose(mut self, choice: Option<(&str, Option<String>)>, field: &str) -> Result<Self, ApiError> {
        self.choice = match choice {
            None | Some(("auto", _)) => Choice::Free,
            Some(("none", _)) => {
                // The model must not see them at all.
                self.tools.clear();
                self.strict.clear();
                Choice::Free
            }
            Some(("any" | "required", _)) if !self.tools.is_empty() => Choice::Any,
            Some(("tool", Some(name))) if self.tools.iter().any(|tool| tool.name() == name) => {
                Choice::One(name)
            }
            Some(("any" | "required" | "tool", _)) => {
                return Err(ApiError::field(field, "names no tool of `tools`"));
            }
            Some(_) => {
                return Err(ApiError::field(field, "must be auto, none, any (required), or name a tool"));
            }
        };
        Ok(self)
    }
}

impl Choice {
    /// What the model is asked. The CLI has no setting for it.
    pub(super) fn instruction(&self) -> Option<String> {
        match self {
            Self::Free => None,
            Self::Any => {
                Some("Answer this message with a call of one of the tools of mcp__caller__.".to_owned())
            }
            Self::One(name) => {
                Some(format!("Answer this message with a call of the tool mcp__caller__{name}."))
            }
        }
    }
}

/// Adds what the model is asked to a prompt. Results carry it with the last of them.
pub(super) fn instruct(prompt: Prompt, instruction: String) -> Prompt {
    let block = json!({ "type": "text", "text": instruction });
    match prompt {
        Prompt::Text(text) => Prompt::Blocks(vec![json!({ "type": "text", "text": text }), block]),
        Prompt::Blocks(mut blocks) => {
            blocks.push(block);
            Prompt::Blocks(blocks)
        }
        Prompt::ToolResults(mut results) => {
            if let Some(last) = results.last_mut() {
                last.content.push(block);
            }
            Prompt::ToolResults(results)
        }
    }
}

/// The results that a last message holds; `None` if it holds none. What else it holds follows the last result.
///
/// # Errors
/// 400 if the message has results, but not of all calls that the answer before it made.
pub(super) fn results(
    history: &[Message],
    last: &Content,
    at: &str,
) -> Result<Option<Vec<ToolResult>>, ApiError> {
    let Content::Blocks(blocks) = last else { return Ok(None) };
    let (mut results, mut others) = (Vec::<ToolResult>::new(), Vec::new());
    for (index, block) in blocks.iter().enumerate() {
        if block["type"] != "tool_result" {
            others.push(block.clone());
            continue;
        }
        let problem = |problem| ApiError::field(format_args!("{at}.content[{index}]"), problem);
        let id = block["tool_use_id"].as_str();
        let id = id.ok_or_else(|| problem("a tool_result needs a `tool_use_id`, which must be a string"))?;
        let content = match &block["content"] {
            Value::Null => Vec::new(),
            Value::String(text) => vec![json!({ "type": "text", "text": text })],
            Value::Array(content) => content.clone(),
            _ => return Err(problem("a tool_result needs text or a list of blocks as `content`")),
        };
        let is_error = block["is_error"] == true;
        results.push(ToolResult { id: id.to_owned(), content, is_error });
    }
    if results.is_empty() {
        return Ok(None);
    }
    let answered = |id: &str| results.iter().any(|result| result.id == id);
    if let Some(missing) = calls_of(history.last()).find(|id| !answered(id)) {
        let problem =
            format!("the call {missing} has no tool_result; each call of the answer before needs one");
        return Err(ApiError::field(format_args!("{at}.content"), problem));
    }
    if let Some(last) = results.last_mut() {
        last.content.append(&mut others);
    }
    Ok(Some(results))
}

fn calls_of(answer: Option<&Message>) -> impl Iterator<Item = &str> {
    let blocks = match answer {
        Some(Message { role: Role::Assistant, content: Content::Blocks(blocks) }) => blocks.as_slice(),
        _ => &[],
    };
    blocks.iter().filter(|block| block["type"] == "tool_use").filter_map(|block| block["id"].as_str())
}

#[cfg(test)]
mod tests;
