//! Turns for tests that need no process.

use bytes::Bytes;
use tokio::time::Instant;

use super::Job;
use crate::model::ids::{SessionHash, TurnId};
use crate::telemetry::metrics::FirstOutput;
use crate::turn::{Turn, TurnTrace, turn_channel};

/// A turn for a child, and its reader.
pub(crate) fn job(turn: u64) -> (Box<Job>, Turn) {
    let (sender, reader) = turn_channel(TurnId(turn), 8, 1000, std::sync::Arc::new(|| ()), Box::new(|_| ()));
    let now = Instant::now();
    let session = SessionHash::parse(&"0".repeat(32)).unwrap();
    let job = Job {
        turn: TurnId(turn),
        sender: Some(sender),
        line: Bytes::from(format!("{{\"type\":\"user\",\"message\":{turn}}}\n")),
        earlier: None,
        hold: None,
        accepted: now,
        start: FirstOutput::Warm,
        retries: 0,
        context_lost: false,
        results: [].into(),
        trace: TurnTrace::begin(&session, TurnId(turn), true, now),
    };
    (Box::new(job), reader)
}

/// Lines of the CLI.
pub(crate) mod line {
    pub(crate) const GREETING: &str =
        r#"{"type":"control_response","response":{"subtype":"success","request_id":"handshake"}}"#;
    pub(crate) const INIT: &str = r#"{"type":"system","subtype":"init","model":"claude-opus-4-8"}"#;
    pub(crate) const DELTA: &str =
        r#"{"type":"stream_event","event":{"type":"content_block_delta","index":0}}"#;
    pub(crate) const RESULT: &str =
        r#"{"type":"result","subtype":"success","is_error":false,"result":"hi","total_cost_usd":0.5}"#;
    /// The end of a turn of the CLI's own.
    pub(crate) const OWN_RESULT: &str =
        r#"{"type":"result","subtype":"success","is_error":false,"origin":"task","total_cost_usd":0.75}"#;
    pub(crate) const WORKING: &str =
        r#"{"type":"system","subtype":"session_state_changed","state":"running"}"#;
    pub(crate) const WAITING: &str = r#"{"type":"system","subtype":"session_state_changed","state":"idle"}"#;

    pub(crate) fn permission(id: &str) -> String {
        format!(
            r#"{{"type":"control_request","request_id":"{id}","request":{{"subtype":"can_use_tool","tool_name":"Bash","input":{{}}}}}}"#
        )
    }

    pub(crate) fn elicitation(id: &str) -> String {
        format!(
            r#"{{"type":"control_request","request_id":"{id}","request":{{"subtype":"elicitation","mcp_server_name":"m","message":"Who?","requested_schema":{{}}}}}}"#
        )
    }

    pub(crate) fn withdrawal(id: &str) -> String {
        format!(r#"{{"type":"control_cancel_request","request_id":"{id}"}}"#)
    }

    pub(crate) fn task_started(id: &str) -> String {
        format!(r#"{{"type":"system","subtype":"task_started","task_id":"{id}"}}"#)
    }

    pub(crate) fn task_ended(id: &str) -> String {
        format!(r#"{{"type":"system","subtype":"task_notification","task_id":"{id}"}}"#)
    }
}
