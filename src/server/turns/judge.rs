//! Compares an answer with what its request expects, and asks the model once more if it does not fit.

use std::sync::Arc;

use super::control::TurnControl;
use crate::error::{Loss, TurnError};
use crate::model::{Failure, SessionState};
use crate::server::dialect::Expected;
use crate::session::SessionStatus;
use crate::system::Session;
use crate::turn::{Outcome, Status, Turn, TurnOptions};

/// How often the model is asked again. Before that the CLI itself has asked it for a document.
const MAX_REPAIRS: u32 = 1;

/// What a turn's answer is compared with.
pub(super) struct Judge {
    expected: Expected,
    session: Session,
    options: TurnOptions,
    repairs: u32,
    /// Tokens and cost of the answers that did not fit.
    before: Option<Outcome>,
    control: Option<Arc<TurnControl>>,
}

pub(super) enum Judged {
    /// The answer, or the failure in its place.
    Done(Box<Outcome>),
    /// The turn that brings the next answer.
    Again(Box<Turn>),
}

impl Judge {
    /// `None` if any answer will do.
    pub(super) fn new(expected: &Expected, session: &Session, options: &TurnOptions) -> Option<Box<Self>> {
        if expected.is_anything() {
            return None;
        }
        // The conversation has its history by then.
        let options = TurnOptions { history: None, ..options.clone() };
        Some(Box::new(Self {
            expected: expected.clone(),
            session: session.clone(),
            options,
            repairs: 0,
            before: None,
            control: None,
        }))
    }

    /// Lets the turns that ask again be interrupted as well.
    pub(super) fn controlled_by(&mut self, control: Arc<TurnControl>) {
        self.control = Some(control);
    }

    /// What a failure means for the whole answer: where the model was to be asked again, it has seen the prompt.
    pub(super) fn lost(&self, error: TurnError) -> TurnError {
        if self.repairs == 0 || error.reached_child() {
            return error;
        }
        let cause = format!("the answer did not fit, and the model could not be asked again: {error}");
        TurnError::SessionLost(Loss { cause, stderr: String::new() })
    }

    pub(super) async fn judge(&mut self, outcome: Outcome) -> Judged {
        let outcome = match &self.before {
            Some(before) => Outcome {
                usage: outcome.usage.and(&before.usage),
                cost_usd: outcome.cost_usd + before.cost_usd,
                duration: outcome.duration + before.duration,
                context_lost: outcome.context_lost || before.context_lost,
                ..outcome
            },
            None => outcome,
        };
        let outcome = match outcome.status {
            Status::Aborted(error) => Outcome { status: Status::Aborted(self.lost(error)), ..outcome },
            _ => outcome,
        };
        let (expected, checked) = (self.expected.clone(), outcome.clone());
        // A long answer takes long.
        let problem = tokio::task::spawn_blocking(move || expected.problem(&checked)).await;
        let Some(problem) = problem.unwrap_or_else(|_| Some("it could not be checked".to_owned())) else {
            return Judged::Done(Box::new(outcome));
        };
        if self.repairs == MAX_REPAIRS {
            return Judged::Done(Box::new(unfit(outcome, &problem, "it was asked again")));
        }
        if self.control.as_ref().is_some_and(|control| control.is_cancelled()) {
            return Judged::Done(Box::new(Outcome {
                status: Status::Aborted(TurnError::Cancelled),
                ..outcome
            }));
        }
        let is_followed = |now: SessionStatus| now.state == SessionState::Busy || now.queue_depth > 0;
        if self.session.status().is_some_and(is_followed) {
            // Asked now, the model would answer another message.
            let why = "it was not asked again, because another message of the conversation had followed";
            return Judged::Done(Box::new(unfit(outcome, &problem, why)));
        }
        self.repairs += 1;
        let repair = self.expected.repair(&problem);
        match self.session.send_with(repair, self.options.clone()).await {
            Ok(turn) => {
                if let Some(control) = &self.control {
                    control.runs(&turn);
                }
                self.before = Some(outcome);
                Judged::Again(Box::new(turn))
            }
            Err(error) => {
                let status = Status::Aborted(self.lost(error));
                Judged::Done(Box::new(Outcome { status, ..outcome }))
            }
        }
    }
}

fn unfit(outcome: Outcome, problem: &str, tried: &str) -> Outcome {
    let message = format!("the model's answer is not what the request asks for: {problem}; {tried}");
    let failure =
        Failure { kind: "output_invalid".to_owned(), api_status: None, message, interrupted: false };
    Outcome { status: Status::Failed(failure), ..outcome }
}
