//! Fields of output lines, except for the last line of a turn. Tolerant: see [`super::fields`].

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde::Deserialize;

use super::caller_tools;
use super::classify::{REPLAY, SYNTHETIC, holds};
use super::delta::TextDelta;
use super::fields::{replace_lone_surrogates, text, with_fields};
use super::questions;
use super::tail::Tail;
use crate::adapter::{ControlResponse, HostRequest, Task};
use crate::model::is_model_name;

/// Longest accepted id of a conversation, a task, a request or a call. The CLI's are UUIDs and shorter.
pub(super) const ID_LIMIT: usize = 128;

/// Whether an id has the characters of a UUID: it becomes an argument and a file name.
pub(super) fn is_plain(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !id.is_empty() && id.len() <= ID_LIMIT && !id.starts_with('-') && id.bytes().all(plain)
}

/// Model name with its context window, such as `claude-opus-4-8[1m]`.
pub(crate) fn announced_model(line: &[u8]) -> Option<String> {
    with_fields(line, |fields| fields.text("model").filter(|model| is_model_name(model)))
}

pub(crate) fn control_response(line: &[u8]) -> Option<ControlResponse> {
    with_fields(line, |fields| {
        let response = fields.object("response")?;
        let refused = response.text("subtype").as_deref() == Some("error");
        let error = || response.text("error").unwrap_or_else(|| "refused without a reason".to_owned());
        Some(ControlResponse { request_id: response.text("request_id")?, error: refused.then(error) })
    })
}

pub(crate) fn host_request(line: &[u8]) -> Option<HostRequest> {
    with_fields(line, |fields| {
        // It is kept, and repeated in the response.
        let request_id = fields.text("request_id").filter(|id| id.len() <= ID_LIMIT)?;
        let request = fields.object("request");
        let what = request.as_ref().and_then(|request| request.text("subtype"));
        let what = what.filter(|what| what.len() <= ID_LIMIT);
        if let Some(request) = &request
            && what.as_deref() == Some("mcp_message")
            && let (Some(server), Some(message)) = (request.text("server_name"), request.get("message"))
            && let Some(request) = caller_tools::request(&request_id, &server, message)
        {
            return Some(request);
        }
        let asked = match what.as_deref() {
            Some("can_use_tool") => request.as_ref().and_then(|it| questions::permission(&request_id, it)),
            Some("elicitation") => request.as_ref().and_then(|it| questions::elicitation(&request_id, it)),
            _ => None,
        };
        if let Some(asked) = asked {
            return Some(HostRequest::Permission(asked));
        }
        // Includes an unreadable permission request: a refusal fails one tool, a missing response hangs the turn.
        Some(HostRequest::Unsupported { request_id, what: what.unwrap_or_else(|| "unknown".to_owned()) })
    })
}

pub(crate) fn cancelled_request(line: &[u8]) -> Option<String> {
    with_fields(line, |fields| fields.text("request_id"))
}

/// Message id. Output of a CLI command is an echo too, with an id of its own.
pub(crate) fn echo(line: &[u8]) -> Option<String> {
    with_fields(line, |fields| fields.text("uuid").filter(|id| is_plain(id)))
}

/// Begin or end of a task. The CLI reports an end twice; the second has no effect.
pub(crate) fn task(line: &[u8]) -> Option<Task> {
    with_fields(line, |fields| {
        let id = fields.text("task_id").filter(|id| id.len() <= ID_LIMIT)?;
        match fields.text("subtype")?.as_str() {
            "task_started" => Some(Task::Began(id)),
            "task_notification" => Some(Task::Ended(id)),
            "task_updated" => {
                let status = fields.object("patch").and_then(|patch| patch.text("status"))?;
                (!matches!(status.as_str(), "running" | "pending")).then_some(Task::Ended(id))
            }
            _ => None,
        }
    })
}

/// Id under which the transcript keeps this line. Subagents have transcripts of their own.
pub(crate) fn checkpoint(line: &[u8]) -> Option<String> {
    checkpoint_at_end(line).unwrap_or_else(|| parsed_checkpoint(line))
}

/// As [`parsed_checkpoint`], for a line in the order of the CLI: its type first, what counts last. `None`: it is not.
fn checkpoint_at_end(line: &[u8]) -> Option<Option<String>> {
    let is_kept = line.starts_with(br#"{"type":"assistant","#) || line.starts_with(br#"{"type":"user","#);
    let (mut parent, mut id) = (None, None);
    for (name, value) in Tail::of(line) {
        match name {
            b"parent_tool_use_id" => parent = parent.or(Some(value)),
            b"uuid" => id = id.or(Some(value)),
            _ => {}
        }
    }
    let (parent, id) = (parent?, id?);
    if !is_kept || holds(line, &REPLAY) || holds(line, &SYNTHETIC) {
        return None;
    }
    let id = std::str::from_utf8(id).ok()?.strip_prefix('"')?.strip_suffix('"').filter(|id| is_plain(id))?;
    Some((parent == b"null").then(|| id.to_owned()))
}

fn parsed_checkpoint(line: &[u8]) -> Option<String> {
    with_fields(line, |fields| {
        let kept = matches!(fields.text("type")?.as_str(), "assistant" | "user")
            && !fields.has("parent_tool_use_id")
            && !fields.get("isReplay").unwrap_or(false)
            && !fields.get("isSynthetic").unwrap_or(false);
        fields.text("uuid").filter(|id| kept && is_plain(id))
    })
}

#[derive(Deserialize)]
struct StreamEvent<'a> {
    #[serde(borrow)]
    event: ApiEvent<'a>,
    parent_tool_use_id: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct ApiEvent<'a> {
    #[serde(borrow)]
    delta: Delta<'a>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    text: Cow<'a, str>,
}

static TEXT_DELTA: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new("\"text_delta\""));

/// Text of a text delta. Embedders call it for every line: a search rejects other lines, and parsing copies only the text.
pub(crate) fn text_delta(line: &[u8]) -> Option<String> {
    if let Some(delta) = TextDelta::of(line) {
        return serde_json::from_str(delta.text).ok();
    }
    parsed_text_delta(line)
}

fn parsed_text_delta(line: &[u8]) -> Option<String> {
    if !holds(line, &TEXT_DELTA) {
        return None;
    }
    let text = text(line);
    let text = replace_lone_surrogates(&text);
    let event: StreamEvent<'_> = serde_json::from_str(&text).ok()?;
    let own = event.parent_tool_use_id.is_none() && event.event.delta.r#type == "text_delta";
    own.then(|| event.event.delta.text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::claude::delta::tests::lines as delta_lines;
    use proptest::prelude::*;

    #[test]
    fn unreadable_request_gets_a_response() {
        let deep = format!(
            r#"{{"type":"control_request","request_id":"r","request":{{"subtype":"can_use_tool","tool_name":"T","input":{}{}}}}}"#,
            "[".repeat(200),
            "]".repeat(200)
        );
        let unsupported =
            |what: &str| HostRequest::Unsupported { request_id: "r".to_owned(), what: what.to_owned() };
        assert_eq!(host_request(deep.as_bytes()), Some(unsupported("can_use_tool")));
        let bare = br#"{"type":"control_request","request_id":"r"}"#;
        assert_eq!(host_request(bare), Some(unsupported("unknown")));
        assert_eq!(host_request(br#"{"type":"control_request"}"#), None);
        let long = format!(r#"{{"type":"control_request","request_id":"{}"}}"#, "r".repeat(ID_LIMIT + 1));
        assert_eq!(host_request(long.as_bytes()), None);
    }

    #[test]
    fn only_the_answer_itself_has_text_deltas() {
        let line = |parent: &str, kind: &str, text: &str| {
            format!(
                r#"{{"type":"stream_event","event":{{"type":"content_block_delta","index":0,"delta":{{"type":"{kind}","text":"{text}"}}}},"parent_tool_use_id":{parent}}}"#
            )
        };
        let delta = |parent, kind, text| text_delta(line(parent, kind, text).as_bytes());
        assert_eq!(delta("null", "text_delta", r"a\n\ud83d").as_deref(), Some("a\n\u{fffd}"));
        assert_eq!(delta("\"toolu_1\"", "text_delta", "a"), None);
        assert_eq!(delta("null", "thinking_delta", "a"), None);
        assert_eq!(text_delta(br#"{"type":"assistant","message":"\"text_delta\""}"#), None);
    }

    #[test]
    fn only_conversation_lines_are_checkpoints() {
        let with = |kind: &str, more: &str| {
            checkpoint(
                format!(r#"{{"type":"{kind}","parent_tool_use_id":null,"uuid":"u-1"{more}}}"#).as_bytes(),
            )
        };
        assert_eq!(with("assistant", "").as_deref(), Some("u-1"));
        assert_eq!(with("user", "").as_deref(), Some("u-1"));
        assert_eq!(with("user", r#","isReplay":true"#), None);
        assert_eq!(with("result", ""), None);
        assert_eq!(checkpoint(br#"{"type":"assistant","parent_tool_use_id":"toolu_1","uuid":"u-1"}"#), None);
    }

    /// Fields in any order, of which some decide. The first value of each is the usual one.
    const FIELDS: [(&str, &[&str]); 7] = [
        (
            "message",
            &[r#"{"content":"a"}"#, r#"{"uuid":"x","isReplay":true}"#, r#""\",\"uuid\":\"x\"""#, "[null]"],
        ),
        ("parent_tool_use_id", &["null", r#""toolu_1""#, "7"]),
        ("session_id", &[r#""s-1""#, "[]"]),
        ("uuid", &[r#""u-1""#, r#""u 1""#, r#""-u""#, r#""u\u0031""#, "null", "5", "{}"]),
        ("isReplay", &["true", "false", "null"]),
        ("isSynthetic", &["true", "false"]),
        ("request_id", &[r#""r""#, r#""r\n""#, "1.5"]),
    ];

    fn conversation_line() -> impl Strategy<Value = String> {
        let choices = [0.9, 0.9, 0.5, 0.9, 0.2, 0.2, 0.5]
            .map(|given| prop::option::weighted(given, any::<prop::sample::Index>()));
        let fields = choices.prop_map(|choices| {
            let chosen = FIELDS
                .iter()
                .zip(choices)
                .filter_map(|((name, values), choice)| Some(format!(r#""{name}":{}"#, choice?.get(values))));
            chosen.collect::<Vec<_>>()
        });
        let kinds = [r#""assistant""#, r#""user""#, r#""result""#, r#""us\u0065r""#];
        (
            fields.prop_flat_map(|fields| (Just(fields.clone()), Just(fields).prop_shuffle())),
            prop::sample::select(kinds.to_vec()),
            0..4,
        )
            .prop_map(|((in_order, mixed), kind, order)| {
                let mut fields = if order > 1 { in_order } else { mixed };
                fields.insert(if order > 0 { 0 } else { fields.len() }, format!(r#""type":{kind}"#));
                format!("{{{}}}", fields.join(","))
            })
    }

    #[test]
    fn tasks_begin_and_end() {
        let read = |rest: &str| task(format!(r#"{{"type":"system",{rest},"task_id":"b1"}}"#).as_bytes());
        let (began, ended) = (Some(Task::Began("b1".into())), Some(Task::Ended("b1".into())));
        assert_eq!(read(r#""subtype":"task_started""#), began);
        assert_eq!(read(r#""subtype":"task_updated","patch":{"status":"killed"}"#), ended);
        assert_eq!(read(r#""subtype":"task_notification","status":"completed""#), ended);
        assert_eq!(read(r#""subtype":"task_updated","patch":{"status":"running"}"#), None);
        assert_eq!(read(r#""subtype":"task_updated","patch":{"description":"x"}"#), None);
        assert_eq!(task(br#"{"type":"system","subtype":"task_started"}"#), None);
    }

    proptest! {
        #[test]
        fn both_ways_find_the_same_checkpoint(line in conversation_line()) {
            serde_json::from_str::<serde_json::Value>(&line).unwrap();
            prop_assert_eq!(checkpoint(line.as_bytes()), parsed_checkpoint(line.as_bytes()), "{}", line);
        }

        #[test]
        fn delta_without_parser_is_the_parsed_one(line in delta_lines()) {
            prop_assert_eq!(text_delta(&line), parsed_text_delta(&line));
        }

        #[test]
        fn any_line_is_read_without_panic(line: Vec<u8>) {
            control_response(&line);
            host_request(&line);
            cancelled_request(&line);
            task(&line);
            echo(&line);
            checkpoint(&line);
            announced_model(&line);
            text_delta(&line);
        }
    }
}
