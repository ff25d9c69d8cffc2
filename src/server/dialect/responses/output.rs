//! Items of the output as JSON. Texts are JSON string literals, forwarded without parsing. Pure.

use serde_json::{Value, json};

/// A part of a message. `text` is a JSON string.
pub(super) fn text_part(text: &str) -> String {
    format!(r#"{{"type":"output_text","text":{text},"annotations":[],"logprobs":[]}}"#)
}

/// A part of a reasoning item.
pub(super) fn summary_part(text: &str) -> String {
    format!(r#"{{"type":"summary_text","text":{text}}}"#)
}

/// A message; without a text it has begun and has no part yet.
pub(super) fn message(id: &str, status: &str, text: Option<&str>) -> String {
    let (id, part) = (Value::from(id), text.map(text_part).unwrap_or_default());
    format!(r#"{{"id":{id},"type":"message","status":"{status}","role":"assistant","content":[{part}]}}"#)
}

/// A reasoning item; without a text nothing of the thought is shown.
pub(super) fn reasoning(id: &str, text: Option<&str>) -> String {
    let (id, part) = (Value::from(id), text.map(summary_part).unwrap_or_default());
    format!(r#"{{"id":{id},"type":"reasoning","summary":[{part}]}}"#)
}

/// A call of the caller's tool; without arguments it has begun.
pub(super) fn call(id: &str, (call, name): (&str, &str), status: &str, arguments: &str) -> String {
    let item = json!({
        "id": id, "type": "function_call", "status": status, "call_id": call, "name": name, "arguments": arguments,
    });
    item.to_string()
}
