//! Kind of an output line, from its first bytes.
//!
//! The CLI writes `type` first and `subtype` second: some twenty bytes suffice for nearly every line. Any other order is
//! parsed, with the same result but slower. The line is not validated.

use std::sync::LazyLock;

use memchr::memchr2;
use memchr::memmem::Finder;

use super::fields::with_fields;
use super::tail::Tail;
use crate::adapter::{LineKind, Notice};

/// Beginning of most lines of a turn.
const STREAM_EVENT: &[u8] = br#"{"type":"stream_event","#;
const BLOCK_DELTA: &[u8] = br#"{"type":"stream_event","event":{"type":"content_block_delta","#;

const MINOR: LineKind = LineKind::Message { substantial: false, checkpoint: false };
const SUBSTANTIAL: LineKind = LineKind::Message { substantial: true, checkpoint: false };

/// Whether this is the most frequent kind of line, of a model's answer: [`classify`] without a look at anything else.
pub(crate) fn is_streamed(line: &[u8]) -> bool {
    line.starts_with(STREAM_EVENT) && line.ends_with(b"}")
}

/// Whether this is a piece of a block of the model's answer, in the usual order of fields: no message begins or ends with it.
pub(crate) fn is_block_delta(line: &[u8]) -> bool {
    line.starts_with(BLOCK_DELTA) && line.ends_with(b"}")
}

pub(crate) fn classify(line: &[u8]) -> LineKind {
    let line = line.trim_ascii();
    if !line.ends_with(b"}") {
        return LineKind::Malformed;
    }
    if line.starts_with(STREAM_EVENT) {
        return SUBSTANTIAL;
    }
    let Some(rest) = line.strip_prefix(b"{") else { return LineKind::Malformed };
    match member(rest, b"type") {
        Some((b"system", rest)) => match rest.strip_prefix(b",").and_then(|rest| member(rest, b"subtype")) {
            Some((subtype, rest)) => system(subtype, || {
                let state = rest.strip_prefix(b",").and_then(|rest| member(rest, b"state"));
                state.map(|(state, _)| state.to_vec()).or_else(|| slowly(line, "state"))
            }),
            None => slow(line),
        },
        Some((kind, _)) => typed(kind, line),
        None => slow(line),
    }
}

/// The kind by the field `type`, except for `system`.
fn typed(kind: &[u8], line: &[u8]) -> LineKind {
    match kind {
        b"stream_event" => SUBSTANTIAL,
        b"assistant" => LineKind::Message { substantial: true, checkpoint: has(line, &PARENT, b"null") },
        b"user" => user(line),
        b"result" => LineKind::Terminal,
        b"control_response" => LineKind::ControlResponse,
        b"control_request" => LineKind::HostRequest,
        b"control_cancel_request" => LineKind::Cancelled,
        b"transcript_mirror" => LineKind::Mirror,
        b"tool_progress" | b"tool_use_summary" => SUBSTANTIAL,
        // `rate_limit_event`, `keep_alive` and types of later versions.
        _ => MINOR,
    }
}

/// The transcript keeps tool results and notes of interrupts, but no echoes of the host's messages.
fn user(line: &[u8]) -> LineKind {
    if has(line, &REPLAY, b"true") {
        return LineKind::Echo;
    }
    let own = has(line, &PARENT, b"null") && !has(line, &SYNTHETIC, b"true");
    LineKind::Message { substantial: true, checkpoint: own }
}

fn system(subtype: &[u8], state: impl FnOnce() -> Option<Vec<u8>>) -> LineKind {
    match subtype {
        // Messages before the model answers: announcements, and requests that the API has not accepted.
        b"init" => LineKind::Announcement,
        b"status" | b"api_retry" => MINOR,
        b"session_state_changed" => match state().as_deref() {
            Some(b"idle") => LineKind::Waiting,
            // A turn that waits for permission is running.
            Some(b"running" | b"requires_action") => LineKind::Working,
            _ => MINOR,
        },
        b"session_writes_lost" => LineKind::Notice(Notice::WritesLost),
        b"worker_shutting_down" => LineKind::Notice(Notice::ShuttingDown),
        b"turn_preempted" => LineKind::Notice(Notice::TurnPreempted),
        b"late_allow_not_run" => LineKind::Notice(Notice::LateAllow),
        b"control_request_progress" => LineKind::Notice(Notice::RequestProgress),
        b"task_started" | b"task_updated" | b"task_notification" => LineKind::Task,
        _ => SUBSTANTIAL,
    }
}

/// Whether a mirrored line is of a conversation's own transcript. Those of subagents have other names.
pub(crate) fn mirrors_conversation(line: &[u8]) -> bool {
    let file = line.trim_ascii().strip_prefix(b"{").and_then(|rest| {
        let (_, rest) = member(rest, b"type")?;
        Some(member(rest.strip_prefix(b",")?, b"filePath")?.0)
    });
    match file {
        Some(file) => is_conversation(file),
        // Escapes, or another order of fields.
        None => slowly(line, "filePath").is_some_and(|file| is_conversation(&file)),
    }
}

fn is_conversation(file: &[u8]) -> bool {
    let name = file.rsplit(|byte| *byte == b'/').next().and_then(|name| name.strip_suffix(b".jsonl"));
    name.is_some_and(|name| uuid::Uuid::try_parse_ascii(name).is_ok())
}

/// The kind of a line with another order of fields, or with escapes.
fn slow(line: &[u8]) -> LineKind {
    match slowly(line, "type") {
        Some(kind) if kind == b"system" => {
            system(&slowly(line, "subtype").unwrap_or_default(), || slowly(line, "state"))
        }
        Some(kind) => typed(&kind, line),
        None => LineKind::Malformed,
    }
}

fn slowly(line: &[u8], name: &str) -> Option<Vec<u8>> {
    with_fields(line, |fields| fields.text(name)).map(String::into_bytes)
}

/// Parses `"name":"value"` at the beginning of `rest`: the value and the bytes behind it. `None` for a value with an
/// escape.
fn member<'a>(rest: &'a [u8], name: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let rest = rest.trim_ascii_start().strip_prefix(b"\"")?.strip_prefix(name)?.strip_prefix(b"\"")?;
    let rest = rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
    let end = memchr2(b'"', b'\\', rest)?;
    match rest.split_at_checked(end)? {
        (value, [b'"', rest @ ..]) => Some((value, rest.trim_ascii_start())),
        _ => None,
    }
}

/// Fields whose name is searched for. Built once: building a search takes longer than most searches.
type Field = LazyLock<Finder<'static>>;
static PARENT: Field = LazyLock::new(|| Finder::new(r#""parent_tool_use_id""#));
pub(super) static REPLAY: Field = LazyLock::new(|| Finder::new(r#""isReplay""#));
pub(super) static SYNTHETIC: Field = LazyLock::new(|| Finder::new(r#""isSynthetic""#));

pub(super) fn holds(line: &[u8], field: &Field) -> bool {
    field.find(line).is_some()
}

/// Whether the last field of this name, at any depth, has this value. Text cannot imitate a field: its quotes are escaped.
fn has(line: &[u8], field: &Field, value: &[u8]) -> bool {
    let name = field.needle();
    let at_end = std::str::from_utf8(name).ok().and_then(|name| Tail::find(line, name.trim_matches('"')));
    if let Some(found) = at_end {
        return found.starts_with(value);
    }
    // Searches forwards, although the fields are at the end: only this direction is vectorised.
    let fields = field.find_iter(line).filter_map(|at| {
        let after = line.get(at + name.len()..)?.trim_ascii_start().strip_prefix(b":")?;
        Some(after.trim_ascii_start())
    });
    fields.last().is_some_and(|field| field.starts_with(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_classified_in_any_spelling() {
        let kept = LineKind::Message { substantial: true, checkpoint: true };
        let cases = [
            (r#"{"type":"stream_event","event":{}}"#, SUBSTANTIAL),
            (r#"{"type":"assistant","message":{},"parent_tool_use_id":null}"#, kept),
            (r#"{"type":"assistant","message":{},"parent_tool_use_id": null }"#, kept),
            (r#"{"type":"assistant","message":{},"parent_tool_use_id":"toolu_1"}"#, SUBSTANTIAL),
            (r#"{"type":"assistant","message":"\"parent_tool_use_id\":null"}"#, SUBSTANTIAL),
            (r#"{"type":"user","message":{},"parent_tool_use_id":null}"#, kept),
            (r#"{"type":"user","message":{},"parent_tool_use_id":null,"isReplay":true}"#, LineKind::Echo),
            (r#"{"type":"user","message":{},"parent_tool_use_id":null,"isSynthetic":true}"#, SUBSTANTIAL),
            (r#"{"type":"result","subtype":"success"}"#, LineKind::Terminal),
            (r#"{"type":"transcript_mirror","filePath":"/a/b.jsonl","entries":[]}"#, LineKind::Mirror),
            (r#"{"entries":[],"type":"transcript_mirror"}"#, LineKind::Mirror),
            (
                r#"{"type":"system","subtype":"session_writes_lost","error_code":"ENOSPC","lost":["transcript"]}"#,
                LineKind::Notice(Notice::WritesLost),
            ),
            (
                r#"{"type":"system","subtype":"worker_shutting_down","reason":"host_exit","session_id":"s"}"#,
                LineKind::Notice(Notice::ShuttingDown),
            ),
            (
                r#"{"type":"system","subtype":"turn_preempted","reason":"rapid_followup"}"#,
                LineKind::Notice(Notice::TurnPreempted),
            ),
            (
                r#"{"type":"system","subtype":"late_allow_not_run","request_id":"r","reason":"expired"}"#,
                LineKind::Notice(Notice::LateAllow),
            ),
            (
                r#"{"type":"system","subtype":"control_request_progress","request_id":"r","status":"started"}"#,
                LineKind::Notice(Notice::RequestProgress),
            ),
            (r#"{"type":"control_response","response":{}}"#, LineKind::ControlResponse),
            (r#"{"type":"control_request","request_id":"1"}"#, LineKind::HostRequest),
            (r#"{"type":"control_cancel_request","request_id":"1"}"#, LineKind::Cancelled),
            (r#"{"type":"rate_limit_event"}"#, MINOR),
            (r#"{"type":"something_new"}"#, MINOR),
            (r#"{"type":""}"#, MINOR),
            (r#"{"type":"system","subtype":"init","cwd":"/"}"#, LineKind::Announcement),
            (r#"{"type":"system","subtype":"status","status":"requesting"}"#, MINOR),
            (r#"{"type":"system","subtype":"thinking_tokens"}"#, SUBSTANTIAL),
            (r#"{"type":"system","subtype":"task_started","task_id":"a"}"#, LineKind::Task),
            (r#"{"type":"system","subtype":"task_notification"}"#, LineKind::Task),
            (r#"{"type":"system","subtype":"session_state_changed","state":"running"}"#, LineKind::Working),
            (
                r#"{"type":"system","subtype":"session_state_changed","state":"requires_action"}"#,
                LineKind::Working,
            ),
            (r#"{"type":"system","subtype":"session_state_changed","state":"idle"}"#, LineKind::Waiting),
            (
                r#"{"type":"system","subtype":"session_state_changed","uuid":"u","state":"idle"}"#,
                LineKind::Waiting,
            ),
            (r#"{"type":"system","subtype":"session_state_changed","state":"zzz"}"#, MINOR),
            (r#"{"state":"idle","subtype":"session_state_changed","type":"system"}"#, LineKind::Waiting),
            (r#"{"type":"system","state":"idle","subtype":"session_state_changed"}"#, LineKind::Waiting),
            (r#"{"type":"system"}"#, SUBSTANTIAL),
            (r#" { "type" : "result" , "subtype" : "success" } "#, LineKind::Terminal),
            (r#"{"subtype":"success","type":"result"}"#, LineKind::Terminal),
            (r#"{"typ\u0065":"resul\u0074"}"#, LineKind::Terminal),
            (r#"{"message":{"type":"result"},"type":"assistant"}"#, SUBSTANTIAL),
            (r#"{"type":7}"#, LineKind::Malformed),
            (r#"{"type":"result""#, LineKind::Malformed),
            (r#"{"type":"#, LineKind::Malformed),
            (r#"{"message":{}}"#, LineKind::Malformed),
            ("{}", LineKind::Malformed),
            ("{", LineKind::Malformed),
            ("}", LineKind::Malformed),
            ("", LineKind::Malformed),
            ("null", LineKind::Malformed),
            (r#"[{"type":"result"}]"#, LineKind::Malformed),
            ("Segmentation fault {core dumped}", LineKind::Malformed),
            (r#"{not json, "type":"result"}"#, LineKind::Malformed),
        ];
        for (line, expected) in cases {
            assert_eq!(classify(line.as_bytes()), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn streamed_line_is_substantial(rest in r#"[\{\}":,\\a-z]{0,30}"#) {
            let line = format!(r#"{{"type":"stream_event",{rest}}}"#);
            prop_assert!(is_streamed(line.as_bytes()));
            prop_assert_eq!(classify(line.as_bytes()), SUBSTANTIAL);
        }

        #[test]
        fn kind_ignores_outer_white_space(line: Vec<u8>, inner in r#"[\{\}":,\\a-z]{0,60}"#) {
            classify(&line);
            let text = format!("{{{inner}}}");
            prop_assert_eq!(classify(text.as_bytes()), classify(format!("  {text}\t").as_bytes()));
        }
    }
}
