//! The end of an accepted turn: its log line, and what others learn of it.

use std::sync::Arc;

use tokio::time::Instant;

use super::conclusion::Conclusion;
use super::control::TurnControl;
use crate::server::audit::Entry;

/// Logs the end of an accepted turn once, when dropped.
pub(super) struct TurnLog {
    request_id: String,
    begin: Instant,
    outcome: &'static str,
    is_refusal: bool,
    control: Option<Arc<TurnControl>>,
    entry: Option<Arc<Entry>>,
}

impl TurnLog {
    /// `begin` is the arrival of the request.
    pub(super) fn new(request_id: String, begin: Instant) -> Self {
        // Remains if the answer is not read to its end.
        Self { request_id, begin, outcome: "client_gone", is_refusal: false, control: None, entry: None }
    }

    /// Reports begin and end there as well.
    pub(super) fn reporting(mut self, control: Option<Arc<TurnControl>>) -> Self {
        self.control = control;
        self
    }

    /// Notes the end in the audit log as well.
    pub(super) fn recording(mut self, entry: Option<Arc<Entry>>) -> Self {
        self.entry = entry;
        self
    }

    /// Lines of the turn have come. Called with each read.
    pub(super) fn begun(&self) {
        if let Some(control) = &self.control {
            control.begun();
        }
    }

    pub(super) fn ended(&mut self, conclusion: &Conclusion) {
        (self.outcome, self.is_refusal) = (conclusion.word, conclusion.is_refusal);
        if let Some(control) = &self.control {
            control.ended(conclusion);
        }
    }
}

impl Drop for TurnLog {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            entry.ended(self.outcome);
        }
        let took_ms = self.begin.elapsed().as_millis();
        if self.is_refusal {
            tracing::info!(request_id = self.request_id, code = self.outcome, took_ms, "request refused");
        } else {
            tracing::info!(request_id = self.request_id, outcome = self.outcome, took_ms, "turn answered");
        }
    }
}
