//! What a webhook says: ids, outcome, cost. Never a text of a conversation. Pure.

use std::time::SystemTime;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::config::WebhookEvent;
use crate::model::Usage;
use crate::model::ids::UserId;
use crate::server::api::sessions::encode;
use crate::server::percent;
use crate::server::turns::control::status_of;

/// A message to all endpoints that want its event.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// Stays the same over all attempts, so that the receiver can drop repetitions.
    pub(super) id: String,
    pub(super) event: WebhookEvent,
    pub(super) body: Bytes,
}

/// The end of a turn whose caller is not attached any more.
#[derive(Debug)]
pub(crate) struct EndedTurn<'a> {
    /// Id of an asynchronous turn; a detached one has none.
    pub(crate) id: Option<&'a str>,
    pub(crate) user: &'a UserId,
    pub(crate) session: &'a str,
    pub(crate) error: Option<&'static str>,
    pub(crate) spent: Option<(Usage, f64)>,
}

impl Message {
    pub(super) fn of_turn(turn: &EndedTurn<'_>, now: SystemTime) -> Self {
        let url = match turn.id {
            Some(id) => format!("/v1/turns/{id}"),
            None => format!("/v1/sessions/{}/events", segment(turn.session)),
        };
        let data = json!({
            "turn_id": turn.id,
            "session_id": turn.session,
            "user": encode(turn.user),
            "status": status_of(turn.error),
            "error_code": turn.error,
            "cost_usd": turn.spent.map(|(_, cost)| cost),
            "usage": turn.spent.map(|(usage, _)| usage),
            "url": url,
        });
        Self::new(WebhookEvent::TurnEnded, "turn_ended", data, now)
    }

    pub(super) fn of_permission(
        (user, session): (&UserId, &str),
        (request_id, tool): (&str, &str),
        now: SystemTime,
    ) -> Self {
        let data = json!({
            "session_id": session,
            "user": encode(user),
            "request_id": request_id,
            "tool_name": tool,
            "url": format!("/v1/sessions/{}/permissions", segment(session)),
        });
        Self::new(WebhookEvent::PermissionNeeded, "permission_needed", data, now)
    }

    fn new(event: WebhookEvent, kind: &str, data: Value, now: SystemTime) -> Self {
        let timestamp = humantime::format_rfc3339_millis(now).to_string();
        let body = json!({ "type": kind, "timestamp": timestamp, "data": data }).to_string();
        Self { id: format!("msg_{}", uuid::Uuid::new_v4().simple()), event, body: body.into() }
    }
}

/// A session's name as a segment of a path.
fn segment(name: &str) -> String {
    percent::encode(name.as_bytes(), |byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn message_has_ids_and_a_place_and_no_text() {
        let user = UserId::new("a/b").unwrap();
        let turn = EndedTurn {
            id: None,
            user: &user,
            session: "x y",
            error: Some("session_lost"),
            spent: Some((Usage::default(), 0.5)),
        };
        let message = Message::of_turn(&turn, UNIX_EPOCH + Duration::from_secs(1));
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(
            (&body["type"], &body["timestamp"]),
            (&json!("turn_ended"), &json!("1970-01-01T00:00:01.000Z"))
        );
        assert_eq!(body["data"]["url"], "/v1/sessions/x%20y/events");
        assert_eq!((&body["data"]["user"], &body["data"]["cost_usd"]), (&json!("a%2Fb"), &json!(0.5)));
        assert!(message.id.starts_with("msg_"));
        let message = Message::of_permission((&user, "s"), ("r", "Bash"), UNIX_EPOCH);
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(body["data"]["url"], "/v1/sessions/s/permissions");
        assert_eq!(message.event, WebhookEvent::PermissionNeeded);
    }
}
