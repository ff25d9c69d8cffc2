//! Compares an answer with what its request expects, and asks the model once more if it does not fit.

use std::sync::Arc;

use super::control::TurnControl;
use crate::error::{Loss, TurnError};
use crate::model::Failure;
use crate::model::ids::TurnId;
use crate::server::dialect::Expected;
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
    /// The answer that did not fit, with tokens and cost of those before it, and what was wrong with it.
    before: Option<(Outcome, String)>,
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

    /// What a failure means for the whole answer: where the model was to be asked again, it has seen the prompt. Behind another
    /// message it is not asked again, for it would answer that one.
    ///
    /// # Errors
    /// There is no answer, not even one that does not fit.
    pub(super) fn lost(&mut self, error: TurnError) -> Result<Outcome, TurnError> {
        match self.before.take() {
            Some((outcome, problem)) if error == TurnError::Overtaken => {
                let why = "it was not asked again, because another message of the conversation had followed";
                Ok(unfit(outcome, &problem, why))
            }
            Some(_) if !error.reached_child() => Err(not_asked(&error)),
            _ => Err(error),
        }
    }

    /// Judges the answer of a turn.
    pub(super) async fn judge(&mut self, turn: TurnId, outcome: Outcome) -> Judged {
        let outcome = match &self.before {
            Some((before, _)) => Outcome {
                usage: outcome.usage.and(&before.usage),
                cost_usd: outcome.cost_usd + before.cost_usd,
                duration: outcome.duration + before.duration,
                context_lost: outcome.context_lost || before.context_lost,
                ..outcome
            },
            None => outcome,
        };
        let (expected, checked, tools) = (self.expected.clone(), outcome.clone(), self.options.tools.clone());
        // A long answer takes long.
        let compared = tokio::task::spawn_blocking(move || expected.misfit(&checked, &tools)).await;
        let misfit = match compared {
            Ok(None) => return Judged::Done(Box::new(outcome)),
            Ok(Some(misfit)) if self.repairs < MAX_REPAIRS => misfit,
            Ok(Some(misfit)) => {
                return Judged::Done(Box::new(unfit(outcome, &misfit.problem, "it was asked again")));
            }
            Err(_) => {
                let why = "it was not asked again";
                return Judged::Done(Box::new(unfit(outcome, "it could not be checked", why)));
            }
        };
        if self.control.as_ref().is_some_and(|control| control.is_cancelled()) {
            return Judged::Done(Box::new(Outcome {
                status: Status::Aborted(TurnError::Cancelled),
                ..outcome
            }));
        }
        self.repairs += 1;
        let repair = self.expected.repair(&misfit, &outcome);
        match self.session.send_after(turn, repair, self.options.clone()).await {
            Ok(turn) => {
                if let Some(control) = &self.control {
                    control.runs(&turn);
                }
                self.before = Some((outcome, misfit.problem));
                Judged::Again(Box::new(turn))
            }
            Err(error) => {
                let error = if error.reached_child() { error } else { not_asked(&error) };
                Judged::Done(Box::new(Outcome { status: Status::Aborted(error), ..outcome }))
            }
        }
    }
}

fn not_asked(error: &TurnError) -> TurnError {
    let cause = format!("the answer did not fit, and the model could not be asked again: {error}");
    TurnError::SessionLost(Loss { cause, stderr: String::new() })
}

fn unfit(outcome: Outcome, problem: &str, tried: &str) -> Outcome {
    let message = format!("the model's answer is not what the request asks for: {problem}; {tried}");
    let failure =
        Failure { kind: "output_invalid".to_owned(), api_status: None, message, interrupted: false };
    Outcome { status: Status::Failed(failure), ..outcome }
}
