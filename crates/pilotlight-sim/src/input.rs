//! Standard input: a thread that reads it all the time, and the pure judgement of one line.
//!
//! All lines of one `read(2)` travel together, so that an interrupt written together with a message reliably hits
//! that message's turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::event::PollFlags;
use rustix::io::Errno;
use serde_json::Value;

use super::output::wait_for;

/// Batches that may wait for the main thread; behind them the pipe, and then the host, has to wait.
const WAITING_BATCHES: usize = 64;
/// The real CLI has no limit. This only stops a test that forgot its line ends from eating the machine.
const MAX_LINE: usize = 512 * 1024 * 1024;
const READ_SIZE: usize = 64 * 1024;

/// What reaches the main thread.
#[derive(Debug)]
pub(crate) enum Input {
    /// One line, without its end.
    Line(Vec<u8>),
    /// The host closed the input.
    Eof,
    /// SIGINT.
    Interrupt,
    /// The foreground tool with this process id has ended (and waits to be reaped).
    ToolEnded(u32),
    /// The background task with this id has ended with this code.
    TaskEnded(String, i32),
}

/// Inputs that arrived together.
pub(crate) type Batch = Vec<Input>;

/// The channel between the helping threads and the main thread.
pub(crate) fn channel() -> (SyncSender<Batch>, Receiver<Batch>) {
    sync_channel(WAITING_BATCHES)
}

/// Reads standard input until its end, or until `stopped` (the fault that never reads again).
pub(crate) fn start_reader(inputs: SyncSender<Batch>, stopped: Arc<AtomicBool>) {
    let reader = move || {
        let stdin = rustix::stdio::stdin();
        let (mut buffer, mut partial) = (vec![0; READ_SIZE], Vec::new());
        while !stopped.load(Ordering::SeqCst) {
            // Waits by poll, as the event loop of the real CLI does: where input and output are one socket, whoever
            // sleeps in read(2) is woken by everything that the other side takes out.
            wait_for(stdin, PollFlags::IN);
            let batch = match rustix::io::read(stdin, &mut buffer) {
                Ok(0) => vec![Input::Eof],
                Ok(length) => split_lines(&mut partial, buffer.get(..length).unwrap_or_default()),
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(_) => vec![Input::Eof],
            };
            if stopped.load(Ordering::SeqCst) {
                // This read was under way already; nobody may know what it brought.
                return;
            }
            let ended = matches!(batch.last(), Some(Input::Eof)) || partial.len() > MAX_LINE;
            if (!batch.is_empty() && inputs.send(batch).is_err()) || ended {
                return;
            }
        }
    };
    drop(std::thread::Builder::new().name("input".into()).stack_size(256 * 1024).spawn(reader));
}

/// Cuts a piece of input into whole lines; what is left over waits in `partial`. A last line without an end is lost
/// with the end of input.
fn split_lines(partial: &mut Vec<u8>, piece: &[u8]) -> Batch {
    let mut batch = Vec::new();
    let mut rest = piece;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let (line, after) = rest.split_at(end);
        partial.extend_from_slice(line);
        batch.push(Input::Line(std::mem::take(partial)));
        rest = after.get(1..).unwrap_or_default();
    }
    partial.extend_from_slice(rest);
    batch
}

/// A user's message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    /// As it was sent: a string or blocks. Replays repeat it.
    pub(crate) content: Value,
    /// Its text alone.
    pub(crate) text: String,
    pub(crate) uuid: Option<String>,
    pub(crate) priority: Priority,
    /// False: only remember it, ask nobody.
    pub(crate) query: bool,
}

/// How a message treats a running turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Ends it.
    Now,
    /// Joins it when it uses a tool.
    Next,
    /// Waits for its end.
    Later,
}

/// A line, judged.
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
    /// The process must end, with this on standard error.
    Fatal(String),
    /// The process must end, and only a `result` tells why.
    FatalResult(String),
}

/// Judges one line, as the real CLI does: some nonsense is ignored, some is deadly.
pub(crate) fn judge(line: &[u8]) -> Command {
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
        Value::Array(blocks) => match blocks.iter().find_map(deadly) {
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

/// What the real one dies of: it takes the fields of the blocks that it knows for granted.
fn deadly(block: &Value) -> Option<&'static str> {
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

/// The text blocks, one per line; other blocks have no text.
pub(crate) fn text_of(blocks: &[Value]) -> String {
    let texts = blocks.iter().filter_map(|block| block.get("text").and_then(Value::as_str));
    texts.collect::<Vec<_>>().join("\n")
}

/// What a message consists of: the type of each block, with the kind and length of the data that it carries.
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

/// JavaScript accepts halves of surrogate pairs in escapes; they become the replacement character.
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
                // Any other escape: the character after the backslash belongs to it, also a second backslash.
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
    use super::{Command, Input, judge, split_lines};

    #[test]
    fn lines_survive_any_cut() {
        let mut partial = Vec::new();
        let mut lines = Vec::new();
        for piece in [&b"ab"[..], b"c\n\nd", b"\n", b"e"] {
            for input in split_lines(&mut partial, piece) {
                let Input::Line(line) = input else { panic!("not a line") };
                lines.push(String::from_utf8(line).unwrap());
            }
        }
        assert_eq!(lines, ["abc", "", "d"]);
        assert_eq!(partial, b"e");
    }

    #[test]
    fn nonsense_is_ignored_or_deadly_as_in_the_real_one() {
        for line in ["", "\r", "[1]", "7", "{}", r#"{"type":"zzz"}"#, r#"{"type":"keep_alive"}"#] {
            assert_eq!(judge(line.as_bytes()), Command::Ignore, "{line}");
        }
        for line in ["  ", "null", "{bad", r#"{"type":"user"}"#, r#"{"type":"control_request"}"#] {
            let Command::Fatal(reason) = judge(line.as_bytes()) else { panic!("{line} must be fatal") };
            assert!(reason.starts_with(&format!("Error parsing streaming input line: {line}: ")), "{reason}");
        }
    }

    #[test]
    fn text_arrives_unchanged() {
        let said = |line: &[u8]| match judge(line) {
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
    fn blocks_without_what_belongs_to_them_are_deadly() {
        let judged = |block: &str| {
            let line = format!(r#"{{"type":"user","message":{{"role":"user","content":[{block}]}}}}"#);
            matches!(judge(line.as_bytes()), Command::FatalResult(_))
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
