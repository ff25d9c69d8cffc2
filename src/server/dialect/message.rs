//! Messages, common to all dialects.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::model::{Prompt, is_model_name};
use crate::server::api::error::ApiError;

#[derive(Deserialize)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) content: Content,
}

#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    User,
    Assistant,
    System,
}

pub(crate) enum Content {
    Text(String),
    Blocks(Vec<Value>),
}

impl Content {
    pub(super) fn into_blocks(self) -> Vec<Value> {
        match self {
            Self::Text(text) => vec![serde_json::json!({ "type": "text", "text": text })],
            Self::Blocks(blocks) => blocks,
        }
    }

    pub(super) fn texts(&self, between: &str) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Blocks(blocks) => {
                let texts = blocks.iter().filter_map(|block| block.get("text")?.as_str());
                texts.collect::<Vec<_>>().join(between)
            }
        }
    }
}

// By hand: an `untagged` enum loses the position of an error.
impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrBlocks;
        impl<'de> Visitor<'de> for TextOrBlocks {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of content blocks")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut blocks: A) -> Result<Content, A::Error> {
                let mut all = Vec::new();
                while let Some(Block(block)) = blocks.next_element()? {
                    all.push(block);
                }
                Ok(Content::Blocks(all))
            }
        }
        deserializer.deserialize_any(TextOrBlocks)
    }
}

/// A content block: an object with a `type`; a text block also needs its text.
struct Block(Value);

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let block = Value::deserialize(deserializer)?;
        match block.get("type") {
            Some(Value::String(kind)) if kind == "text" && !block["text"].is_string() => {
                Err(de::Error::custom("a text block needs a `text`, which must be a string"))
            }
            Some(Value::String(_)) => Ok(Self(block)),
            _ => Err(de::Error::custom("must be an object with a `type`")),
        }
    }
}

/// A value that must be an object. Derived structs also accept lists of their fields in order.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyMap<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMap<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(OnlyMap(PhantomData))
    }
}

/// Parses a whole body. An error names the field and repeats no value, which may be a credential.
pub(super) fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, ApiError> {
    // The place of an error is looked for only if there is one: following it takes as long as the rest.
    if let Ok(Object(body)) = serde_json::from_slice(bytes) {
        return Ok(body);
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let Object(body): Object<T> = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, error.inner())
    })?;
    json.end().map_err(|error| explain(".", &error))?;
    Ok(body)
}

/// Removes the last message, which must be the user's.
pub(super) fn take_last(history: &mut Vec<Message>) -> Result<(Content, String), ApiError> {
    let Some(last) = history.pop() else {
        return Err(ApiError::field("messages", "must not be empty"));
    };
    let at = format!("messages[{}]", history.len());
    if last.role != Role::User {
        return Err(ApiError::field(format_args!("{at}.role"), "the last message must be the user's"));
    }
    Ok((last.content, at))
}

pub(super) fn prompt(content: Content, at: &str) -> Result<Prompt, ApiError> {
    match content {
        Content::Text(text) if !text.trim().is_empty() => Ok(Prompt::Text(text)),
        Content::Blocks(blocks) if !blocks.is_empty() => Ok(Prompt::Blocks(blocks)),
        _ => Err(ApiError::field(format_args!("{at}.content"), "must not be empty")),
    }
}

pub(super) fn checked_model(field: &str, model: String) -> Result<String, ApiError> {
    if is_model_name(&model) {
        return Ok(model);
    }
    Err(ApiError::field(field, "must be a model's name such as \"sonnet\" or a full id"))
}

/// Error of a part of the body at `at` that is parsed separately.
pub(super) fn wrong_part(at: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let within = error.path().to_string();
    let text = without_value(&error.inner().to_string());
    let path = if within == "." { at.to_owned() } else { format!("{at}.{within}") };
    ApiError::field(path, text)
}

fn explain(path: &str, error: &serde_json::Error) -> ApiError {
    let text = without_value(&error.to_string());
    if path == "." { ApiError::invalid("invalid_body", text) } else { ApiError::field(path, text) }
}

/// The parser's message without the value.
fn without_value(text: &str) -> String {
    for (before, after) in [(": string \"", "\", expected"), ("unknown variant `", "`, expected")] {
        if let Some(((left, _), (_, right))) = text.split_once(before).zip(text.rsplit_once(after)) {
            let what = if before.starts_with(':') { ": a string" } else { "unknown variant" };
            return format!("{left}{what}, expected{right}");
        }
    }
    text.to_owned()
}
