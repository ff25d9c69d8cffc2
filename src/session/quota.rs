//! The limits of each session's files (`limits.workspace_bytes`, `limits.workspace_files`), by counting: at intervals, at
//! the end of each turn and before each start. A session above a limit loses its child and gets no other until it is
//! below.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::lifecycle::Plan;
use super::message::SessionMessage;
use super::registry::Entry;
use super::sessions::Sessions;
use crate::child::KillReason;
use crate::error::TurnError;
use crate::support::blocking::blocking_long;
use crate::workspace::UsageLimits;

/// Pause between two counts of all sessions with a child.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Least pause as a multiple of the last count: counting takes at most a tenth of one disk queue.
const REST: u32 = 9;
/// Counts at the same time at the ends of turns.
pub(super) const COUNTS: usize = 2;

/// Counts the files of all sessions with a child at intervals, until the task is dropped.
pub(crate) async fn watch(sessions: Arc<Sessions>) {
    let Some(limits) = UsageLimits::of(&sessions.env.config.limits) else { return };
    let mut pause = LOOK_EVERY;
    loop {
        tokio::time::sleep(pause).await;
        let begun = Instant::now();
        for entry in sessions.registry.entries() {
            look(entry, limits).await;
        }
        pause = LOOK_EVERY.max(begun.elapsed() * REST);
    }
}

/// Counts the files of a session soon, because a turn has ended.
pub(super) fn look_soon(sessions: &Arc<Sessions>, entry: &Arc<Entry>) {
    let Some(limits) = UsageLimits::of(&sessions.env.config.limits) else { return };
    if entry.counting.swap(true, Ordering::AcqRel) {
        return;
    }
    let (sessions, entry) = (sessions.clone(), entry.clone());
    let env = sessions.env.clone();
    env.spawn_until_end(async move {
        // The semaphore is never closed.
        let _turn = sessions.counts.acquire().await;
        // From now on a turn may end after what is counted.
        entry.counting.store(false, Ordering::Release);
        look(entry, limits).await;
    });
}

/// Counts the files of a session with a child; has the child ended if they exceed a limit.
async fn look(entry: Arc<Entry>, limits: UsageLimits) {
    let Some(shim) = entry.status.read(|visible| visible.shim) else { return };
    let workspace = entry.workspace.clone();
    match blocking_long(move || workspace.excess(limits)).await {
        Ok(None) => {}
        Ok(Some(excess)) => {
            let (limit, what) = (excess.limit, excess.what);
            tracing::warn!(session = %entry.hash, limit, what, "the files of a session exceed a limit: its child is ended");
            let reason = KillReason::WorkspaceLimit { limit, what };
            drop(entry.actor.cast(SessionMessage::Outgrown { shim, reason }));
        }
        Err(error) => {
            tracing::warn!(session = %entry.hash, %error, "the files of a session cannot be counted")
        }
    }
}

/// Refuses a start above a limit.
pub(super) async fn check(plan: &Plan) -> Result<(), TurnError> {
    let Some(limits) = UsageLimits::of(&plan.env().config.limits) else { return Ok(()) };
    let workspace = plan.workspace.clone();
    match blocking_long(move || workspace.excess(limits)).await {
        Ok(None) => Ok(()),
        Ok(Some(excess)) => {
            Err(TurnError::WorkspaceLimit { limit: excess.limit, what: excess.what, in_turn: false })
        }
        Err(error) => Err(TurnError::Storage(error.into())),
    }
}
