//! A turn as its reader sees it: the prompt that goes in, the events that come out, the outcome that ends it.
//!
//! The data plane is one bounded channel per turn. A reader that waits takes the child's output from its pipe itself
//! (through the turn's source); the child's task puts the rest into the channel. Items
//! are whole reads of the output; the reader cuts them into lines, so that a burst costs one wake-up.

use std::time::Duration;

use crate::error::TurnError;
use crate::model::{CallerTool, Failure, History, ToolCall, Usage};
use crate::telemetry::metrics::TurnOutcome;

mod channel;
mod earlier;
mod event;
mod lines;
mod mcp;
mod restrictions;
mod stream;
mod tools;
mod trace;

pub(crate) use channel::{Pulled, Source, TurnSender, aborted, turn_channel, wake};
pub(crate) use earlier::{Conversation, Earlier, FirstLine};
pub use event::Event;
pub(crate) use lines::Lines;
pub use mcp::McpServers;
#[cfg(feature = "server")]
pub(crate) use mcp::Sender;
pub use restrictions::Restrictions;
pub(crate) use restrictions::SteerRights;
#[cfg(feature = "server")]
pub(crate) use stream::Interrupter;
pub use stream::Turn;
pub(crate) use tools::ToolRun;
pub(crate) use trace::TurnTrace;

/// A share of something bounded, given back when it is dropped.
pub(crate) type Hold = std::sync::Arc<dyn std::any::Any + Send + Sync>;

/// Options of a turn beside its text. By default there are none.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TurnOptions {
    /// The model from this turn on. Bound at start: another than the child's own makes it restart between turns with its
    /// context.
    pub model: Option<String>,
    /// Bound at start: `Some` and different from the child's own makes it restart between turns with its context.
    /// The empty string takes a former one back.
    pub system_prompt: Option<String>,
    /// Bound at start, as above.
    pub fallback_model: Option<String>,
    /// Bound at start: the session's MCP servers. None at all takes former ones back.
    pub mcp_servers: Option<McpServers>,
    /// Restrictions of this turn beyond the configuration; `None`: there are none.
    pub restrictions: Option<Restrictions>,
    /// Earlier messages, brought in if, and only if, the conversation has no context of its own (it is new, or was
    /// lost). For clients that send the whole history with every request.
    pub history: Option<History>,
    /// Bound at start: tools that the caller runs itself. Each turn states all of them; with others than the child's own it
    /// restarts between turns with its context.
    pub tools: Vec<CallerTool>,
    /// Bound at start, as above: JSON Schema of the answer, an object. The answer is one JSON document, in
    /// [`Outcome::text`]. It was compared with the schema by the CLI alone.
    pub output_schema: Option<serde_json::Value>,
}

/// Setters for a chain after `default()`.
impl TurnOptions {
    /// Sets [`TurnOptions::model`].
    #[must_use]
    pub fn model(self, model: impl Into<String>) -> Self {
        Self { model: Some(model.into()), ..self }
    }

    /// Sets [`TurnOptions::system_prompt`].
    #[must_use]
    pub fn system_prompt(self, prompt: impl Into<String>) -> Self {
        Self { system_prompt: Some(prompt.into()), ..self }
    }

    /// Sets [`TurnOptions::fallback_model`].
    #[must_use]
    pub fn fallback_model(self, model: impl Into<String>) -> Self {
        Self { fallback_model: Some(model.into()), ..self }
    }

    /// Sets [`TurnOptions::mcp_servers`].
    #[must_use]
    pub fn mcp_servers(self, servers: McpServers) -> Self {
        Self { mcp_servers: Some(servers), ..self }
    }

    /// Sets [`TurnOptions::restrictions`].
    #[must_use]
    pub fn restrictions(self, restrictions: Restrictions) -> Self {
        Self { restrictions: Some(restrictions), ..self }
    }

    /// Sets [`TurnOptions::tools`].
    #[must_use]
    pub fn tools(self, tools: impl IntoIterator<Item = CallerTool>) -> Self {
        Self { tools: tools.into_iter().collect(), ..self }
    }

    /// Sets [`TurnOptions::output_schema`].
    #[must_use]
    pub fn output_schema(self, schema: serde_json::Value) -> Self {
        Self { output_schema: Some(schema), ..self }
    }

    /// Sets [`TurnOptions::history`].
    #[must_use]
    pub fn history(self, history: History) -> Self {
        Self { history: Some(history), ..self }
    }
}

/// How a turn ended. Every accepted turn has exactly one.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// In one word.
    pub status: Status,
    /// The final text; empty where there is none.
    pub text: String,
    /// Why the model stopped.
    pub stop_reason: Option<String>,
    /// Calls of the caller's tools ([`TurnOptions::tools`]) that the model waits for. The next turn brings the results of
    /// all of them ([`crate::Prompt::ToolResults`]).
    pub tool_calls: Vec<ToolCall>,
    /// Tokens of this turn.
    pub usage: Usage,
    /// Cost of this turn alone, in US dollars.
    pub cost_usd: f64,
    /// The CLI's id of the conversation after this turn.
    pub cli_session_id: String,
    /// How often the turn was given to another child because the first had died without a word.
    pub retries: u32,
    /// Some or all of the earlier conversation was missing when this turn began.
    pub context_lost: bool,
    /// From `send` to the end.
    pub duration: Duration,
}

/// How a turn ended, in one word.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Status {
    /// The CLI answered.
    Completed,
    /// The CLI ended the turn with an error of its own or of its API, and lives on.
    Failed(Failure),
    /// There is no answer. The stream's last item is this error.
    Aborted(TurnError),
}

impl Status {
    /// The error of a turn without an answer.
    pub(crate) fn error(&self) -> Option<&TurnError> {
        match self {
            Self::Completed | Self::Failed(_) => None,
            Self::Aborted(error) => Some(error),
        }
    }
}

impl From<&Status> for TurnOutcome {
    fn from(status: &Status) -> Self {
        match status {
            Status::Completed => Self::Ok,
            Status::Failed(failure) if failure.interrupted => Self::Cancelled,
            Status::Failed(_) => Self::Error,
            Status::Aborted(error) => error.into(),
        }
    }
}

/// Why a turn has no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NoAnswer {
    /// The CLI ended the turn with an error of its own or of its API, and lives on.
    #[error("the CLI ended the turn with an error ({}): {}", .0.kind, .0.message)]
    Failed(Failure),
    /// The turn ended without the CLI's word.
    #[error(transparent)]
    Aborted(#[from] TurnError),
}

impl Outcome {
    /// The final text of an answered turn.
    ///
    /// # Errors
    /// The turn failed or was aborted. [`Outcome::text`] may hold a part of an answer all the same.
    pub fn into_text(self) -> Result<String, NoAnswer> {
        match self.status {
            Status::Completed => Ok(self.text),
            Status::Failed(failure) => Err(NoAnswer::Failed(failure)),
            Status::Aborted(error) => Err(error.into()),
        }
    }

    /// Whether the CLI answered without an error.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self.status, Status::Completed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_an_unanswered_turn_is_an_error() {
        let aborted = channel::aborted(TurnError::Draining);
        let failure = Failure {
            kind: "rate_limit".into(),
            api_status: Some(429),
            message: "too many".into(),
            interrupted: false,
        };
        let failed = Outcome { status: Status::Failed(failure), text: "a part".into(), ..aborted.clone() };
        let answered = Outcome { status: Status::Completed, text: "all".into(), ..aborted.clone() };
        assert_eq!(answered.into_text(), Ok("all".to_owned()));
        assert_eq!(aborted.into_text(), Err(NoAnswer::Aborted(TurnError::Draining)));
        let error = failed.into_text().unwrap_err().to_string();
        assert_eq!(error, "the CLI ended the turn with an error (rate_limit): too many");
    }

    #[test]
    fn each_status_has_its_outcome_label() {
        let failed = |interrupted| {
            let failure =
                Failure { kind: String::new(), api_status: None, message: String::new(), interrupted };
            TurnOutcome::from(&Status::Failed(failure))
        };
        assert_eq!(TurnOutcome::from(&Status::Completed), TurnOutcome::Ok);
        assert_eq!((failed(false), failed(true)), (TurnOutcome::Error, TurnOutcome::Cancelled));
        assert_eq!(TurnOutcome::from(&Status::Aborted(TurnError::Draining)), TurnOutcome::Rejected);
        let timed_out = TurnError::TimedOut { limit: Duration::ZERO };
        assert_eq!(TurnOutcome::from(&Status::Aborted(timed_out)), TurnOutcome::Timeout);
    }
}
