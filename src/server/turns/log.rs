//! The log line of an accepted turn.

use tokio::time::Instant;

use super::conclusion::Conclusion;

/// Logs the end of an accepted turn once, when dropped.
pub(super) struct TurnLog {
    request_id: String,
    begin: Instant,
    outcome: &'static str,
    is_refusal: bool,
}

impl TurnLog {
    /// `begin` is the arrival of the request.
    pub(super) fn new(request_id: String, begin: Instant) -> Self {
        // Remains if the answer is not read to its end.
        Self { request_id, begin, outcome: "client_gone", is_refusal: false }
    }

    pub(super) fn ended(&mut self, conclusion: &Conclusion) {
        (self.outcome, self.is_refusal) = (conclusion.word, conclusion.is_refusal);
    }
}

impl Drop for TurnLog {
    fn drop(&mut self) {
        let took_ms = self.begin.elapsed().as_millis();
        if self.is_refusal {
            tracing::info!(request_id = self.request_id, code = self.outcome, took_ms, "request refused");
        } else {
            tracing::info!(request_id = self.request_id, outcome = self.outcome, took_ms, "turn answered");
        }
    }
}
