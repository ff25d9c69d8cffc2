//! Converts messages of the Chat Completions API to the Messages API. Pure.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::server::api::error::ApiError;
use crate::server::dialect::image;
use crate::server::dialect::message::{Content, Message, Role};

#[derive(Deserialize)]
pub(super) struct Sent {
    pub(super) role: SentRole,
    pub(super) content: Option<Content>,
    refusal: Option<String>,
    /// Earlier speech of the model, by an id of its API.
    audio: Option<Map<String, Value>>,
    /// What answers of this service show of the model's thoughts.
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
    tool_call_id: Option<String>,
    /// The form before `tool_calls`: without ids.
    function_call: Option<Function>,
    name: Option<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum SentRole {
    System,
    Developer,
    User,
    Assistant,
    Tool,
    Function,
}

#[derive(Deserialize)]
struct ToolCall {
    id: String,
    function: Option<Function>,
    custom: Option<Custom>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    arguments: String,
}

/// A tool that takes text.
#[derive(Deserialize)]
struct Custom {
    name: String,
    input: String,
}

/// The model's text and its tool calls. `tool_calls` may stand without a text.
pub(super) fn assistant(sent: Sent, at: &str) -> Result<Message, ApiError> {
    let content = sent.content.map(|content| translate(content, at, false)).transpose()?;
    let calls = sent.tool_calls.into_iter().flatten().map(|call| {
        let ToolCall { id, function, custom } = call;
        match (function, custom) {
            (Some(function), _) => Ok(tool_use(id, function)),
            (None, Some(Custom { name, input })) => {
                Ok(json!({ "type": "tool_use", "id": id, "name": name, "input": { "input": input } }))
            }
            (None, None) => {
                Err(ApiError::field(format_args!("{at}.tool_calls"), "a call needs its `function`"))
            }
        }
    });
    let mut blocks = calls.collect::<Result<Vec<_>, _>>()?;
    // By its name: there was one call in a message, and one result of it.
    blocks.extend(sent.function_call.map(|function| tool_use(function.name.clone(), function)));
    let refusal = sent.refusal.map(|text| json!({ "type": "text", "text": text }));
    let audio = sent.audio.map(|_| json!({ "type": "audio" }));
    let thoughts = sent.reasoning_content.filter(|text| !text.is_empty());
    let thoughts = thoughts.map(|text| json!({ "type": "thinking", "thinking": text }));
    if blocks.is_empty() && refusal.is_none() && audio.is_none() && thoughts.is_none() {
        let content = content.unwrap_or_else(|| Content::Text(String::new()));
        return Ok(Message { role: Role::Assistant, content });
    }
    let mut all: Vec<Value> = thoughts.into_iter().collect();
    all.extend(content.into_iter().flat_map(Content::into_blocks));
    all.extend(refusal.into_iter().chain(audio));
    all.append(&mut blocks);
    Ok(Message { role: Role::Assistant, content: Content::Blocks(all) })
}

pub(super) fn tool(sent: Sent, at: &str) -> Result<Message, ApiError> {
    let content = sent.content.ok_or_else(|| ApiError::field(format_args!("{at}.content"), "is missing"))?;
    let content = translate(content, at, false)?.into_blocks();
    let id = match sent.role {
        SentRole::Function => sent.name.unwrap_or_default(),
        _ => sent.tool_call_id.unwrap_or_default(),
    };
    let result = json!({ "type": "tool_result", "tool_use_id": id, "content": content });
    Ok(Message { role: Role::User, content: Content::Blocks(vec![result]) })
}

fn tool_use(id: String, function: Function) -> Value {
    let input = match serde_json::from_str(&function.arguments) {
        Ok(Value::Object(input)) => Value::Object(input),
        _ if function.arguments.trim().is_empty() => json!({}),
        // The model may have written invalid JSON, but the API accepts only an object.
        _ => json!({ "arguments": function.arguments }),
    };
    json!({ "type": "tool_use", "id": id, "name": function.name, "input": input })
}

/// Converts content parts. Unsupported parts are refused in the last message and kept in the history, which names them.
pub(super) fn translate(content: Content, at: &str, asked_now: bool) -> Result<Content, ApiError> {
    let Content::Blocks(parts) = content else { return Ok(content) };
    let blocks = parts.into_iter().enumerate().map(|(index, part)| {
        let block = block(part, asked_now);
        block.map_err(|problem| ApiError::field(format_args!("{at}.content[{index}]"), problem))
    });
    Ok(Content::Blocks(blocks.collect::<Result<_, _>>()?))
}

fn block(mut part: Value, asked_now: bool) -> Result<Value, &'static str> {
    match part.get("type").and_then(Value::as_str) {
        Some("text") => match part.get_mut("text").map(Value::take) {
            Some(Value::String(text)) => Ok(json!({ "type": "text", "text": text })),
            _ => Err("a text part needs a `text`, which must be a string"),
        },
        Some("refusal") => match part.get_mut("refusal").map(Value::take) {
            Some(Value::String(text)) => Ok(json!({ "type": "text", "text": text })),
            _ => Err("a refusal part needs a `refusal`, which must be a string"),
        },
        Some("image_url") => {
            let url = part["image_url"].get("url").and_then(Value::as_str);
            let url = url.ok_or("an image_url part needs `image_url.url`")?;
            let source = data_url(url).map_or_else(
                || json!({ "type": "url", "url": url }),
                |(media_type, data)| json!({ "type": "base64", "media_type": media_type, "data": data }),
            );
            let block = json!({ "type": "image", "source": source });
            image::check(&block["source"])?;
            Ok(block)
        }
        Some("file") => file(&part["file"], asked_now),
        Some(_) if !asked_now => Ok(part),
        Some(_) => Err("must be a part of type text, image_url or file"),
        None => Err("must be an object with a `type`"),
    }
}

/// Converts a document. A document uploaded to another API is unavailable here.
pub(in crate::server::dialect) fn file(file: &Value, asked_now: bool) -> Result<Value, &'static str> {
    let text = |key: &str| file.get(key).and_then(Value::as_str);
    let Some((media_type, data)) = text("file_data").and_then(data_url) else {
        if !asked_now && text("file_id").is_some() {
            return Ok(json!({ "type": "file" }));
        }
        return Err("a file part needs `file_data`: a data URL of type application/pdf in base64");
    };
    if media_type != "application/pdf" {
        return Err("a file must be of type application/pdf");
    }
    let mut block =
        json!({ "type": "document", "source": { "type": "base64", "media_type": media_type, "data": data } });
    if let Some(name) = text("filename") {
        block["title"] = name.into();
    }
    Ok(block)
}

/// Type and data of `data:TYPE;base64,DATA`.
pub(in crate::server::dialect) fn data_url(url: &str) -> Option<(&str, &str)> {
    url.strip_prefix("data:")?.split_once(";base64,")
}

#[cfg(test)]
mod tests;
