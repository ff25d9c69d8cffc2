//! Parses one input line into a command: a pure function with the error messages of claude.

use serde_json::Value;

/// A user message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    /// The content as sent: a string or blocks. Replays repeat it.
    pub(crate) content: Value,
    /// Its text only.
    pub(crate) text: String,
    pub(crate) uuid: Option<String>,
    pub(crate) priority: Priority,
    /// False: add it to the conversation without a turn.
    pub(crate) query: bool,
}

/// Priority of a message while a turn runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Ends the running turn.
    Now,
    /// Joins the running turn at its next tool call.
    Next,
    /// Waits for the end of the running turn.
    Later,
}

/// A parsed line.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    Ignore,
    User(Box<Message>),
    Control {
        request_id: Option<String>,
        request: Value,
    },
    Answer {
        request_id: String,
        response: Value,
    },
    /// The process exits with this text on standard error.
    Fatal(String),
    /// The process exits; only a `result` carries the reason.
    FatalResult(String),
}

/// Parses one line. As in claude, some malformed lines are ignored and some are fatal.
pub(crate) fn parse_line(line: &[u8]) -> Command {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Command::Ignore;
    }
    let text = String::from_utf8_lossy(line);
    let parsed = serde_json::from_str::<Value>(&text)
        .or_else(|_| serde_json::from_str::<Value>(&without_lone_surrogates(&text)));
    let fatal =
        |reason: &str| Command::Fatal(format!("Error parsing streaming input line: {text}: {reason}"));
    let mut value = match parsed {
        Ok(Value::Null) => return fatal("TypeError: null is not an object (evaluating 't.type')"),
        Ok(value) => value,
        Err(error) => return fatal(&format!("SyntaxError: JSON Parse error: {error}")),
    };
    match value.get("type").and_then(Value::as_str) {
        Some("user") => match value.get("message") {
            None | Some(Value::Null) => {
                fatal("TypeError: undefined is not an object (evaluating 't.message.role')")
            }
            Some(message) => match message.get("role").and_then(Value::as_str) {
                Some("user") => user(&value, message),
                role => Command::Fatal(format!(
                    "Error: Expected message role 'user', got '{}'",
                    role.unwrap_or("undefined")
                )),
            },
        },
        Some("control_request") => match value.get_mut("request").map(Value::take) {
            Some(request) if !request.is_null() => Command::Control {
                request_id: value.get("request_id").and_then(Value::as_str).map(str::to_owned),
                request,
            },
            _ => fatal("TypeError: undefined is not an object (evaluating 'e.request.subtype')"),
        },
        Some("control_response") => answer(&value),
        _ => Command::Ignore,
    }
}

fn answer(value: &Value) -> Command {
    match value.get("response") {
        Some(response) => match response.get("request_id").and_then(Value::as_str) {
            Some(id) => Command::Answer { request_id: id.to_owned(), response: response.clone() },
            None => Command::Ignore,
        },
        None => Command::Ignore,
    }
}

fn user(value: &Value, message: &Value) -> Command {
    let content = message.get("content").unwrap_or(&Value::Null);
    let text = match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => match blocks.iter().find_map(fatal_block) {
            Some(complaint) => return Command::FatalResult(complaint.into()),
            None => text_of(blocks),
        },
        _ => return Command::FatalResult("message content must be a string or an array".into()),
    };
    Command::User(Box::new(Message {
        content: content.clone(),
        text,
        uuid: value.get("uuid").and_then(Value::as_str).map(str::to_owned),
        priority: match value.get("priority").and_then(Value::as_str) {
            Some("now") => Priority::Now,
            Some("later") => Priority::Later,
            _ => Priority::Next,
        },
        query: value.get("shouldQuery").and_then(Value::as_bool).unwrap_or(true),
    }))
}

/// The error that ends claude for a malformed block: it reads fields of known blocks without a check.
fn fatal_block(block: &Value) -> Option<&'static str> {
    if block.is_null() {
        return Some("null is not an object (evaluating 'n.type')");
    }
    let source = block.get("source");
    match block.get("type").and_then(Value::as_str)? {
        "text" if !block.get("text").is_some_and(Value::is_string) => {
            Some("undefined is not an object (evaluating 'M.startsWith')")
        }
        "image" if source.is_none_or(Value::is_null) => {
            Some("undefined is not an object (evaluating 'e.source.type')")
        }
        "image" if source?.get("type")? == "base64" && !source?.get("data").is_some_and(Value::is_string) => {
            Some("The first argument must be of type string or an instance of Buffer")
        }
        _ => None,
    }
}

/// The text of all text blocks, one per line.
pub(crate) fn text_of(blocks: &[Value]) -> String {
    let texts = blocks.iter().filter_map(|block| block.get("text").and_then(Value::as_str));
    texts.collect::<Vec<_>>().join("\n")
}

/// A summary of the content: type of each block, with media type and length of its data.
pub(crate) fn kinds_of(content: &Value) -> String {
    let Value::Array(blocks) = content else { return "text".into() };
    let kinds = blocks.iter().map(|block| {
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let kind = text(block, "type").unwrap_or_else(|| "?".into());
        let source = block.get("source").unwrap_or(&Value::Null);
        match text(source, "media_type") {
            Some(media) => {
                format!("{kind}:{media}:{}", text(source, "data").map_or(0, |data| data.len()))
            }
            None => kind,
        }
    });
    kinds.collect::<Vec<_>>().join(" ")
}

/// Replaces lone surrogates in escapes, which JavaScript accepts, by the replacement character.
fn without_lone_surrogates(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let unit = |text: &str| {
            let digits = text.strip_prefix('u')?.get(..4)?;
            u16::from_str_radix(digits, 16).ok()
        };
        match unit(after) {
            Some(high) if (0xd800..0xdc00).contains(&high) => {
                let low = after.get(5..).and_then(|more| more.strip_prefix('\\')).and_then(unit);
                let paired = low.is_some_and(|low| (0xdc00..0xe000).contains(&low));
                let length = if paired { 11 } else { 5 };
                if paired {
                    out.push('\\');
                    out.push_str(after.get(..length).unwrap_or_default());
                } else {
                    out.push('\u{fffd}');
                }
                rest = after.get(length..).unwrap_or_default();
            }
            Some(low) if (0xdc00..0xe000).contains(&low) => {
                out.push('\u{fffd}');
                rest = after.get(5..).unwrap_or_default();
            }
            _ => {
                // Any other escape: the character after the backslash belongs to it.
                out.push('\\');
                let mut characters = after.chars();
                out.extend(characters.next());
                rest = characters.as_str();
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::{Command, parse_line};

    #[test]
    fn malformed_lines_are_ignored_or_fatal() {
        for line in ["", "\r", "[1]", "7", "{}", r#"{"type":"zzz"}"#, r#"{"type":"keep_alive"}"#] {
            assert_eq!(parse_line(line.as_bytes()), Command::Ignore, "{line}");
        }
        for line in ["  ", "null", "{bad", r#"{"type":"user"}"#, r#"{"type":"control_request"}"#] {
            let Command::Fatal(reason) = parse_line(line.as_bytes()) else { panic!("{line} must be fatal") };
            assert!(reason.starts_with(&format!("Error parsing streaming input line: {line}: ")), "{reason}");
        }
    }

    #[test]
    fn message_text_is_unchanged() {
        let said = |line: &[u8]| match parse_line(line) {
            Command::User(message) => message.text,
            other => panic!("{other:?}"),
        };
        let line =
            r#"{"type":"user","message":{"role":"user","content":"a\ud83d\ude00\\u\ud800b\udc00\"\\\\"}}"#;
        assert_eq!(said(line.as_bytes()), "a😀\\u\u{fffd}b\u{fffd}\"\\\\");
        let bytes = b"{\"type\":\"user\",\"message\":{\"role\":\"user\",\"content\":\"x\xffy\"}}\r";
        assert_eq!(said(bytes), "x\u{fffd}y");
        let blocks = r#"{"type":"user","message":{"role":"user","content":[{"type":"text","text":"a"},{"type":"other"},{"type":"text","text":"b"}]}}"#;
        assert_eq!(said(blocks.as_bytes()), "a\nb");
    }

    #[test]
    fn blocks_without_required_fields_are_fatal() {
        let judged = |block: &str| {
            let line = format!(r#"{{"type":"user","message":{{"role":"user","content":[{block}]}}}}"#);
            matches!(parse_line(line.as_bytes()), Command::FatalResult(_))
        };
        for block in [
            "null",
            r#"{"type":"text"}"#,
            r#"{"type":"text","text":7}"#,
            r#"{"type":"image"}"#,
            r#"{"type":"image","source":{"type":"base64","data":7}}"#,
        ] {
            assert!(judged(block), "{block}");
        }
        for block in [
            "7",
            "[]",
            r#"{"type":"other"}"#,
            r#"{"type":"image","source":7}"#,
            r#"{"type":"text","text":""}"#,
        ] {
            assert!(!judged(block), "{block}");
        }
    }
}
