//! The span of one turn: ties what is logged of it together, from its acceptance to its end, whatever child serves it.
//!
//! It is a child of the span that is current where the turn is sent, so that a line of the log also names the request. It
//! holds ids that say nothing of the user: the session's hash, the turn's number, the child's generation.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Span, field};

use super::{Outcome, Status};
use crate::model::ids::{Generation, SessionHash, TurnId};

/// See the module. Clones are of the same span, which ends with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct TurnTrace {
    span: Span,
    accepted: Instant,
    marks: Arc<Marks>,
}

/// Times since the turn was accepted, of the first child that got it.
#[derive(Debug, Default)]
struct Marks {
    given: OnceLock<Duration>,
    first_output: OnceLock<Duration>,
}

impl TurnTrace {
    pub(crate) fn begin(session: &SessionHash, turn: TurnId, is_warm: bool, accepted: Instant) -> Self {
        let span = tracing::info_span!(
            "turn",
            %session,
            turn = turn.0,
            is_warm,
            generation = field::Empty,
            outcome = field::Empty,
        );
        Self { span, accepted, marks: Arc::default() }
    }

    /// A child gets it: the first or, after a crash, another one.
    pub(crate) fn given_to(&self, generation: Generation) {
        self.span.record("generation", generation.0);
        // Another child may get it later.
        self.marks.given.set(self.accepted.elapsed()).ok();
        let waited_ms = self.millis();
        self.span.in_scope(|| tracing::debug!(waited_ms, "the turn is given to its child"));
    }

    pub(crate) fn first_output(&self) {
        self.marks.first_output.set(self.accepted.elapsed()).ok();
        let after_ms = self.millis();
        self.span.in_scope(|| tracing::debug!(after_ms, "first output"));
    }

    pub(crate) fn ended(&self, outcome: &Outcome) {
        let word = match &outcome.status {
            Status::Completed => "completed",
            Status::Failed(_) => "failed",
            Status::Aborted(error) => error.code(),
        };
        self.span.record("outcome", word);
        let (took_ms, retries) = (self.millis(), outcome.retries);
        self.span.in_scope(|| tracing::debug!(took_ms, retries, "the turn has ended"));
    }

    /// When the turn was given to a child and when its first output came, since it was accepted.
    pub(crate) fn marks(&self) -> (Option<Duration>, Option<Duration>) {
        (self.marks.given.get().copied(), self.marks.first_output.get().copied())
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
