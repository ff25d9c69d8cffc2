//! A running turn as others than its reader see it: whether it has begun, how it ended; and its early end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use tokio_util::sync::CancellationToken;

use super::conclusion::Conclusion;
use crate::error::TurnError;
use crate::model::Usage;
use crate::server::api::error::ApiError;
use crate::support::lock::MutexExt;
use crate::turn::{Interrupter, Turn};

/// Shared by a turn without an attached caller and those who ask for it.
#[derive(Default)]
pub(super) struct TurnControl {
    has_begun: AtomicBool,
    /// Of the turn that runs: the request's, or the one that asks the model again.
    running: Mutex<Option<Interrupter>>,
    cancelled: CancellationToken,
    summary: OnceLock<TurnSummary>,
}

/// How a turn ended, without any text.
#[derive(Debug)]
struct TurnSummary {
    /// Code of the error in the place of an answer.
    error: Option<&'static str>,
    spent: Option<(Usage, f64)>,
}

/// Status of an ended turn in a word, by the code of its error.
pub(crate) fn status_of(error: Option<&str>) -> &'static str {
    match error {
        None => "completed",
        Some("cancelled" | "interrupted") => "cancelled",
        Some(_) => "failed",
    }
}

impl TurnControl {
    /// From now on this turn is the one that runs. Interrupts it if the request was cancelled meanwhile.
    pub(super) fn runs(&self, turn: &Turn) {
        *self.running.lock_unpoisoned() = turn.interrupter();
        if self.is_cancelled() {
            self.interrupt();
        }
    }

    /// Ends the turn early. It ends as if it had been interrupted by its session.
    pub(super) fn cancel(&self) {
        self.cancelled.cancel();
        self.interrupt();
    }

    fn interrupt(&self) {
        let running = self.running.lock_unpoisoned().clone();
        if let Some(running) = running {
            running.interrupt();
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    pub(super) async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    /// The child works on the turn.
    pub(super) fn begun(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    pub(super) fn ended(&self, conclusion: &Conclusion) {
        let error = conclusion.error.as_ref().map(ApiError::code);
        // A turn has one conclusion.
        self.summary.set(TurnSummary { error, spent: conclusion.spent }).ok();
    }

    /// Code of the error in the place of an answer, once the turn has ended.
    pub(super) fn error(&self) -> Option<&'static str> {
        match self.summary.get() {
            Some(summary) => summary.error,
            None if self.is_cancelled() => Some(TurnError::Cancelled.code()),
            None => Some("internal"),
        }
    }

    /// Tokens and cost in US dollars, if the CLI has reported the end.
    pub(super) fn spent(&self) -> Option<(Usage, f64)> {
        self.summary.get()?.spent
    }
}
