//! A turn answered by one document.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::{Work, gathering};
use crate::error::TurnError;
use crate::http::dialect::{Collected, Frame, document, is_answer};
use crate::http::error::ApiError;

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
        while let Some(lines) = self.turn.next_lines().await {
            let lines = lines.inspect_err(|error| {
                self.log.ended(error.code());
                if let Some(claim) = self.conversation.claim.as_mut().filter(|_| !error.reached_child()) {
                    claim.not_reached();
                }
            })?;
            collected.lines(&mut reader, &lines);
            if std::mem::take(&mut self.waits)
                && let Some(files) = &mut self.files
            {
                // Other turns have written since.
                files.look_again();
            }
        }
        let outcome = self.turn.outcome().cloned();
        let outcome = outcome.ok_or(TurnError::Internal("the turn ended without an outcome"))?;
        self.log.ended(super::answer::told(&outcome));
        if !is_answer(self.asked.dialect, &outcome) {
            return Err(ApiError::from(&outcome.status));
        }
        self.app.started_once().open();
        collected.end(&mut reader, if outcome.is_ok() { &outcome.text } else { "" });
        // Of a conversation that has lost something nobody can say what its child knows: its claim is dropped.
        if let Some(claim) = self.conversation.claim.take()
            && !outcome.context_lost
        {
            claim.answered(&collected.text());
        }
        let files = match self.files.take() {
            Some(files) => Some(gathering(Arc::clone(&self.app), files).await),
            None => None,
        };
        Ok(document(self.asked.dialect, collected, &outcome, frame, files))
    }
}
