//! Handling of each field of a request: one table per dialect, after the current API reference. Pure.
//!
//! The tables determine `x-pilotlight-ignored` and refusals; tests compare `openapi.json` and `docs/http-api.md` with
//! them. Unknown fields are reported as ignored.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Dialect;
use crate::server::api::error::ApiError;

mod tables;

const MAX_NAMES: usize = 32;
const MAX_NAME: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Used,
    /// Has no effect and is named.
    Ignored,
    /// Has no effect and is named, but the API requires it: `http.strict` does not refuse it.
    Unheeded,
    /// Asks for something unsupported: 400.
    Refused,
}

/// One field, with dots between levels.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) fate: Fate,
    /// JSON values that ask for the default behaviour.
    pub(super) harmless: &'static [&'static str],
    pub(super) why: &'static str,
}

/// Fields of a request without effect.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Ignored {
    pub(crate) names: Vec<String>,
    /// Whether `http.strict` refuses them.
    pub(crate) is_refused_by_strict: bool,
}

/// Classifies the fields of a body that its dialect's parser has accepted.
pub(crate) fn judge(dialect: Dialect, body: &[u8]) -> Result<Ignored, ApiError> {
    let table = tables::of(dialect);
    let mut found = Findings::default();
    // The dialect's parser has accepted the body.
    let fields: Fields<'_> = serde_json::from_slice(body).unwrap_or_default();
    for (name, value) in &fields {
        found.judge(table, name, value)?;
    }
    if dialect == Dialect::Responses {
        found.judge_items(&fields);
    } else if let Some(messages) = fields.get("messages") {
        let messages: Vec<Fields<'_>> = serde_json::from_str(messages.get()).unwrap_or_default();
        for message in &messages {
            let of_message = message.iter().filter(|(_, value)| value.get() != "null").map(|(name, _)| name);
            let names = of_message.filter(|name| !is_read(dialect, message, name));
            names.for_each(|name| found.note(&format!("messages.{name}"), true));
        }
    }
    Ok(found.0)
}

type Fields<'a> = BTreeMap<std::borrow::Cow<'a, str>, &'a RawValue>;

/// Fields of a message read in every dialect.
const MESSAGE: [&str; 2] = ["role", "content"];
/// Further fields read in the Chat Completions API.
const OPENAI_MESSAGE: [&str; 7] =
    ["tool_calls", "tool_call_id", "function_call", "refusal", "audio", "reasoning_content", "annotations"];

/// Fields of every item of the Responses API that are read, or say nothing about the turn.
const ITEM: [&str; 3] = ["type", "id", "status"];

/// Whether the dialect reads this field of a message.
fn is_read(dialect: Dialect, message: &Fields<'_>, name: &str) -> bool {
    // The result of a function call names its function; elsewhere `name` has no effect.
    let is_result = || message.get("role").is_some_and(|role| role.get() == "\"function\"");
    let is_openai = matches!(dialect, Dialect::OpenAi);
    MESSAGE.contains(&name) || is_openai && (OPENAI_MESSAGE.contains(&name) || name == "name" && is_result())
}

#[derive(Default)]
struct Findings(Ignored);

impl Findings {
    fn judge(&mut self, table: &[Field], name: &str, value: &RawValue) -> Result<(), ApiError> {
        if value.get() == "null" {
            return Ok(());
        }
        let Some(field) = table.iter().find(|field| field.name == name) else {
            self.note(name, true);
            return Ok(());
        };
        let inner =
            || table.iter().any(|other| other.name.strip_prefix(name).is_some_and(|it| it.starts_with('.')));
        if value.get().starts_with('{') && inner() {
            // Inner fields are classified one by one.
            let fields: BTreeMap<String, &RawValue> = serde_json::from_str(value.get()).unwrap_or_default();
            for (inner, value) in fields {
                self.judge(table, &format!("{name}.{inner}"), value)?;
            }
            return Ok(());
        }
        match field.fate {
            Fate::Used => {}
            _ if field.is_harmless(value) => {}
            Fate::Ignored => self.note(name, true),
            Fate::Unheeded => self.note(name, false),
            Fate::Refused => return Err(ApiError::unsupported(name, field.why)),
        }
        Ok(())
    }

    /// Fields of the items of the Responses API. Items of kinds that are left out are named by their kind alone.
    fn judge_items(&mut self, fields: &Fields<'_>) {
        let Some(input) = fields.get("input") else { return };
        let items: Vec<Fields<'_>> = serde_json::from_str(input.get()).unwrap_or_default();
        for item in &items {
            let read: &[&str] = match item.get("type").map(|kind| kind.get()) {
                None | Some("\"message\"") => &["role", "content"],
                Some("\"function_call\"") => &["call_id", "name", "arguments"],
                Some("\"custom_tool_call\"") => &["call_id", "name", "input"],
                Some("\"function_call_output\"" | "\"custom_tool_call_output\"") => &["call_id", "output"],
                Some(_) => continue,
            };
            let is_read = |name: &str| read.contains(&name) || ITEM.contains(&name);
            let of_item = item.iter().filter(|(_, value)| value.get() != "null").map(|(name, _)| name);
            of_item.filter(|name| !is_read(name)).for_each(|name| self.note(&format!("input.{name}"), true));
        }
    }

    fn note(&mut self, name: &str, refused_by_strict: bool) {
        self.0.is_refused_by_strict |= refused_by_strict;
        let plain = |letter: char| {
            if letter.is_ascii_alphanumeric() || "_-.".contains(letter) { letter } else { '?' }
        };
        let name: String = name.chars().take(MAX_NAME).map(plain).collect();
        if self.0.names.len() < MAX_NAMES && !self.0.names.contains(&name) {
            self.0.names.push(name);
        }
    }
}

impl Field {
    fn is_harmless(&self, value: &RawValue) -> bool {
        if self.harmless.is_empty() {
            return false;
        }
        let value = Value::deserialize(value).unwrap_or_default();
        self.harmless.iter().any(|harmless| match harmless.strip_prefix('~') {
            // An object of this type, whatever else it holds.
            Some(kind) => value.get("type").and_then(Value::as_str) == Some(kind),
            None => serde_json::from_str::<Value>(harmless).is_ok_and(|harmless| harmless == value),
        })
    }
}

#[cfg(test)]
mod tests;
