//! Compares an answer with what its request expects, and asks the model once more if it does not fit.

use crate::model::Failure;
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
    /// Tokens and cost of the answers that did not fit.
    before: Option<Outcome>,
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
        }))
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
        let (expected, checked) = (self.expected.clone(), outcome.clone());
        // A long answer takes long.
        let problem = tokio::task::spawn_blocking(move || expected.problem(&checked)).await;
        let Some(problem) = problem.unwrap_or_else(|_| Some("it could not be checked".to_owned())) else {
            return Judged::Done(Box::new(outcome));
        };
        if self.repairs == MAX_REPAIRS {
            return Judged::Done(Box::new(unfit(outcome, &problem)));
        }
        self.repairs += 1;
        let repair = self.expected.repair(&problem);
        match self.session.send_with(repair, self.options.clone()).await {
            Ok(turn) => {
                self.before = Some(outcome);
                Judged::Again(Box::new(turn))
            }
            Err(error) => Judged::Done(Box::new(Outcome { status: Status::Aborted(error), ..outcome })),
        }
    }
}

fn unfit(outcome: Outcome, problem: &str) -> Outcome {
    let message = format!(
        "the model's answer is not what the request asks for, also after it was asked again: {problem}"
    );
    let failure =
        Failure { kind: "output_invalid".to_owned(), api_status: None, message, interrupted: false };
    Outcome { status: Status::Failed(failure), ..outcome }
}
