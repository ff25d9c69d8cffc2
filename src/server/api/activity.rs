//! `GET /v1/sessions/{id}/activity`: the last turns of a session, how its last children ended, and the processes of the
//! one that runs.
//!
//! In memory only: what was before the session came into memory is not listed. The end of a child's standard error is
//! shown in full to the operator alone; its user gets it without paths, as in errors.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::child::Process;
use crate::server::api::error::{ApiError, redact};
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::{SessionName, existing, seconds};
use crate::server::app::App;
use crate::session::past::{ChildEnd, PastTurn};
use crate::system::blocking;
use crate::turn::ToolRun;

/// Maximum processes listed. A tree may have thousands; the largest matter.
const MOST_PROCESSES: usize = 200;

#[derive(Serialize)]
pub(crate) struct Activity {
    id: String,
    /// The oldest first.
    turns: Vec<TurnView>,
    /// The oldest first.
    ends: Vec<EndView>,
    /// The largest first.
    processes: Vec<ProcessView>,
    /// How many there are, listed or not.
    process_count: usize,
}

/// Durations are since the turn was accepted.
#[derive(Serialize)]
struct TurnView {
    accepted_at: f64,
    given_after_seconds: Option<f64>,
    first_after_seconds: Option<f64>,
    took_seconds: f64,
    outcome: &'static str,
    error: Option<String>,
    cost_usd: f64,
    tools: Vec<ToolView>,
    /// Further calls, which are not listed.
    tools_left_out: usize,
}

/// The call of a tool, without its input and its result.
#[derive(Serialize)]
struct ToolView {
    name: Box<str>,
    began_after_seconds: f64,
    took_seconds: Option<f64>,
    failed: bool,
}

impl From<ToolRun> for ToolView {
    fn from(run: ToolRun) -> Self {
        Self {
            name: run.name,
            began_after_seconds: run.began_after.as_secs_f64(),
            took_seconds: run.took.map(|it| it.as_secs_f64()),
            failed: run.failed,
        }
    }
}

#[derive(Serialize)]
struct EndView {
    generation: u64,
    at: f64,
    lived_seconds: Option<f64>,
    reason: &'static str,
    detail: String,
    stderr: String,
}

#[derive(Serialize)]
struct ProcessView {
    pid: i32,
    parent: i32,
    name: String,
    memory_bytes: u64,
    is_zombie: bool,
}

impl From<PastTurn> for TurnView {
    fn from(turn: PastTurn) -> Self {
        Self {
            accepted_at: seconds(turn.accepted_at),
            given_after_seconds: turn.given_after.map(|it| it.as_secs_f64()),
            first_after_seconds: turn.first_after.map(|it| it.as_secs_f64()),
            took_seconds: turn.took.as_secs_f64(),
            outcome: turn.outcome,
            error: turn.error,
            cost_usd: turn.cost_usd,
            tools: turn.tools.into_iter().map(ToolView::from).collect(),
            tools_left_out: turn.tools_left_out,
        }
    }
}

impl EndView {
    fn of(end: ChildEnd, for_operator: bool) -> Self {
        let shown = |text: String| if for_operator { text } else { redact::without(&text) };
        Self {
            generation: end.generation,
            at: seconds(end.exit.at),
            lived_seconds: end.lived.map(|it| it.as_secs_f64()),
            reason: end.exit.reason,
            detail: shown(end.exit.detail),
            stderr: shown(end.stderr),
        }
    }
}

impl From<Process> for ProcessView {
    fn from(process: Process) -> Self {
        let Process { pid, parent, name, memory_bytes, is_zombie } = process;
        Self { pid, parent, name, memory_bytes, is_zombie }
    }
}

pub(crate) async fn show(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
) -> Result<Json<Activity>, ApiError> {
    let (session, _) = existing(&app, &query.subject()?, &name).await?;
    let past = session.past();
    let for_operator = query.caller.is_admin();
    // The semaphore is never closed. A tree is read process by process.
    let _room = app.gathering.acquire().await;
    let (processes, process_count) = blocking(move || Ok(session.processes(MOST_PROCESSES))).await?;
    Ok(Json(Activity {
        id: name,
        turns: past.turns.into_iter().map(TurnView::from).collect(),
        ends: past.ends.into_iter().map(|end| EndView::of(end, for_operator)).collect(),
        processes: processes.into_iter().map(ProcessView::from).collect(),
        process_count,
    }))
}
