//! The span of one turn: ties what is logged of it together, from its acceptance to its end, whatever child serves it.
//!
//! It is a child of the span that is current where the turn is sent, so that a line of the log also names the request. It
//! holds ids that say nothing of the user: the session's hash, the turn's number, the child's generation.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Span, field};

use super::tools::{ToolRun, ToolRuns};
use super::{Outcome, Status};
use crate::model::ids::{Generation, SessionHash, TurnId};
use crate::support::lock::MutexExt;

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
    tools: Mutex<ToolRuns>,
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

    /// The model calls tools: id and name of each call.
    pub(crate) fn tools_called(&self, calls: Vec<(String, String)>) {
        let (after, mut tools) = (self.accepted.elapsed(), self.marks.tools.lock_unpoisoned());
        calls.into_iter().for_each(|(id, name)| tools.began(id, &name, after));
    }

    /// Whether a result of a tool is awaited.
    pub(crate) fn awaits_tools(&self) -> bool {
        self.marks.tools.lock_unpoisoned().are_open()
    }

    /// Results have come: id of each call, and whether it failed.
    pub(crate) fn tools_ended(&self, results: &[(String, bool)]) {
        let (after, mut tools) = (self.accepted.elapsed(), self.marks.tools.lock_unpoisoned());
        results.iter().for_each(|(id, failed)| tools.ended(id, *failed, after));
    }

    /// The calls of tools so far, and how many of them are not kept. Once: they are forgotten here.
    pub(crate) fn take_tools(&self) -> (Vec<ToolRun>, usize) {
        self.marks.tools.lock_unpoisoned().take()
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
