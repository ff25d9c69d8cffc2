//! A turn answered by one document.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::conclusion::Conclusion;
use super::{Work, gathering};
use crate::error::TurnError;
use crate::server::api::error::ApiError;
use crate::server::dialect::{Collected, Ending, Frame, document};
use crate::turn::Outcome;

impl Work {
    /// Reads the turn to its end.
    pub(super) async fn collect(self, frame: &Frame) -> Result<Response, ApiError> {
        Ok(Json(self.read_all(frame).await?).into_response())
    }

    /// The same as a future that holds all it needs.
    pub(super) async fn collect_owned(self, frame: Frame) -> Result<Value, ApiError> {
        self.read_all(&frame).await
    }

    async fn read_all(mut self, frame: &Frame) -> Result<Value, ApiError> {
        // Wholes, not deltas: what was said in part and then again as a whole is in the answer once.
        let mut reader = self.turn.answer_reader(false);
        let mut collected = Collected::default();
        let ended = loop {
            match self.turn.next_lines().await {
                Some(Ok(lines)) => collected.lines(&mut reader, &lines),
                Some(Err(error)) => break Err(error),
                None => break self.outcome(),
            }
            if std::mem::take(&mut self.waits)
                && let Some(files) = &mut self.files
            {
                // Other turns have written since.
                files.look_again();
            }
        };
        let ending = match &ended {
            Ok(outcome) => Ending::Told(outcome),
            Err(error) => Ending::Lost(error),
        };
        let conclusion = Conclusion::of(self.asked.dialect, ending);
        self.log.ended(&conclusion);
        if conclusion.has_started {
            self.app.started_once().open();
        }
        if let Ok(outcome) = &ended {
            collected.end(&mut reader, if outcome.is_ok() { &outcome.text } else { "" });
        }
        conclusion.settle(self.conversation.claim.take(), || collected.text());
        if let Some(error) = conclusion.error {
            return Err(error);
        }
        let files = match self.files.take() {
            Some(files) => Some(gathering(Arc::clone(&self.app), files).await),
            None => None,
        };
        Ok(document(self.asked.dialect, collected, &ended?, frame, files))
    }

    fn outcome(&self) -> Result<Outcome, TurnError> {
        self.turn.outcome().cloned().ok_or(TurnError::Internal("the turn ended without an outcome"))
    }
}
