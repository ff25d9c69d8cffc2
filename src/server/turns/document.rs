//! A turn answered by one JSON document.

use std::sync::Arc;

use serde_json::Value;

use super::PendingTurn;
use super::conclusion::Conclusion;
use super::judge::Judged;
use super::pending::gather;
use crate::adapter::AnswerReader;
use crate::error::TurnError;
use crate::server::api::error::ApiError;
use crate::server::dialect::{AnswerContext, Collected, TurnEnd, document};
use crate::turn::Outcome;

impl PendingTurn {
    /// Reads the turn to its end and renders the document.
    pub(super) async fn collect(mut self: Box<Self>, context: &AnswerContext) -> Result<Value, ApiError> {
        // Whole messages without deltas, so that no text is collected twice.
        let mut reader = AnswerReader::new(false);
        if self.request.expected.is_document() {
            reader = reader.with_final_text();
        }
        let mut collected = Collected::default();
        let ended = loop {
            match self.turn.next_lines().await {
                Some(Ok(lines)) => {
                    self.log.begun();
                    collected.lines(&mut reader, &lines);
                }
                Some(Err(error)) => match &mut self.judge {
                    Some(judge) => break judge.lost(error),
                    None => break Err(error),
                },
                None => match (self.outcome(), &mut self.judge) {
                    (Ok(outcome), Some(judge)) => match judge.judge(self.turn.id(), outcome).await {
                        Judged::Again(turn) => self.turn = *turn,
                        Judged::Done(outcome) => break Ok(*outcome),
                    },
                    (ended, _) => break ended,
                },
            }
            if std::mem::take(&mut self.is_queued)
                && let Some(files) = &mut self.files
            {
                // Earlier turns have written since the first snapshot.
                files.look_again();
            }
        };
        let end = match &ended {
            Ok(outcome) => TurnEnd::Finished(outcome),
            Err(error) => TurnEnd::Failed(error),
        };
        let conclusion = Conclusion::of(self.request.dialect, end);
        self.log.ended(&conclusion);
        if conclusion.has_started {
            self.app.started_once.open();
        }
        if let Ok(outcome) = &ended {
            collected.end(&mut reader, if outcome.is_ok() { &outcome.text } else { "" }, &outcome.tool_calls);
        }
        let mut held = std::mem::take(&mut self.conversation.held);
        let text = if held.needs_text() { collected.text() } else { String::new() };
        let recording = held.recording.take();
        conclusion.settle(held, &text);
        if let Some(error) = conclusion.error {
            return Err(error);
        }
        let files = match self.files.take() {
            Some(files) => Some(gather(Arc::clone(&self.app), files).await),
            None => None,
        };
        let document = document(&self.request, collected, &ended?, context, files);
        if let Some(recording) = recording {
            recording.save(document.to_string(), &text, &conclusion.calls).await;
        }
        Ok(document)
    }

    fn outcome(&self) -> Result<Outcome, TurnError> {
        self.turn.outcome().cloned().ok_or(TurnError::Internal("the turn ended without an outcome"))
    }
}
