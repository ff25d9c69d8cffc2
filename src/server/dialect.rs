//! The three ways in which callers speak to the same sessions: each with its own requests, answers, events and errors.
//!
//! A dialect is two pure halves: a parser from a body to what is [`TurnRequest`], and a [`Render`] from the parts of an answer
//! to frames or to one JSON document. Everything between them (whose session, which conversation, the turn) is the same
//! for all and lives in [`super::turns`].

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::Value;

use super::api::error::ApiError;
use super::conversations::HistoryDigest;
use super::files::ChangedFiles;
use crate::adapter::answer::Part;
use crate::error::TurnError;
use crate::model::OauthCredentials;
use crate::model::Prompt;
use crate::telemetry::metrics;
use crate::turn::{Outcome, TurnOptions};

pub(super) mod anthropic;
mod collected;
mod fields;
mod history;
mod image;
pub(super) mod legacy;
mod mcp;
pub(super) mod message;
pub(super) mod openai;
pub(crate) mod sse;

use message::Content;

pub(super) use collected::Collected;
pub(super) use fields::{Ignored, judge};
pub(super) use mcp::{FIELD as MCP_FIELD, RequestedServers};

/// Which one a request is written in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Of the service whose clients we took over.
    #[default]
    Legacy,
    /// The Messages API.
    Anthropic,
    /// The Chat Completions API.
    OpenAi,
}

impl Dialect {
    /// Its name in the figures.
    pub(super) fn metric_label(self) -> metrics::Dialect {
        match self {
            Self::Legacy => metrics::Dialect::Original,
            Self::Anthropic => metrics::Dialect::Anthropic,
            Self::OpenAi => metrics::Dialect::OpenAi,
        }
    }
}

/// What a caller asks for, in any dialect.
#[derive(Default)]
pub(super) struct TurnRequest {
    pub(super) dialect: Dialect,
    /// The answer is to come as events.
    pub(super) stream: bool,
    pub(super) prompt: Prompt,
    pub(super) options: TurnOptions,
    /// The conversation, if it is named in the body.
    pub(super) conversation: Option<String>,
    /// The user, if it is named in the body.
    pub(super) user: Option<String>,
    /// The user, as a client says of its own accord that is no caller of ours: it counts where nobody else is named, and
    /// never against a key.
    pub(super) client: Option<String>,
    pub(super) credentials: Option<OauthCredentials>,
    /// The field `mcp_servers`, if the dialect has it and it is there.
    pub(super) mcp_servers: Option<RequestedServers>,
    pub(super) include_files: bool,
    /// The model, in the caller's words.
    pub(super) model: String,
    /// A stream of the OpenAI dialect ends with the tokens.
    pub(super) include_usage: bool,
    /// Fields that have no effect here.
    pub(super) ignored: Ignored,
    /// What of the earlier messages a conversation of the CLI cannot hold.
    pub(super) left_out: Vec<String>,
    /// By what it tells of its history a conversation without a name is found again; not in the original dialect.
    pub(super) history_digest: Option<HistoryDigest>,
}

impl TurnRequest {
    /// Names of fields, and of parts of the history, without effect.
    pub(super) fn without_effect(&self) -> Vec<&str> {
        self.ignored.names.iter().chain(&self.left_out).map(String::as_str).collect()
    }
}

/// Reads the body of `POST /v1/messages`: whoever sends OAuth credentials speaks the original dialect.
pub(super) fn messages(bytes: &[u8]) -> Result<TurnRequest, ApiError> {
    #[derive(Deserialize)]
    struct Tell {
        oauth_credentials: Option<serde::de::IgnoredAny>,
    }
    match message::read::<Tell>(bytes)?.oauth_credentials {
        Some(_) => legacy::parse(bytes),
        None => anthropic::parse(bytes),
    }
}

/// How a turn ended, as a renderer is told.
#[derive(Clone, Copy)]
pub(super) enum TurnEnd<'a> {
    /// By the CLI.
    Finished(&'a Outcome),
    /// Without an answer.
    Failed(&'a TurnError),
}

/// Writes the events of one turn. Pure.
pub(super) trait Render: Send {
    /// The events of these lines of the CLI, each with its LF.
    fn lines(&mut self, lines: &[u8], frames: &mut BytesMut);

    /// A sign of life.
    fn ping(&self) -> &'static [u8];

    /// The last events.
    fn end(&mut self, ending: TurnEnd<'_>, files: Option<&ChangedFiles>, frames: &mut BytesMut);

    /// The text of the answer so far, if it was to be kept.
    fn text(&self) -> String {
        String::new()
    }
}

/// What goes into an answer that does not come from the turn itself.
pub(super) struct AnswerContext {
    /// The conversation's name.
    pub(super) session: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// The model, in the caller's words.
    pub(super) model: String,
}

/// The text of an answer on its way, where somebody will ask for it.
#[derive(Debug)]
struct KeptText(Option<String>);

impl KeptText {
    fn new(is_kept: bool) -> Self {
        Self(is_kept.then(String::new))
    }

    /// As the inside of a JSON string: it is read once, at the end.
    fn keep(&mut self, part: Part<'_>) {
        if let (Some(kept), Part::Text { text, .. }) = (&mut self.0, part) {
            kept.push_str(text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or_default());
        }
    }

    fn text(&self) -> String {
        let kept = self.0.as_deref().unwrap_or_default();
        serde_json::from_str(&format!("\"{kept}\"")).unwrap_or_default()
    }
}

/// The renderer of a stream. `keep_text` where [`Render::text`] will be request for.
pub(super) fn renderer(
    request: &TurnRequest,
    context: &AnswerContext,
    reader: Reader,
    keep_text: bool,
) -> Box<dyn Render> {
    match request.dialect {
        Dialect::Legacy => Box::new(legacy::Lines),
        Dialect::Anthropic => Box::new(anthropic::Events::new(reader, context, keep_text)),
        Dialect::OpenAi => Box::new(openai::Chunks::new(reader, context, request, keep_text)),
    }
}

/// The whole answer as one document.
pub(super) fn document(
    dialect: Dialect,
    collected: Collected,
    outcome: &Outcome,
    context: &AnswerContext,
    files: Option<ChangedFiles>,
) -> Value {
    match dialect {
        Dialect::Legacy => legacy::document(collected, outcome, context, files),
        Dialect::Anthropic => anthropic::document(collected, outcome, context),
        Dialect::OpenAi => openai::document(collected, outcome, context),
    }
}

/// The reader of an answer's parts.
pub(super) type Reader = Box<dyn crate::adapter::AnswerReader>;

/// A refusal of the model is an answer in the dialects of the SDKs, though the CLI calls it an error.
pub(super) fn is_answer(dialect: Dialect, outcome: &Outcome) -> bool {
    outcome.is_ok() || (dialect != Dialect::Legacy && refused(outcome))
}

fn refused(outcome: &Outcome) -> bool {
    matches!(&outcome.status, crate::turn::Status::Failed(failure) if failure.kind == "refusal")
}

/// Why the model stopped, in the words of the Messages API.
fn stop_reason(outcome: &Outcome) -> &str {
    match outcome.stop_reason.as_deref() {
        _ if refused(outcome) => "refusal",
        // The tools were the CLI's own: there is none for the caller to run.
        None | Some("tool_use") => "end_turn",
        Some(reason) => reason,
    }
}

/// Says in an answer, or in the last event of one, that the conversation has lost something.
fn mark_context_lost(outcome: &Outcome, answer: &mut Value) {
    if outcome.context_lost {
        answer["context_lost"] = true.into();
    }
}

/// An id of our own, where the API gave none.
fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::new_v4().simple())
}

/// The content of a message whose parts are all text.
fn is_text(content: &Content) -> bool {
    match content {
        Content::Text(_) => true,
        Content::Blocks(blocks) => {
            blocks.iter().all(|block| block["type"] == "text" && block["text"].is_string())
        }
    }
}
