//! The end-of-turn policy for streams and documents: error, log, readiness, history of the conversation.
//!
//! Pure, except for [`Conclusion::settle`], which applies the policy to the claim.

use super::conversation::Held;
use crate::error::TurnError;
use crate::model::Usage;
use crate::server::api::error::ApiError;
use crate::server::dialect::{Dialect, TurnEnd, is_answer};
use crate::turn::{Outcome, Status};

#[derive(Debug)]
pub(super) struct Conclusion {
    pub(super) word: &'static str,
    /// The error sent instead of an answer.
    pub(super) error: Option<ApiError>,
    /// The child received nothing: the request was refused.
    pub(super) is_refusal: bool,
    /// The CLI itself ended the turn, which proves a working start.
    pub(super) has_started: bool,
    /// The answer extends the known history. After a loss of context the history of the child is unknown.
    is_remembered: bool,
    /// Ids of the calls in the answer.
    pub(super) calls: Vec<String>,
    /// Tokens and cost in US dollars, as the CLI reported them.
    pub(super) spent: Option<(Usage, f64)>,
}

impl Conclusion {
    /// Evaluates the end of a turn in this dialect.
    pub(super) fn of(dialect: Dialect, ending: TurnEnd<'_>) -> Self {
        match ending {
            TurnEnd::Failed(error) => Self::aborted(error),
            TurnEnd::Finished(Outcome { status: Status::Aborted(error), .. }) => Self::aborted(error),
            TurnEnd::Finished(outcome) => {
                let is_answer = is_answer(dialect, outcome);
                Self {
                    word: if outcome.is_ok() { "completed" } else { "failed" },
                    error: (!is_answer).then(|| ApiError::from(&outcome.status)),
                    is_refusal: false,
                    has_started: true,
                    is_remembered: is_answer && !outcome.context_lost,
                    calls: outcome.tool_calls.iter().map(|call| call.id.clone()).collect(),
                    spent: Some((outcome.usage, outcome.cost_usd)),
                }
            }
        }
    }

    fn aborted(error: &TurnError) -> Self {
        Self {
            word: error.code(),
            is_refusal: !error.reached_child(),
            error: Some(error.clone().into()),
            has_started: false,
            is_remembered: false,
            calls: Vec::new(),
            spent: None,
        }
    }

    /// Releases what the turn has of its conversation. A claim: with the answer, unchanged, or (dropped) as stale.
    pub(super) fn settle(&self, mut held: Held, text: &str) {
        if self.is_refusal {
            held.mark_unsent();
        } else if self.is_remembered
            && let Some(claim) = held.claim.take()
        {
            claim.commit(text, &self.calls);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Failure;

    fn outcome(status: Status, context_lost: bool) -> Outcome {
        Outcome {
            status,
            text: String::new(),
            stop_reason: None,
            tool_calls: Vec::new(),
            usage: Usage::default(),
            cost_usd: 0.0,
            cli_session_id: String::new(),
            retries: 0,
            context_lost,
            duration: Duration::ZERO,
        }
    }

    fn failed(kind: &str) -> Status {
        let (kind, message) = (kind.to_owned(), String::new());
        Status::Failed(Failure { kind, api_status: None, message, interrupted: false })
    }

    #[test]
    fn only_an_end_by_the_cli_proves_a_start() {
        let (legacy, anthropic) = (Dialect::Legacy, Dialect::Anthropic);
        // Dialect, end, context lost; then word, code of the error, refusal, started, remembered.
        let table = [
            (anthropic, Status::Completed, false, ("completed", None, false, true, true)),
            (anthropic, Status::Completed, true, ("completed", None, false, true, false)),
            (anthropic, failed("refusal"), false, ("failed", None, false, true, true)),
            (legacy, failed("refusal"), false, ("failed", Some("refusal"), false, true, false)),
            (anthropic, failed("rate_limit"), false, ("failed", Some("rate_limit"), false, true, false)),
            (anthropic, aborted(TurnError::Draining), false, refusal("draining")),
            (
                anthropic,
                aborted(TurnError::Storage(std::io::Error::other("x").into())),
                false,
                refusal("storage"),
            ),
            (
                anthropic,
                aborted(TurnError::Cancelled),
                false,
                ("cancelled", Some("cancelled"), false, false, false),
            ),
        ];
        for (dialect, status, lost, expected) in table {
            let outcome = outcome(status, lost);
            let meaning = |it: &Conclusion| {
                let code = it.error.as_ref().map(ApiError::code);
                (it.word, code, it.is_refusal, it.has_started, it.is_remembered)
            };
            assert_eq!(
                meaning(&Conclusion::of(dialect, TurnEnd::Finished(&outcome))),
                expected,
                "{outcome:?}"
            );
            if let Status::Aborted(error) = &outcome.status {
                assert_eq!(meaning(&Conclusion::of(dialect, TurnEnd::Failed(error))), expected, "{error}");
            }
        }
    }

    type Meaning = (&'static str, Option<&'static str>, bool, bool, bool);

    fn refusal(code: &'static str) -> Meaning {
        (code, Some(code), true, false, false)
    }

    fn aborted(error: TurnError) -> Status {
        Status::Aborted(error)
    }
}
