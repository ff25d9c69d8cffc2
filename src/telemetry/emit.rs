//! Session events as they are reported: each method of [`Telemetry`] writes log line, metrics and event stream together.
//!
//! | event | log | metrics | stream |
//! |---|---|---|---|
//! | `started` | - | `spawn_duration{exec}` | `started` |
//! | `ready` | - | `spawns{ok}`, `spawn_duration{ready}` | `ready` |
//! | `not_started` | WARN | `spawns{failed}` | `not_started` |
//! | `exited` | WARN if unexpected | `exits` | `crashed` if unexpected |
//! | `restarted` | INFO | `restarts` | `restarted` |
//! | `circuit_opened` | WARN | `crash_loops` | `paused` |
//! | `evicted` | INFO | `evictions` | `evicted` |
//! | `expired` | INFO | `retention_deleted`, `retention_freed_bytes` | `expired` |
//! | `context_lost` | WARN | `contexts_lost` | `context_lost` |
//! | `recovered` | WARN | `conversations_recovered` | `recovered` |
//! | `own_turn` | - | - | `own_turn` |
//! | `permission_needed` | - | - | `permission_needed` |
//! | `turn_ended` | - | `turns`, `turn_duration` | `turn_ended` |
//! | `turn_refused` | - | `turns`, `turn_duration` | `refused` |

use std::time::Duration;

use super::Telemetry;
use super::events::{EventKind, Exit};
use super::metrics::{
    ContextLost, EvictionReason, ExitReason, RecoverySource, RestartCause, RetentionReason, SpawnPhase,
    SpawnReason, TurnOutcome,
};
use crate::error::{StartFailure, TurnError};
use crate::model::ids::SessionKey;

/// Maximum characters of a word of a child in an event.
const MAX_WORD: usize = 128;

impl Telemetry {
    /// The process of a child runs; `took` is the time to start it.
    pub(crate) fn started(&self, session: &SessionKey, generation: u64, took: Duration) {
        self.metrics.spawn_duration.record(SpawnPhase::Exec, took);
        self.events.record(session, EventKind::Started { generation });
    }

    /// A child accepts turns; `took` is the time since the start began.
    pub(crate) fn ready(&self, session: &SessionKey, took: Duration) {
        self.metrics.spawns.increment(SpawnReason::None);
        self.metrics.spawn_duration.record(SpawnPhase::Ready, took);
        self.events.record(session, EventKind::Ready { took });
    }

    /// A child did not become ready.
    pub(crate) fn not_started(&self, session: &SessionKey, failure: &StartFailure) {
        let reason = failure.reason();
        tracing::warn!(session = %session.hash(), reason, "the CLI did not start");
        self.metrics.spawns.increment(failure.into());
        self.events.record(session, EventKind::NotStarted { reason });
    }

    /// A child ended; `requested` by pilotlight or not.
    pub(crate) fn exited(
        &self,
        session: &SessionKey,
        generation: u64,
        reason: ExitReason,
        exit: &Exit,
        requested: bool,
    ) {
        self.metrics.exits.increment(reason);
        if !requested {
            let cause = &exit.detail;
            tracing::warn!(session = %session.hash(), generation, %cause, "the CLI ended unexpectedly");
            self.events.record(session, EventKind::Crashed(exit.clone()));
        }
    }

    /// A child is started again after the previous one failed.
    pub(crate) fn restarted(&self, session: &SessionKey, cause: RestartCause) {
        self.metrics.restarts.increment(cause);
        let cause = cause.as_str();
        tracing::info!(session = %session.hash(), cause, "the CLI is restarted");
        self.events.record(session, EventKind::Restarted { cause });
    }

    /// A session pauses after repeated failures.
    pub(crate) fn circuit_opened(&self, session: &SessionKey) {
        tracing::warn!(session = %session.hash(), "the CLI failed repeatedly; the session pauses");
        self.metrics.crash_loops.increment(1);
        self.events.record(session, EventKind::Paused);
    }

    /// A child was stopped and its session kept.
    pub(crate) fn evicted(&self, session: &SessionKey, reason: EvictionReason) {
        self.metrics.evictions.increment(reason);
        let reason = reason.as_str();
        tracing::info!(session = %session.hash(), reason, "evicted");
        self.events.record(session, EventKind::Evicted { reason });
    }

    /// A session was deleted by the retention rules; it had `bytes`.
    pub(crate) fn expired(&self, session: &SessionKey, reason: RetentionReason, bytes: u64) {
        self.metrics.retention_deleted.increment(reason);
        self.metrics.retention_freed_bytes.increment(bytes);
        let reason = reason.as_str();
        tracing::info!(session = %session.hash(), reason, bytes, "deleted by the retention rules");
        self.events.record(session, EventKind::Expired { reason, bytes });
    }

    /// A conversation lost some or all of its turns. One event per loss, however often a start finds it.
    pub(crate) fn context_lost(&self, session: &SessionKey, extent: ContextLost) {
        self.metrics.contexts_lost.increment(extent);
        let kind = extent.as_str();
        tracing::warn!(session = %session.hash(), loss = kind, "part of a conversation is lost");
        self.events.record(session, EventKind::ContextLost { kind });
    }

    /// A damaged or missing transcript was restored, with every turn.
    pub(crate) fn recovered(&self, session: &SessionKey, source: RecoverySource) {
        self.metrics.conversations_recovered.increment(source);
        let source = source.as_str();
        tracing::warn!(session = %session.hash(), source, "a conversation was restored");
        self.events.record(session, EventKind::Recovered { source });
    }

    /// The CLI ran a turn on its own.
    pub(crate) fn own_turn(&self, session: &SessionKey, cost_usd: f64) {
        self.events.record(session, EventKind::OwnTurn { cost_usd });
    }

    /// A tool waits for a permission. Id and name are what the child wrote.
    pub(crate) fn permission_needed(&self, session: &SessionKey, request_id: &str, tool_name: &str) {
        let cut = |text: &str| text.chars().take(MAX_WORD).collect::<String>();
        let (request_id, tool_name) = (cut(request_id), cut(tool_name));
        self.events.record(session, EventKind::PermissionNeeded { request_id, tool_name });
    }

    /// A turn ended, `took` after it was accepted; `error` if it has no answer.
    pub(crate) fn turn_ended(
        &self,
        session: &SessionKey,
        outcome: TurnOutcome,
        error: Option<&TurnError>,
        took: Duration,
    ) {
        match (outcome, error) {
            (TurnOutcome::Rejected, Some(error)) => self.turn_refused(Some(session), error, took),
            _ => {
                self.count_turn(outcome, took);
                self.events.record(session, EventKind::TurnEnded { outcome: outcome.as_str(), took });
            }
        }
    }

    /// A turn was refused before a child saw it. `session` is missing if its name was invalid.
    pub(crate) fn turn_refused(&self, session: Option<&SessionKey>, error: &TurnError, took: Duration) {
        self.count_turn(TurnOutcome::Rejected, took);
        if let Some(session) = session {
            self.events.record(session, EventKind::Refused { reason: error.code() });
        }
    }

    fn count_turn(&self, outcome: TurnOutcome, took: Duration) {
        self.metrics.turns.increment(outcome);
        self.metrics.turn_duration.record(outcome, took);
    }
}

#[cfg(test)]
mod tests;
