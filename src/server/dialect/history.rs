//! The earlier messages: from a dialect's content blocks to a [`History`]. Pure.
//!
//! Unsupported parts are left out and named, never dropped silently.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::image;
use super::message::{Content, Message, Role};
use crate::model::{self, Block, History};
use crate::server::api::error::ApiError;

/// Maximum images and documents. The CLI drops the oldest of more than 100 down to 80, silently.
const MAX_MEDIA: usize = 80;
/// Longest base64 data of an image: the CLI refuses every turn of a conversation with a longer one.
const MAX_IMAGE: usize = 5 << 20;
/// Maximum names of omitted parts in a header value.
const MAX_NAMES: usize = 16;
/// Longest caller-chosen part of such a name.
const MAX_NAME: usize = 40;

/// A history and the names of its omitted parts.
#[derive(Debug, Default, PartialEq)]
pub(super) struct BroughtIn {
    pub(super) history: Option<History>,
    pub(super) left_out: Vec<String>,
}

/// Converts all messages. Refuses an image or document with which every turn would fail.
pub(super) fn bring_in(messages: Vec<Message>) -> Result<BroughtIn, ApiError> {
    let mut left_out = LeftOut::default();
    let mut taken = Vec::with_capacity(messages.len());
    for (index, message) in messages.into_iter().enumerate() {
        let role = match message.role {
            Role::Assistant => model::Role::Assistant,
            // Earlier instructions stay where they were given.
            Role::User | Role::System => model::Role::User,
        };
        let content = match message.content {
            Content::Text(text) => vec![Block::Text(text)],
            Content::Blocks(blocks) => {
                let mut content = Vec::with_capacity(blocks.len());
                for (place, block) in blocks.into_iter().enumerate() {
                    let block = take(block, role, &mut left_out).map_err(|problem| {
                        ApiError::field(format_args!("messages[{index}].content[{place}]"), problem)
                    })?;
                    content.extend(block);
                }
                content
            }
        };
        taken.push(model::Message { role, content: without_last_thoughts(content, &mut left_out) });
    }
    limit_media(&mut taken, &mut left_out);
    taken.retain(|message| !message.content.is_empty());
    let history = (!taken.is_empty()).then(|| History::new(taken));
    Ok(BroughtIn { history, left_out: left_out.names() })
}

/// Omitted parts, by kind.
#[derive(Default)]
struct LeftOut(BTreeSet<String>);

impl LeftOut {
    fn note(&mut self, kind: &str) {
        let is_plain = |character: &char| character.is_ascii_alphanumeric() || "_-.".contains(*character);
        let kind: String = kind.chars().filter(is_plain).take(MAX_NAME).collect();
        if self.0.len() < MAX_NAMES {
            self.0.insert(format!("messages.{kind}"));
        }
    }

    fn names(self) -> Vec<String> {
        self.0.into_iter().collect()
    }
}

/// Converts one block; `None` if omitted.
fn take(block: Value, role: model::Role, left_out: &mut LeftOut) -> Result<Option<Block>, &'static str> {
    let Value::Object(mut block) = block else { return Err("must be an object with a `type`") };
    let kind = match block.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        _ => return Err("must be an object with a `type`"),
    };
    // Cache control is up to the CLI.
    block.remove("cache_control");
    let taken = match (kind.as_str(), role) {
        ("text", _) => {
            if block.get("citations").is_some_and(|citations| !citations.is_null()) {
                left_out.note("citations");
            }
            match block.remove("text") {
                Some(Value::String(text)) => Some(Block::Text(text)),
                _ => return Err("a text block needs a `text`, which must be a string"),
            }
        }
        ("image" | "document" | "search_result", model::Role::User) => return media(&kind, block, left_out),
        ("tool_use", model::Role::Assistant) => Some(tool_use(block)?),
        ("tool_result", model::Role::User) => Some(tool_result(block, left_out)?),
        ("thinking", model::Role::Assistant)
            if is_text(&block, "thinking") && is_signed(&block, "signature") =>
        {
            Some(Block::Thinking(block))
        }
        ("redacted_thinking", model::Role::Assistant) if is_signed(&block, "data") => {
            Some(Block::Thinking(block))
        }
        _ => None,
    };
    if taken.is_none() {
        left_out.note(&kind);
    }
    Ok(taken)
}

fn is_text(block: &Map<String, Value>, key: &str) -> bool {
    block.get(key).is_some_and(Value::is_string)
}

fn is_signed(block: &Map<String, Value>, key: &str) -> bool {
    block.get(key).and_then(Value::as_str).is_some_and(|signature| !signature.is_empty())
}

/// `None` if the API could not read the block without data of the caller's.
fn media(
    kind: &str,
    block: Map<String, Value>,
    left_out: &mut LeftOut,
) -> Result<Option<Block>, &'static str> {
    let source = block.get("source").unwrap_or(&Value::Null);
    let text = |key: &str| source.get(key).and_then(Value::as_str);
    if kind != "search_result" && text("type") == Some("file") {
        left_out.note(&format!("{kind}.file"));
        return Ok(None);
    }
    match kind {
        "image" => {
            if text("data").is_some_and(|data| data.len() > MAX_IMAGE) {
                return Err("an image's `data` must not be longer than 5 MiB in base64");
            }
            image::check(source)?;
        }
        "document" => {
            let complete = match text("type") {
                Some("base64" | "text") => text("media_type").is_some() && text("data").is_some(),
                Some("url") => text("url").is_some(),
                Some("content") => source.get("content").is_some_and(|it| it.is_string() || it.is_array()),
                _ => false,
            };
            if !complete {
                return Err("a document needs a complete `source` of type base64, text, url or content");
            }
        }
        _ => {
            let is_list = block.get("content").is_some_and(Value::is_array);
            if !(is_list && is_text(&block, "source") && is_text(&block, "title")) {
                return Err("a search_result needs `source`, `title` and a list as `content`");
            }
        }
    }
    Ok(Some(Block::Media(block)))
}

fn tool_use(mut block: Map<String, Value>) -> Result<Block, &'static str> {
    let (id, name, input) = (block.remove("id"), block.remove("name"), block.remove("input"));
    let (Some(Value::String(id)), Some(Value::String(name))) = (id, name) else {
        return Err("a tool_use block needs an `id` and a `name`, which must be strings");
    };
    let input = match input {
        Some(Value::Object(input)) => input,
        None | Some(Value::Null) => Map::new(),
        Some(_) => return Err("a tool_use block needs an object as `input`"),
    };
    Ok(Block::ToolUse { id, name, input })
}

fn tool_result(mut block: Map<String, Value>, left_out: &mut LeftOut) -> Result<Block, &'static str> {
    let Some(Value::String(id)) = block.remove("tool_use_id") else {
        return Err("a tool_result block needs a `tool_use_id`, which must be a string");
    };
    let is_error = block.get("is_error") == Some(&Value::Bool(true));
    let mut content = Vec::new();
    match block.remove("content") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => content.push(Block::Text(text)),
        Some(Value::Array(blocks)) => {
            for inner in blocks {
                match take(inner, model::Role::User, left_out)? {
                    Some(Block::ToolResult { .. }) => left_out.note("tool_result.tool_result"),
                    taken => content.extend(taken),
                }
            }
        }
        Some(_) => return Err("a tool_result block needs text or a list of blocks as `content`"),
    }
    Ok(Block::ToolResult { id, content, is_error })
}

/// The API refuses trailing thinking.
fn without_last_thoughts(mut content: Vec<Block>, left_out: &mut LeftOut) -> Vec<Block> {
    let is_blank = |block: &Block| matches!(block, Block::Text(text) if text.trim().is_empty());
    content.retain(|block| !is_blank(block));
    while content.pop_if(|block| matches!(block, Block::Thinking(_))).is_some() {
        left_out.note("thinking");
    }
    content
}

/// Keeps the newest images, documents and search results.
fn limit_media(messages: &mut [model::Message], left_out: &mut LeftOut) {
    let mut room = MAX_MEDIA;
    for message in messages.iter_mut().rev() {
        keep_newest(&mut message.content, &mut room, left_out);
    }
}

fn keep_newest(content: &mut Vec<Block>, room: &mut usize, left_out: &mut LeftOut) {
    let mut kept = Vec::with_capacity(content.len());
    while let Some(mut block) = content.pop() {
        match &mut block {
            Block::Media(media) => match room.checked_sub(1) {
                Some(rest) => *room = rest,
                None => {
                    let kind = media.get("type").and_then(Value::as_str).unwrap_or_default();
                    left_out.note(kind);
                    continue;
                }
            },
            Block::ToolResult { content, .. } => keep_newest(content, room, left_out),
            _ => {}
        }
        kept.push(block);
    }
    kept.reverse();
    *content = kept;
}

#[cfg(test)]
mod tests;
