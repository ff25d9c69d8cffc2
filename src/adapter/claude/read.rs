//! Reads the lines that matter. Tolerant: see [`super::fields`].

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;

use super::fields::{Fields, mend_surrogates, with_fields};
use crate::adapter::{ControlAnswer, HostRequest, Refusal, Task, Terminal};
use crate::model::{Failure, PermissionRequest};
use crate::model::{Usage, is_model_name};

/// Longest id of a conversation or of a task that is followed. The CLI's are UUIDs and shorter.
const SESSION_ID_LIMIT: usize = 128;

pub(super) fn terminal(line: &[u8]) -> Option<Terminal> {
    with_fields(line, |fields| {
        if fields.text("type")? != "result" {
            return None;
        }
        let subtype = fields.text("subtype").unwrap_or_default();
        Some(Terminal {
            unsolicited: fields.has("origin"),
            session_id: fields.text("session_id").filter(|id| is_plain(id)),
            text: fields.text("result").unwrap_or_default(),
            failure: failure(fields, &subtype),
            stop_reason: fields.text("stop_reason"),
            usage: fields.object("usage").map(|usage| tokens(&usage)).unwrap_or_default(),
            cumulative_cost_usd: fields.get("total_cost_usd").unwrap_or_default(),
            cost_usd: fields
                .get("model_usage_since_last_result")
                .map(|usage: BTreeMap<String, Spent>| usage.values().map(|spent| spent.cost_usd).sum()),
            // Once over its budget the process refuses every further turn.
            process_exhausted: subtype == "error_max_budget_usd",
        })
    })
}

/// What one model cost.
#[derive(Deserialize)]
struct Spent {
    #[serde(rename = "costUSD")]
    cost_usd: f64,
}

/// `success` alone says nothing: failures of the API come as a success with `is_error`.
fn failure(fields: &Fields<'_>, subtype: &str) -> Option<Failure> {
    let told: Option<bool> = fields.get("is_error");
    // Interrupted in its last milliseconds a turn is a success too, but for this and for the text, which is missing.
    let aborted = fields.text("terminal_reason").is_some_and(|reason| reason.starts_with("aborted"));
    // Versions before 2.1 say of an interrupted turn, and in no other way, that it is an error of a kind and is none.
    if !told.unwrap_or(subtype != "success") && !subtype.starts_with("error_") && !aborted {
        return None;
    }
    let told_status: Option<u16> = fields.get("api_error_status");
    let errors: Vec<String> = fields.get("errors").unwrap_or_default();
    let without_reason = || {
        errors.iter().any(|error| error.starts_with("[ede_diagnostic]"))
            || (told == Some(false) && errors.is_empty())
    };
    let interrupted = aborted || (subtype == "error_during_execution" && without_reason());
    if interrupted {
        let (kind, message) = ("interrupted".to_owned(), "the turn was interrupted".to_owned());
        return Some(Failure { kind, api_status: told_status, message, interrupted });
    }
    let message = fields.text("result").filter(|text| !text.is_empty()).unwrap_or_else(|| errors.join("; "));
    let api_status = told_status.or_else(|| message.starts_with(REPEATED_529).then_some(529));
    let kind = match subtype.strip_prefix("error_") {
        Some(kind) => kind,
        None if fields.text("stop_reason").as_deref() == Some("refusal") => "refusal",
        None if is_context_full(fields, &message) => "context_full",
        None => api_kind(api_status, &message, fields.text("api_error").as_deref()),
    };
    Some(Failure { kind: kind.to_owned(), api_status, message, interrupted })
}

/// The conversation no longer fits into the model's context: the API has refused it, or the CLI did not even ask. Version
/// 2.0 says so by the text alone.
fn is_context_full(fields: &Fields<'_>, message: &str) -> bool {
    let reason = fields.text("terminal_reason");
    let is_named = |reason: &str| CONTEXT_FULL_REASONS.contains(&reason);
    reason.as_deref().is_some_and(is_named) || message.starts_with("Prompt is too long")
}

/// The last one: the conversation is full again right after it was compacted.
const CONTEXT_FULL_REASONS: [&str; 3] = ["prompt_too_long", "blocking_limit", "rapid_refill_breaker"];

/// This one is told without its status.
const REPEATED_529: &str = "API Error: Repeated 529";

/// The words that the CLI itself uses for failures of the API. It says them in another line than the last one; the
/// status and the beginning of the text tell the same, and 2.1.332 has a word for some of them in this line too.
fn api_kind(status: Option<u16>, message: &str, word: Option<&str>) -> &'static str {
    match status {
        Some(401 | 403) => "authentication_failed",
        Some(404) => "model_not_found",
        Some(400) => "invalid_request",
        Some(413) => "request_too_large",
        Some(429) => "rate_limit",
        Some(500..) => "server_error",
        _ if message.starts_with("Not logged in") => "authentication_failed",
        _ if word == Some("max_output_tokens") => "max_output_tokens",
        // No status where there was no answer, only a part of one, or none that the API could have given.
        _ if message.starts_with("API Error: ") || message.starts_with("Request timed out") => "server_error",
        _ => "unknown",
    }
}

fn tokens(usage: &Fields<'_>) -> Usage {
    let count = |name| usage.get(name).unwrap_or_default();
    Usage {
        input_tokens: count("input_tokens"),
        output_tokens: count("output_tokens"),
        cache_creation_input_tokens: count("cache_creation_input_tokens"),
        cache_read_input_tokens: count("cache_read_input_tokens"),
    }
}

/// The id becomes an argument and a file name: nothing but what a UUID is made of.
fn is_plain(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !id.is_empty() && id.len() <= SESSION_ID_LIMIT && !id.starts_with('-') && id.bytes().all(plain)
}

/// `claude-opus-4-8[1m]`: with its window.
pub(super) fn announced_model(line: &[u8]) -> Option<String> {
    with_fields(line, |fields| fields.text("model").filter(|model| is_model_name(model)))
}

pub(super) fn control_answer(line: &[u8]) -> Option<ControlAnswer> {
    with_fields(line, |fields| {
        let response = fields.object("response")?;
        let refused = response.text("subtype").as_deref() == Some("error");
        let error = || response.text("error").unwrap_or_else(|| "refused without a reason".to_owned());
        Some(ControlAnswer { request_id: response.text("request_id")?, error: refused.then(error) })
    })
}

pub(super) fn host_request(line: &[u8]) -> Option<HostRequest> {
    with_fields(line, |fields| {
        let request_id = fields.text("request_id")?;
        let request = fields.object("request");
        let what = request.as_ref().and_then(|request| request.text("subtype"));
        if let Some(request) = request
            && what.as_deref() == Some("can_use_tool")
            && let (Some(tool_name), Some(input)) = (request.text("tool_name"), request.get("input"))
        {
            let description = request.text("description");
            return Some(HostRequest::Permission(PermissionRequest {
                request_id,
                tool_name,
                input,
                description,
            }));
        }
        // Also a request for permission that cannot be read: refused it fails one tool, unanswered it hangs the turn.
        Some(HostRequest::Unsupported { request_id, what: what.unwrap_or_else(|| "unknown".to_owned()) })
    })
}

pub(super) fn withdrawn(line: &[u8]) -> Option<String> {
    with_fields(line, |fields| fields.text("request_id"))
}

/// What a command of the CLI said is such a line as well, under an id of its own.
pub(super) fn echo(line: &[u8]) -> Option<String> {
    with_fields(line, |fields| fields.text("uuid").filter(|id| is_plain(id)))
}

/// The end of a task is told twice; once is enough, for the second has nothing to end.
pub(super) fn task(line: &[u8]) -> Option<Task> {
    with_fields(line, |fields| {
        let id = fields.text("task_id").filter(|id| id.len() <= SESSION_ID_LIMIT)?;
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

/// The CLI writes a line that it keeps under the same id. Subagents keep theirs elsewhere.
pub(super) fn checkpoint(line: &[u8]) -> Option<String> {
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

/// Asked for every line by whoever prints an answer as it comes: lines without a piece of text are told apart by a
/// search, the others are parsed without a copy of anything but the text.
pub(super) fn text_delta(line: &[u8]) -> Option<String> {
    memchr::memmem::find(line, b"\"text_delta\"")?;
    let text = String::from_utf8_lossy(line);
    let text = mend_surrogates(&text);
    let event: StreamEvent<'_> = serde_json::from_str(&text).ok()?;
    let own = event.parent_tool_use_id.is_none() && event.event.delta.r#type == "text_delta";
    own.then(|| event.event.delta.text.into_owned())
}

pub(super) fn refusal(terminal: Option<&Terminal>, stderr: &str) -> Option<Refusal> {
    let failure = terminal.and_then(|terminal| terminal.failure.as_ref());
    let said =
        |text: &str| stderr.contains(text) || failure.is_some_and(|failure| failure.message.contains(text));
    // The second is said of a transcript that is there and cannot be read.
    if said("No conversation found with session ID") || said("Failed to resume session") {
        Some(Refusal::NoConversation)
    } else if said("Session ID") && said("is already in use") {
        Some(Refusal::IdInUse)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(line: &serde_json::Value) -> Terminal {
        terminal(line.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_terminal_without_anything_is_still_one() {
        let empty = read(&json!({"type": "result"}));
        assert_eq!((empty.text.as_str(), empty.usage, empty.unsolicited), ("", Usage::default(), false));
        assert_eq!(empty.failure.map(|failure| failure.kind).as_deref(), Some("unknown"));
        let odd = json!({"type": "result", "subtype": "success", "is_error": false, "result": [], "usage": {"input_tokens": "7",
            "output_tokens": 3}, "total_cost_usd": null, "session_id": 5, "stop_reason": {}, "origin": null});
        let odd = read(&odd);
        assert_eq!((odd.failure, odd.usage.output_tokens, odd.session_id), (None, 3, None));
        assert_eq!(terminal(br#"{"type":"assistant","result":"x"}"#), None);
        assert_eq!(terminal(br#"{"type":"result","#), None);
    }

    #[test]
    fn failures_have_the_words_of_the_cli() {
        let cases = [
            (json!(401), "API Error: 401", "authentication_failed"),
            (json!(403), "x", "authentication_failed"),
            (json!(404), "x", "model_not_found"),
            (json!(413), "x", "request_too_large"),
            (json!(429), "x", "rate_limit"),
            (json!(529), "x", "server_error"),
            (json!(null), "API Error: Repeated 529 Overloaded errors", "server_error"),
            (json!(null), "Not logged in · Please run /login", "authentication_failed"),
            (json!("what"), "x", "unknown"),
        ];
        for (status, text, kind) in cases {
            let line = json!({"type": "result", "subtype": "success", "is_error": true, "api_error_status": status, "result": text});
            let failure = read(&line).failure.unwrap();
            assert_eq!((failure.kind.as_str(), failure.message.as_str()), (kind, text));
            assert!(!failure.interrupted);
        }
    }

    #[test]
    fn a_full_context_is_named_by_every_version() {
        let kind = |status: serde_json::Value, text: &str, reason: serde_json::Value| {
            let line = json!({"type": "result", "subtype": "success", "is_error": true, "api_error_status": status,
                "result": text, "terminal_reason": reason});
            read(&line).failure.unwrap().kind
        };
        let long = "Prompt is too long · the request is ~205000 tokens (limit 200000)";
        assert_eq!(kind(json!(400), long, json!("prompt_too_long")), "context_full");
        assert_eq!(kind(json!(null), "Prompt is too long", json!(null)), "context_full", "2.0.76");
        for reason in CONTEXT_FULL_REASONS {
            assert_eq!(kind(json!(null), "in other words", json!(reason)), "context_full", "{reason}");
        }
        assert_eq!(
            kind(json!(413), "Request too large (max 32MB).", json!("image_error")),
            "request_too_large"
        );
        assert_eq!(kind(json!(400), "API Error: 400", json!("completed")), "invalid_request");
    }

    #[test]
    fn an_interrupt_is_told_by_what_is_missing_too() {
        let with = |is_error: bool, errors: &[&str], reason: serde_json::Value| {
            let line = json!({"type": "result", "subtype": "error_during_execution", "is_error": is_error,
                "errors": errors, "terminal_reason": reason});
            read(&line).failure.unwrap().interrupted
        };
        assert!(with(true, &["[ede_diagnostic] result_type=user"], json!("aborted_streaming")));
        assert!(with(true, &[], json!("aborted_tools")));
        assert!(with(false, &[], json!(null)), "2.0");
        let late = json!({"type": "result", "subtype": "success", "is_error": false, "result": "",
            "terminal_reason": "aborted_streaming"});
        assert!(read(&late).failure.is_some_and(|failure| failure.interrupted));
        assert!(!with(true, &["Path \"/x\" does not exist"], json!(null)));
    }

    #[test]
    fn a_hostile_session_id_is_not_followed() {
        for id in ["../../etc", "--dangerous", "", "a b", &"x".repeat(200)] {
            assert_eq!(read(&json!({"type": "result", "session_id": id})).session_id, None);
        }
    }

    #[test]
    fn a_request_that_cannot_be_read_is_still_answered() {
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
    fn only_lines_of_the_conversation_are_checkpoints() {
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

    #[test]
    fn refusals_are_told_apart() {
        assert_eq!(
            refusal(None, "No conversation found with session ID: x\n"),
            Some(Refusal::NoConversation)
        );
        let unreadable = "Failed to resume session: EISDIR: illegal operation on a directory, read";
        assert_eq!(refusal(None, unreadable), Some(Refusal::NoConversation));
        assert_eq!(refusal(None, "Error: Session ID x is already in use."), Some(Refusal::IdInUse));
        assert_eq!(refusal(None, "Error: Invalid session ID. Must be a valid UUID."), None);
        let line = json!({"type": "result", "subtype": "error_during_execution", "is_error": true,
            "errors": ["No conversation found with session ID: x"]});
        assert_eq!(refusal(Some(&read(&line)), ""), Some(Refusal::NoConversation));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(line: Vec<u8>) {
            terminal(&line);
            control_answer(&line);
            host_request(&line);
            withdrawn(&line);
            task(&line);
            echo(&line);
            checkpoint(&line);
            announced_model(&line);
            text_delta(&line);
        }
    }
}
