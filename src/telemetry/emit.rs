//! Session events as they are reported: `emit` writes log line, metrics and event stream together.
//!
//! | event | log | metrics | stream |
//! |---|---|---|---|
//! | [`Started`] | - | `spawn_duration{exec}` | `started` |
//! | [`Ready`] | - | `spawns{ok}`, `spawn_duration{ready}` | `ready` |
//! | [`NotStarted`] | WARN | `spawns{failed}` | `not_started` |
//! | [`Exited`] | WARN if unexpected | `exits` | `crashed` if unexpected |
//! | [`Restarted`] | INFO | `restarts` | `restarted` |
//! | [`CircuitOpened`] | WARN | `crash_loops` | `paused` |
//! | [`Evicted`] | INFO | `evictions` | `evicted` |
//! | [`ContextLoss`] | WARN | `contexts_lost` | `context_lost` |
//! | [`OwnTurn`] | - | - | `own_turn` |
//! | [`TurnEnded`] | - | `turns`, `turn_duration` | `turn_ended`, or `refused` if no child saw the turn |

use std::time::Duration;

use super::Telemetry;
use super::events::{EventKind, Exit};
use super::metrics::{
    ContextLost, EvictionReason, ExitReason, RestartCause, SpawnPhase, SpawnReason, TurnOutcome,
};
use crate::error::{StartFailure, TurnError};
use crate::model::ids::SessionKey;

/// The process of a child runs.
pub(crate) struct Started {
    pub(crate) generation: u64,
    /// Time to start the process.
    pub(crate) took: Duration,
}

impl Started {
    pub(crate) fn emit(self, telemetry: &Telemetry, session: &SessionKey) {
        telemetry.metrics.spawn_duration.record(SpawnPhase::Exec, self.took);
        telemetry.events.record(session, EventKind::Started { generation: self.generation });
    }
}

/// A child accepts turns.
pub(crate) struct Ready {
    /// Time since the start began.
    pub(crate) took: Duration,
}

impl Ready {
    pub(crate) fn emit(self, telemetry: &Telemetry, session: &SessionKey) {
        let metrics = &telemetry.metrics;
        metrics.spawns.increment(SpawnReason::None);
        metrics.spawn_duration.record(SpawnPhase::Ready, self.took);
        telemetry.events.record(session, EventKind::Ready { took: self.took });
    }
}

/// A child did not become ready.
pub(crate) struct NotStarted<'a> {
    pub(crate) failure: &'a StartFailure,
}

impl NotStarted<'_> {
    pub(crate) fn emit(self, telemetry: &Telemetry, session: &SessionKey) {
        let reason = self.failure.reason();
        tracing::warn!(session = %session.hash(), reason, "the CLI did not start");
        telemetry.metrics.spawns.increment(self.failure.into());
        telemetry.events.record(session, EventKind::NotStarted { reason });
    }
}

/// A child ended.
pub(crate) struct Exited<'a> {
    pub(crate) generation: u64,
    pub(crate) reason: ExitReason,
    pub(crate) exit: &'a Exit,
    /// Whether pilotlight had requested the end.
    pub(crate) requested: bool,
}

impl Exited<'_> {
    pub(crate) fn emit(self, telemetry: &Telemetry, session: &SessionKey) {
        telemetry.metrics.exits.increment(self.reason);
        if !self.requested {
            let (session_hash, generation, cause) = (session.hash(), self.generation, &self.exit.detail);
            tracing::warn!(session = %session_hash, generation, %cause, "the CLI ended unexpectedly");
            telemetry.events.record(session, EventKind::Crashed(self.exit.clone()));
        }
    }
}

/// A child is started again after the previous one failed.
pub(crate) struct Restarted {
    pub(crate) cause: RestartCause,
}

impl Restarted {
    pub(crate) fn emit(self, telemetry: &Telemetry, session: &SessionKey) {
        let cause = self.cause.as_str();
        tracing::info!(session = %session.hash(), cause, "the CLI is restarted");
        telemetry.metrics.restarts.increment(self.cause);
        telemetry.events.record(session, EventKind::Restarted { cause });
    }
}

/// A session pauses after repeated failures.
pub(crate) struct CircuitOpened;

impl CircuitOpened {
    pub(crate) fn emit(self, telemetry: &Telemetry, session: &SessionKey) {
        tracing::warn!(session = %session.hash(), "the CLI failed repeatedly; the session pauses");
        telemetry.metrics.crash_loops.increment(1);
        telemetry.events.record(session, EventKind::Paused);
    }
}

/// A child was stopped and its session kept.
pub(crate) struct Evicted {
    pub(crate) reason: EvictionReason,
}

impl Evicted {
    pub(crate) fn emit(self, telemetry: &Telemetry, session: &SessionKey) {
        let reason = self.reason.as_str();
        tracing::info!(session = %session.hash(), reason, "evicted");
        telemetry.metrics.evictions.increment(self.reason);
        telemetry.events.record(session, EventKind::Evicted { reason });
    }
}

/// A conversation lost some or all of its turns. One event per loss, however often a start finds it.
pub(crate) struct ContextLoss {
    pub(crate) extent: ContextLost,
}

impl ContextLoss {
    pub(crate) fn emit(self, telemetry: &Telemetry, session: &SessionKey) {
        let kind = self.extent.as_str();
        tracing::warn!(session = %session.hash(), loss = kind, "part of a conversation is lost");
        telemetry.metrics.contexts_lost.increment(self.extent);
        telemetry.events.record(session, EventKind::ContextLost { kind });
    }
}

/// The CLI ran a turn on its own.
pub(crate) struct OwnTurn {
    pub(crate) cost_usd: f64,
}

impl OwnTurn {
    pub(crate) fn emit(self, telemetry: &Telemetry, session: &SessionKey) {
        telemetry.events.record(session, EventKind::OwnTurn { cost_usd: self.cost_usd });
    }
}

/// A turn ended, or was refused.
pub(crate) struct TurnEnded<'a> {
    pub(crate) outcome: TurnOutcome,
    /// Time since the turn was accepted.
    pub(crate) took: Duration,
    /// Error of a turn without an answer.
    pub(crate) error: Option<&'a TurnError>,
}

impl<'a> TurnEnded<'a> {
    /// A turn that was refused before it reached a session.
    pub(crate) fn refused(error: &'a TurnError, took: Duration) -> Self {
        Self { outcome: TurnOutcome::Rejected, took, error: Some(error) }
    }

    /// `session` is missing if its name was invalid; then the stream has no event.
    pub(crate) fn emit(self, telemetry: &Telemetry, session: Option<&SessionKey>) {
        let Self { outcome, took, error } = self;
        telemetry.metrics.turns.increment(outcome);
        telemetry.metrics.turn_duration.record(outcome, took);
        let kind = match (outcome, error) {
            (TurnOutcome::Rejected, Some(error)) => EventKind::Refused { reason: error.code() },
            _ => EventKind::TurnEnded { outcome: outcome.as_str(), took },
        };
        if let Some(session) = session {
            telemetry.events.record(session, kind);
        }
    }
}

#[cfg(test)]
mod tests;
