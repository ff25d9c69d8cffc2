//! Items of the input: to messages, and to the list that `GET …/input_items` shows. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::server::api::error::ApiError;
use crate::server::dialect::image;
use crate::server::dialect::message::{Content, Message, Role};
use crate::server::dialect::openai::{add_of_user, data_url, file};
use crate::server::responses::ResponseId;

/// Messages of a list of items.
#[derive(Default)]
pub(super) struct Messages {
    /// Texts of system and developer messages.
    pub(super) system: Vec<String>,
    pub(super) messages: Vec<Message>,
    /// Kinds of items that were left out.
    pub(super) left_out: BTreeSet<&'static str>,
}

/// Whose items they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Of the request: the last one is asked now.
    Request,
    /// Of stored responses.
    Stored,
}

/// Kinds of items that a conversation of the CLI cannot hold. Any other unknown kind is named `item`.
const LEFT_OUT: [&str; 12] = [
    "reasoning",
    "file_search_call",
    "web_search_call",
    "computer_call",
    "computer_call_output",
    "code_interpreter_call",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "mcp_call",
    "mcp_list_tools",
    "compaction",
];

pub(super) fn messages(items: Vec<Value>, origin: Origin) -> Result<Messages, ApiError> {
    let mut taken = Messages::default();
    let last = items.len().saturating_sub(1);
    for (index, item) in items.into_iter().enumerate() {
        let at = format!("input[{index}]");
        let Value::Object(item) = item else { return Err(ApiError::field(at, "must be an object")) };
        let asked_now = origin == Origin::Request && index == last;
        taken.take(item, &at, asked_now)?;
    }
    Ok(taken)
}

impl Messages {
    fn take(&mut self, mut item: Map<String, Value>, at: &str, asked_now: bool) -> Result<(), ApiError> {
        let kind = match item.get("type") {
            None => "message".to_owned(),
            Some(Value::String(kind)) => kind.clone(),
            Some(_) => return Err(ApiError::field(format_args!("{at}.type"), "must be a string")),
        };
        match kind.as_str() {
            "message" => return self.message(item, at, asked_now),
            "function_call" | "custom_tool_call" => {
                let block = call(&mut item, kind == "custom_tool_call");
                let block = block.map_err(|problem| ApiError::field(at, problem))?;
                self.assistant(vec![block]);
            }
            "function_call_output" | "custom_tool_call_output" => {
                let id = text(&item, "call_id").unwrap_or_default();
                let output = item.remove("output").unwrap_or_default();
                let content = content(output, &format!("{at}.output"), asked_now)?.into_blocks();
                let block = json!({ "type": "tool_result", "tool_use_id": id, "content": content });
                let message = Message { role: Role::User, content: Content::Blocks(vec![block]) };
                add_of_user(&mut self.messages, message);
            }
            other => {
                self.left_out.insert(LEFT_OUT.into_iter().find(|kind| *kind == other).unwrap_or("item"));
            }
        }
        Ok(())
    }

    fn message(&mut self, mut item: Map<String, Value>, at: &str, asked_now: bool) -> Result<(), ApiError> {
        let role = text(&item, "role");
        let inner = format!("{at}.content");
        let sent = item.remove("content").filter(|content| !content.is_null());
        let sent = sent.ok_or_else(|| ApiError::field(&inner, "is missing"))?;
        match role.as_deref() {
            Some("user") => {
                let content = content(sent, &inner, asked_now)?;
                add_of_user(&mut self.messages, Message { role: Role::User, content });
            }
            Some("assistant") => self.assistant(content(sent, &inner, false)?.into_blocks()),
            Some("system" | "developer") => self.system.push(content(sent, &inner, true)?.texts("\n\n")),
            _ => {
                let problem = "must be user, assistant, system or developer";
                return Err(ApiError::field(format_args!("{at}.role"), problem));
            }
        }
        Ok(())
    }

    /// Items of one answer are one message.
    fn assistant(&mut self, blocks: Vec<Value>) {
        if let Some(Message { role: Role::Assistant, content: Content::Blocks(before) }) =
            self.messages.last_mut()
        {
            before.extend(blocks);
        } else {
            self.messages.push(Message { role: Role::Assistant, content: Content::Blocks(blocks) });
        }
    }
}

/// A call of the caller's tool as the Messages API has it.
fn call(item: &mut Map<String, Value>, is_custom: bool) -> Result<Value, &'static str> {
    let (Some(id), Some(name)) = (text(item, "call_id"), text(item, "name")) else {
        return Err("a call needs a `call_id` and a `name`, which must be strings");
    };
    let input = if is_custom {
        json!({ "input": text(item, "input").unwrap_or_default() })
    } else {
        let arguments = text(item, "arguments").unwrap_or_default();
        match serde_json::from_str(&arguments) {
            Ok(Value::Object(input)) => Value::Object(input),
            _ if arguments.trim().is_empty() => json!({}),
            // The model may have written invalid JSON, but the API accepts only an object.
            _ => json!({ "arguments": arguments }),
        }
    };
    Ok(json!({ "type": "tool_use", "id": id, "name": name, "input": input }))
}

fn content(sent: Value, at: &str, asked_now: bool) -> Result<Content, ApiError> {
    let parts = match sent {
        Value::String(text) => return Ok(Content::Text(text)),
        Value::Array(parts) => parts,
        _ => return Err(ApiError::field(at, "must be a string or a list of parts")),
    };
    let blocks = parts.into_iter().enumerate().map(|(index, part)| {
        block(part, asked_now).map_err(|problem| ApiError::field(format_args!("{at}[{index}]"), problem))
    });
    Ok(Content::Blocks(blocks.collect::<Result<_, _>>()?))
}

/// Converts a part. Unsupported parts are refused in the last message and kept in the history, which names them.
fn block(mut part: Value, asked_now: bool) -> Result<Value, &'static str> {
    let field = |part: &mut Value, name: &str| match part.get_mut(name).map(Value::take) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    match part.get("type").and_then(Value::as_str) {
        Some("input_text" | "output_text" | "text") => {
            let text =
                field(&mut part, "text").ok_or("a text part needs a `text`, which must be a string")?;
            Ok(json!({ "type": "text", "text": text }))
        }
        Some("refusal") => {
            let text = field(&mut part, "refusal");
            let text = text.ok_or("a refusal part needs a `refusal`, which must be a string")?;
            Ok(json!({ "type": "text", "text": text }))
        }
        Some("input_image") => match field(&mut part, "image_url") {
            Some(url) => {
                let source = data_url(&url).map_or_else(
                    || json!({ "type": "url", "url": url }),
                    |(media_type, data)| json!({ "type": "base64", "media_type": media_type, "data": data }),
                );
                image::check(&source)?;
                Ok(json!({ "type": "image", "source": source }))
            }
            None if asked_now => {
                Err("an input_image part needs an `image_url`: files cannot be uploaded here")
            }
            None => Ok(json!({ "type": "input_image" })),
        },
        Some("input_file") => match field(&mut part, "file_url") {
            Some(url) if url.starts_with("https://") || url.starts_with("http://") => {
                Ok(json!({ "type": "document", "source": { "type": "url", "url": url } }))
            }
            Some(_) => Err("a file's `file_url` must begin with https:// or http://"),
            None => file(&part, asked_now),
        },
        Some(_) if !asked_now => Ok(part),
        Some(_) => Err("must be a part of type input_text, input_image or input_file"),
        None => Err("must be an object with a `type`"),
    }
}

fn text(item: &Map<String, Value>, field: &str) -> Option<String> {
    item.get(field)?.as_str().map(str::to_owned)
}

/// The items as `GET …/input_items` shows them: each with a type and an id, messages with a list of parts.
pub(super) fn listed(items: Vec<Value>, id: &ResponseId) -> Vec<Value> {
    let listed = items.into_iter().enumerate().map(|(index, mut item)| {
        let kind = item["type"].as_str().unwrap_or("message").to_owned();
        let Some(fields) = item.as_object_mut() else { return item };
        fields.entry("type").or_insert_with(|| kind.as_str().into());
        if fields.get("id").and_then(Value::as_str).is_none_or(str::is_empty) {
            let prefix = match kind.as_str() {
                "message" => "msg",
                "function_call" => "fc",
                "function_call_output" => "fco",
                "reasoning" => "rs",
                _ => "item",
            };
            fields.insert("id".to_owned(), id.input_item(prefix, index).into());
        }
        if kind == "message" {
            fields.entry("status").or_insert_with(|| "completed".into());
            if let Some(text) = fields.get("content").and_then(Value::as_str) {
                let is_answer = fields.get("role").is_some_and(|role| role == "assistant");
                let part = if is_answer {
                    json!({ "type": "output_text", "text": text, "annotations": [] })
                } else {
                    json!({ "type": "input_text", "text": text })
                };
                fields.insert("content".to_owned(), json!([part]));
            }
        }
        item
    });
    listed.collect()
}
