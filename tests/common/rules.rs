//! The rules by which the model's API accepts a request's messages, as far as it documents or was seen to enforce them.

use std::collections::HashSet;

use serde_json::Value;

/// What the API would refuse in these messages; empty if it would take them.
pub fn violations(messages: &Value) -> Vec<String> {
    let Some(messages) = messages.as_array() else { return vec!["messages is no list".into()] };
    let mut found = Vec::new();
    let mut ids = HashSet::new();
    let mut open: Vec<String> = Vec::new();
    // Messages of newer CLIs that only instruct.
    let messages = messages.iter().filter(|message| message["role"] != "system");
    let mut last = "assistant";
    for (at, message) in messages.enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        match role {
            "user" | "assistant" if role != last => {}
            "user" | "assistant" if at > 0 => found.push(format!("{at}: {role} twice in a row")),
            _ => found.push(format!("{at}: role {role:?}")),
        }
        let blocks = match &message["content"] {
            Value::String(text) => vec![serde_json::json!({ "type": "text", "text": text })],
            Value::Array(blocks) => blocks.clone(),
            other => {
                found.push(format!("{at}: content {other}"));
                continue;
            }
        };
        if blocks.is_empty() {
            found.push(format!("{at}: no content"));
        }
        if role == "user" {
            let results: Vec<&str> = blocks.iter().map_while(|it| it["tool_use_id"].as_str()).collect();
            let expected: HashSet<&str> = open.iter().map(String::as_str).collect();
            if results.iter().copied().collect::<HashSet<_>>() != expected || results.len() != open.len() {
                found.push(format!("{at}: results of {results:?} for calls {open:?}"));
            }
        } else if !open.is_empty() {
            found.push(format!("{at}: calls {open:?} without results"));
        }
        open.clear();
        let mut others = false;
        for block in &blocks {
            found.extend(of_block(block, role).map(|what| format!("{at}: {what}")));
            match block["type"].as_str() {
                Some("tool_use") => {
                    let id = block["id"].as_str().unwrap_or_default().to_owned();
                    if !ids.insert(id.clone()) {
                        found.push(format!("{at}: id {id} twice"));
                    }
                    open.push(id);
                }
                Some("tool_result") if others => found.push(format!("{at}: a result behind other content")),
                Some("tool_result") => {}
                _ => others = true,
            }
        }
        if role == "assistant" && blocks.last().is_some_and(|block| block["type"] == "thinking") {
            found.push(format!("{at}: ends with thinking"));
        }
        last = if role == "user" { "user" } else { "assistant" };
    }
    if last != "user" {
        found.push("the last message is not the user's".into());
    }
    found
}

fn of_block(block: &Value, role: &str) -> Option<String> {
    let text = |key: &str| block[key].as_str().unwrap_or_default();
    let is_name = |name: &str, most: usize| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        (1..=most).contains(&name.len()) && name.bytes().all(plain)
    };
    match (text("type"), role) {
        ("text", _) if text("text").trim().is_empty() => Some("a blank text".into()),
        ("text", _) => None,
        ("image" | "document" | "search_result", "user") => {
            block["source"].is_null().then(|| format!("{block} without a source"))
        }
        ("tool_use", "assistant") => {
            let fine = is_name(text("id"), 256) && is_name(text("name"), 128) && block["input"].is_object();
            (!fine).then(|| format!("call {block}"))
        }
        ("tool_result", "user") => {
            let inner = block["content"].as_array();
            let is_text = |block: &Value| block["type"] == "text";
            if block["is_error"] == true && inner.is_some_and(|inner| !inner.iter().all(is_text)) {
                return Some("a failed tool's result that is not text".into());
            }
            inner.into_iter().flatten().find_map(|inner| of_block(inner, "user"))
        }
        ("thinking", "assistant") => text("signature").is_empty().then(|| "an unsigned thought".into()),
        ("redacted_thinking", "assistant") => None,
        (kind, role) => Some(format!("{kind} of the {role}")),
    }
}

/// The messages as their sender wrote them: without the CLI's reminders, its marks for the cache and its own role.
pub fn without_additions(messages: &Value) -> Value {
    let is_own = |block: &Value| {
        block["text"].as_str().is_some_and(|text| text.trim_start().starts_with("<system-reminder>"))
    };
    let plain = messages.as_array().into_iter().flatten().filter(|message| message["role"] != "system");
    let plain = plain.map(|message| {
        let blocks = match &message["content"] {
            Value::String(text) => vec![serde_json::json!({ "type": "text", "text": text })],
            other => other.as_array().cloned().unwrap_or_default(),
        };
        let blocks = blocks.into_iter().filter(|block| !is_own(block)).map(|mut block| {
            if let Some(fields) = block.as_object_mut() {
                fields.remove("cache_control");
            }
            block
        });
        serde_json::json!({ "role": message["role"], "content": blocks.collect::<Vec<_>>() })
    });
    Value::Array(plain.collect())
}
