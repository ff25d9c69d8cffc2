//! Answers of the simulated CLI.

use std::time::Duration;

use serde_json::{Map, Value};

/// The answer to a message.
///
/// A text becomes one with `into()`. Parts can be combined: thoughts, then tool calls, then the text.
#[derive(Debug, Clone, Default, PartialEq)]
#[must_use]
pub struct Reply {
    text: Option<String>,
    thought: Option<String>,
    /// In the simulated CLI's own notation, see `pilotlight sim --help`.
    markers: String,
    recorded: Vec<Value>,
}

/// Faults of the CLI while it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It exits with 1 before the first line.
    CrashBeforeAnswer,
    /// It exits with 1 after some deltas.
    CrashWhileAnswering,
    /// It exits with 1 after the result.
    CrashAfterAnswer,
    /// It writes nothing more and ignores SIGTERM.
    Hang,
    /// It writes a line that is no JSON, and answers.
    InvalidLine,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::CrashBeforeAnswer => "crash-before",
            Self::CrashWhileAnswering => "crash-mid",
            Self::CrashAfterAnswer => "crash-after",
            Self::Hang => "hang",
            Self::InvalidLine => "garbage-line",
        }
    }
}

/// A line of a recorded turn is no JSON object.
#[derive(Debug, thiserror::Error)]
#[error("line {number} of the recorded turn is no JSON object")]
#[non_exhaustive]
pub struct RecordedTurnError {
    /// Number of the line, from 1.
    pub number: usize,
    /// Cause, if the line is no JSON.
    pub source: Option<serde_json::Error>,
}

impl Reply {
    /// This text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), ..Self::default() }
    }

    /// A document, for a turn that asks for one ([`TurnOptions::output_schema`](crate::TurnOptions::output_schema)). Text for other turns.
    pub fn document(document: &Value) -> Self {
        Self::text(document.to_string()).marked(&format!("output:{document}"))
    }

    /// An error of the model's API, such as 529, without retries.
    pub fn api_error(status: u16) -> Self {
        Self::default().marked(&format!("api_error:{status}"))
    }

    /// The conversation exceeds the context window of the model.
    pub fn context_full() -> Self {
        Self::default().marked("context_full")
    }

    /// The model refuses to answer.
    pub fn refusal() -> Self {
        Self::default().marked("refusal")
    }

    /// The lines of a turn that a CLI has written, for example the [bytes](crate::Event::as_bytes) of a turn's events: the
    /// same deltas, messages and tool results under the id of the conversation. `init`, replays of the message and
    /// control lines are left out; cost and times are those of the simulation. Tools are not run.
    ///
    /// # Errors
    ///
    /// If a line that is not empty is no JSON object.
    pub fn recorded(lines: &str) -> Result<Self, RecordedTurnError> {
        let mut recorded = Vec::new();
        for (index, line) in lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let failed = |source| RecordedTurnError { number: index + 1, source };
            let value: Value = serde_json::from_str(line).map_err(|error| failed(Some(error)))?;
            if !value.is_object() {
                return Err(failed(None));
            }
            recorded.push(value);
        }
        Ok(Self { recorded, ..Self::default() })
    }

    /// Waits before the answer.
    pub fn after(self, delay: Duration) -> Self {
        self.marked(&format!("sleep:{}", delay.as_millis()))
    }

    /// Streams the text one character at a time, with this pause after each.
    pub fn slowly(self, pause: Duration) -> Self {
        self.marked(&format!("slow:{}", pause.as_millis()))
    }

    /// Thinks before the answer.
    pub fn thinking(self, thought: impl Into<String>) -> Self {
        Self { thought: Some(thought.into()), ..self }
    }

    /// Calls a tool before the answer, after the permission that the configuration asks for. `Bash`, `Write` and `Read`
    /// are real; a tool of the caller has the name `mcp__caller__NAME`. Without a text the answer is the outcome:
    /// `TOOLS:ok`, `TOOLS:err` or `TOOLS:denied`, and the results of the caller's tools.
    pub fn calling(self, tool: &str, input: &Value) -> Self {
        self.marked(&format!("tool:{tool} {input}"))
    }

    /// Retries the model's API this often before the answer, as after a 529, without delays.
    pub fn retrying(self, times: u32) -> Self {
        self.marked(&format!("api_retry:{times},0"))
    }

    /// Tokens of each message of the model.
    pub fn usage(self, input_tokens: u64, output_tokens: u64) -> Self {
        self.marked(&format!("usage:{input_tokens},{output_tokens}"))
    }

    /// Fails while it answers.
    pub fn failing(self, fault: Fault) -> Self {
        self.marked(&format!("fault:{}", fault.name()))
    }

    fn marked(mut self, marker: &str) -> Self {
        self.markers.push_str("[[");
        self.markers.push_str(marker);
        self.markers.push_str("]]");
        self
    }

    /// The rule of the simulated CLI for messages that contain `pattern`.
    pub(super) fn rule(self, pattern: &str, times: Option<u64>) -> Value {
        let mut rule = Map::new();
        rule.insert("contains".to_owned(), pattern.into());
        rule.insert("markers".to_owned(), self.markers.into());
        rule.extend(self.text.map(|text| ("say".to_owned(), text.into())));
        rule.extend(self.thought.map(|thought| ("think".to_owned(), thought.into())));
        rule.extend(times.map(|times| ("times".to_owned(), times.into())));
        if !self.recorded.is_empty() {
            rule.insert("recorded".to_owned(), self.recorded.into());
        }
        Value::Object(rule)
    }
}

impl<T: Into<String>> From<T> for Reply {
    fn from(text: T) -> Self {
        Self::text(text)
    }
}
