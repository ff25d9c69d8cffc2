//! `GET /v1/pool/stats`, in the form that existing clients read.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;

use crate::model::ids::{SessionKey, UserId};
use crate::server::api::error::ApiError;
use crate::server::api::sessions::{StatusView, seconds};
use crate::server::app::App;
use crate::server::auth::caller::Caller;
use crate::session::SessionStatus;

const SHOWN_CHARACTERS: usize = 8;

#[derive(Serialize)]
pub(crate) struct Pool {
    pool_size: usize,
    /// Seconds after which an idle child is stopped.
    max_idle_time: f64,
    /// Interval between checks of all children, in seconds. Idle ones are stopped at their deadline, not at a check.
    cleanup_interval: f64,
    active_users: Vec<Entry>,
}

/// One session. The first seven fields, in this order, are those of the service that this one replaces; durations are
/// in seconds, times in seconds since 1970.
#[derive(Serialize)]
struct Entry {
    user_id: String,
    idle_time: f64,
    uptime: f64,
    created_at: f64,
    last_used: f64,
    pid: Option<u32>,
    alive: bool,
    session: String,
    #[serde(flatten)]
    status: StatusView,
}

/// All sessions for an admin, else the caller's own.
pub(crate) async fn pool(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Pool>, ApiError> {
    let config = app.pilot.current();
    if !caller.is_admin() {
        // A request without a user is an error, not an empty list.
        caller.subject(None)?;
    }
    let sessions = app.pilot.sessions().into_iter().filter(|(key, _)| caller.sees(key.user()));
    let mut active_users: Vec<Entry> = sessions.map(|(key, status)| entry(&key, &status)).collect();
    active_users.sort_by(|a, b| a.created_at.total_cmp(&b.created_at));
    Ok(Json(Pool {
        pool_size: active_users.iter().filter(|entry| entry.alive).count(),
        max_idle_time: config.session.idle_timeout.as_secs_f64(),
        cleanup_interval: config.metrics.sample_interval.as_secs_f64(),
        active_users,
    }))
}

fn entry(key: &SessionKey, status: &SessionStatus) -> Entry {
    Entry {
        user_id: shown(key.user()),
        idle_time: status.idle.as_secs_f64(),
        uptime: status.uptime.as_secs_f64(),
        created_at: seconds(status.created),
        last_used: seconds(status.last_used),
        pid: status.pid,
        alive: status.pid.is_some(),
        session: key.conversation().to_owned(),
        status: StatusView::of(status),
    }
}

/// Abbreviated user id: enough to recognise one's own, too short to use.
fn shown(user: &UserId) -> String {
    let text = String::from_utf8_lossy(user.as_bytes());
    let mut shown: String = text.chars().take(SHOWN_CHARACTERS).collect();
    shown.push_str("...");
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_id_is_abbreviated() {
        assert_eq!(shown(&UserId::new("alice@example.org").unwrap()), "alice@ex...");
        assert_eq!(shown(&UserId::new("bob").unwrap()), "bob...");
        assert_eq!(shown(&UserId::new(b"\xffab").unwrap()), "\u{fffd}ab...");
    }
}
