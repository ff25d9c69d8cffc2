//! Messages into the running turn. Pure.
//!
//! The CLI (2.1.197, 2.1.332) reads such a message when the tools of the model's last message have ended, as text beside their
//! results. It gets no `result` of its own. One that comes later waits, and begins a turn of its own as soon as the
//! running one has ended, without a pause in which it could be withdrawn.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::json;

use super::control::{line, request_with, response};
use crate::adapter::ToolEdge;

/// Prefix of a text that the CLI would take for a command, also behind white space: it executes that one after the turn.
const NO_COMMAND: &str = "Note: ";

/// A message for the running turn, under this id.
pub(crate) fn steering_message(text: &str, id: &str) -> Vec<u8> {
    let message = json!({"role": "user", "content": plain(text)});
    line(&json!({"type": "user", "uuid": id, "priority": "next", "message": message}))
}

/// The same as the journal keeps it. The transcript has it under another id.
pub(crate) fn steering_record(text: &str) -> Vec<u8> {
    line(&json!({"type": "user", "message": {"role": "user", "content": plain(text)}}))
}

/// A text that is no command in any setting.
fn plain(text: &str) -> Cow<'_, str> {
    // White space as JavaScript removes it.
    let begin = text.trim_start_matches(|first: char| first.is_whitespace() || first == '\u{feff}');
    if begin.starts_with('/') { Cow::Owned(format!("{NO_COMMAND}{begin}")) } else { Cow::Borrowed(text) }
}

/// Control request that takes back a message that the CLI has not begun to read.
pub(crate) fn withdraw_message(request_id: &str, id: &str) -> Vec<u8> {
    let request = json!({"subtype": "cancel_async_message", "message_uuid": id});
    request_with(request_id, &request)
}

#[derive(Deserialize)]
struct Withdrawn {
    cancelled: Option<bool>,
}

/// Whether the response to [`withdraw_message`] says that the message was taken back.
pub(crate) fn was_withdrawn(line: &[u8]) -> bool {
    response::<Withdrawn>(line).and_then(|response| response.cancelled) == Some(true)
}

/// What a line of the conversation itself (a checkpoint) says about tools. A line in another order of fields says nothing:
/// a message then waits for the next tool.
pub(crate) fn tool_edge(line: &[u8]) -> Option<ToolEdge> {
    let holds = |what: &[u8]| memchr::memmem::find(line, what).is_some();
    // Text cannot imitate a field: its quotes are escaped.
    if line.starts_with(br#"{"type":"assistant","#) {
        let calls = holds(br#""type":"tool_use""#);
        return Some(if calls { ToolEdge::Call } else { ToolEdge::Text });
    }
    let is_result = line.starts_with(br#"{"type":"user","#) && holds(br#""type":"tool_result""#);
    is_result.then_some(ToolEdge::Result)
}

#[cfg(test)]
mod tests {
    use super::super::control::tests::parse;
    use super::*;

    #[test]
    fn message_is_no_command() {
        for (text, sent) in [
            ("hurry", "hurry"),
            ("/clear", "Note: /clear"),
            (" \n/clear", "Note: /clear"),
            ("\u{feff}\u{a0}/clear", "Note: /clear"),
            ("a /clear", "a /clear"),
            ("two\nlines", "two\nlines"),
        ] {
            let message = parse(&steering_message(text, "u-1"));
            assert_eq!((&message["message"]["content"], &message["uuid"]), (&json!(sent), &json!("u-1")));
            assert_ne!(message["priority"], "later", "it would not be read in the turn");
            assert_eq!(parse(&steering_record(text))["message"]["content"], sent);
        }
    }

    #[test]
    fn withdrawal_is_read() {
        let response = |body: serde_json::Value| json!({"type": "control_response", "response": {"subtype": "success", "request_id": "r", "response": body}});
        assert!(was_withdrawn(response(json!({"cancelled": true})).to_string().as_bytes()));
        for body in [json!({"cancelled": false}), json!({}), json!(null)] {
            assert!(!was_withdrawn(response(body).to_string().as_bytes()));
        }
        let request = parse(&withdraw_message("r", "u-1"));
        assert_eq!(request["request"], json!({"subtype": "cancel_async_message", "message_uuid": "u-1"}));
    }

    #[test]
    fn tools_of_the_conversation_are_seen() {
        let assistant = |block: &str| format!(r#"{{"type":"assistant","message":{{"content":[{block}]}}}}"#);
        let of = |line: String| tool_edge(line.as_bytes());
        assert_eq!(of(assistant(r#"{"type":"tool_use","id":"t"}"#)), Some(ToolEdge::Call));
        assert_eq!(of(assistant(r#"{"type":"text","text":"\"type\":\"tool_use\""}"#)), Some(ToolEdge::Text));
        assert_eq!(of(assistant(r#"{"type":"server_tool_use","id":"t"}"#)), Some(ToolEdge::Text));
        let user = |block: &str| format!(r#"{{"type":"user","message":{{"content":[{block}]}}}}"#);
        let result = r#"{"tool_use_id":"t","type":"tool_result","content":"\"type\":\"tool_use\""}"#;
        assert_eq!(of(user(result)), Some(ToolEdge::Result));
        assert_eq!(of(user(r#"{"type":"text","text":"[Request interrupted by user]"}"#)), None);
    }
}
