//! One line of the audit log, as JSON. Pure.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::model::ids::{SessionKey, UserId};
use crate::workspace::user_digest;

pub(super) struct Line {
    pub(super) at: SystemTime,
    pub(super) took: Duration,
    pub(super) request_id: String,
    pub(super) caller: Option<String>,
    pub(super) role: &'static str,
    pub(super) verb: &'static str,
    pub(super) user: Option<UserId>,
    pub(super) session: Option<String>,
    pub(super) status: Option<u16>,
    pub(super) code: Option<&'static str>,
    pub(super) end: Option<&'static str>,
}

#[derive(Serialize)]
struct Shown<'a> {
    time: String,
    verb: &'a str,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    role: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    took_ms: u128,
    request_id: &'a str,
}

impl Line {
    /// Appends the line. Digests are computed here, beside the requests.
    pub(super) fn render(self, to: &mut Vec<u8>) {
        let outcome = self.end.or(self.code).unwrap_or(match self.status {
            Some(100..400) => "ok",
            Some(400..500) => "refused",
            Some(_) => "failed",
            // Its connection ended first.
            None => "client_gone",
        });
        let user = self.user.as_ref().map(user_digest);
        let key = self.user.zip(self.session).and_then(|(user, name)| SessionKey::new(user, &name).ok());
        let shown = Shown {
            time: humantime::format_rfc3339_millis(self.at).to_string(),
            verb: self.verb,
            outcome,
            caller: self.caller.as_deref(),
            role: self.role,
            user,
            session: key.map(|key| key.hash().to_string()),
            status: self.status,
            took_ms: self.took.as_millis(),
            request_id: &self.request_id,
        };
        let begin = to.len();
        if serde_json::to_writer(&mut *to, &shown).is_ok() {
            to.push(b'\n');
        } else {
            // A vector takes every write, and no field is without a form in JSON.
            to.truncate(begin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            took: Duration::from_millis(7),
            request_id: "r\"1".to_owned(),
            caller: Some("k1".to_owned()),
            role: "service",
            verb: "turn",
            user: UserId::new("alice@example.org").ok(),
            session: Some("my diary".to_owned()),
            status: Some(200),
            code: None,
            end: None,
        }
    }

    fn rendered(line: Line) -> serde_json::Value {
        let mut text = Vec::new();
        line.render(&mut text);
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(text.last(), Some(&b'\n'));
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn users_and_sessions_are_digests() {
        let shown = rendered(line());
        let text = shown.to_string();
        assert!(!text.contains("alice") && !text.contains("diary"), "{text}");
        assert_eq!(shown["time"], "1970-01-01T00:00:01.500Z");
        assert_eq!(shown["user"], user_digest(&UserId::new("alice@example.org").unwrap()));
        let key = SessionKey::new(UserId::new("alice@example.org").unwrap(), "my diary").unwrap();
        assert_eq!(shown["session"], key.hash().to_string());
        assert_eq!((&shown["caller"], &shown["role"]), (&"k1".into(), &"service".into()));
    }

    #[test]
    fn outcome_is_the_latest_that_is_known() {
        let outcome = |line| rendered(line)["outcome"].clone();
        assert_eq!(outcome(line()), "ok");
        assert_eq!(outcome(Line { end: Some("session_lost"), ..line() }), "session_lost");
        assert_eq!(outcome(Line { status: Some(403), code: Some("admin_only"), ..line() }), "admin_only");
        assert_eq!(outcome(Line { status: Some(409), ..line() }), "refused");
        assert_eq!(outcome(Line { status: Some(500), ..line() }), "failed");
        assert_eq!(outcome(Line { status: None, user: None, ..line() }), "client_gone");
    }
}
