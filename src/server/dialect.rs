//! The four dialects in which callers use the same sessions: each with its own requests, answers, events and errors.
//!
//! A dialect has two pure halves: a parser from a body to a [`TurnRequest`], and a [`Render`] from the parts of an
//! answer to frames or one JSON document. Everything between them (user, conversation, turn) is shared and lives in
//! [`super::turns`].

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::Value;

use super::api::error::ApiError;
use super::conversations::HistoryDigest;
use super::files::ChangedFiles;
use crate::error::TurnError;
use crate::model::OauthCredentials;
use crate::model::Prompt;
use crate::telemetry::metrics;
use crate::turn::{Outcome, TurnOptions};

pub(super) mod anthropic;
mod collected;
mod expected;
mod fields;
mod history;
mod image;
pub(super) mod legacy;
mod mcp;
pub(super) mod message;
pub(super) mod openai;
pub(super) mod responses;
pub(crate) mod sse;
mod streamed;
mod tools;

use history::{BroughtIn, bring_in};
use message::{Content, Message, Role};
use streamed::Streamed;
use tools::Offer;

pub(super) use collected::Collected;
pub(super) use expected::{Expected, Schema};
pub(super) use fields::{Ignored, judge};
pub(super) use mcp::{FIELD as MCP_FIELD, RequestedServers, check_length};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Dialect {
    /// The API of the service that this one replaces.
    #[default]
    Legacy,
    Anthropic,
    OpenAi,
    /// The Responses API.
    Responses,
}

impl Dialect {
    /// Metric label. The label value `original` predates the name `legacy` and is part of the contract.
    pub(super) fn metric_label(self) -> metrics::Dialect {
        match self {
            Self::Legacy => metrics::Dialect::Original,
            Self::Anthropic => metrics::Dialect::Anthropic,
            Self::OpenAi => metrics::Dialect::OpenAi,
            Self::Responses => metrics::Dialect::Responses,
        }
    }
}

#[derive(Default)]
pub(super) struct TurnRequest {
    pub(super) dialect: Dialect,
    /// Whether the answer is a stream of events.
    pub(super) stream: bool,
    pub(super) prompt: Prompt,
    pub(super) options: TurnOptions,
    pub(super) conversation: Option<String>,
    pub(super) user: Option<String>,
    /// User id that a client sends by itself. It counts only without any other user, and never against a key.
    pub(super) client: Option<String>,
    pub(super) credentials: Option<OauthCredentials>,
    pub(super) mcp_servers: Option<RequestedServers>,
    pub(super) include_files: bool,
    pub(super) model: String,
    /// Whether a stream of the OpenAI dialect ends with token counts.
    pub(super) include_usage: bool,
    pub(super) ignored: Ignored,
    /// Parts of the history that a conversation of the CLI cannot hold, and tools that it cannot offer.
    pub(super) left_out: Vec<String>,
    /// What the answer has to hold.
    pub(super) expected: Expected,
    /// Finds the conversation of a request without a name; not in the legacy dialect.
    pub(super) history_digest: Option<HistoryDigest>,
    /// The rest of a request for a response.
    pub(super) response: Option<Box<responses::Asked>>,
}

impl TurnRequest {
    /// A request of an SDK, which states the whole conversation and system prompt each time.
    fn of_history(
        model: String,
        system: String,
        mut history: Vec<Message>,
        last: Content,
        at: &str,
        offer: Offer,
        schema: Option<Schema>,
    ) -> Result<Self, ApiError> {
        let last = Message { role: Role::User, content: last };
        let history_digest = Some(HistoryDigest::of(&history, &last, Some(&system)));
        let results = tools::results(&history, &last.content, at)?;
        let prompt = match results {
            Some(results) => {
                // Where no turn waits for them they are the end of the history.
                history.push(last);
                Prompt::ToolResults(results)
            }
            None => message::prompt(last.content, at)?,
        };
        let BroughtIn { history, mut left_out } = bring_in(history)?;
        left_out.extend(offer.left_out);
        let prompt = match offer.choice.instruction() {
            Some(instruction) => tools::instruct(prompt, instruction),
            None => prompt,
        };
        let options = TurnOptions {
            model: Some(message::checked_model("model", model.clone())?),
            system_prompt: Some(system),
            history,
            tools: offer.tools,
            output_schema: schema.as_ref().map(|schema| schema.value().clone()),
            ..TurnOptions::default()
        };
        let expected = Expected::of(schema, offer.choice, offer.strict);
        Ok(Self { prompt, options, model, left_out, expected, history_digest, ..Self::default() })
    }

    /// Names of fields, and of parts of the history, without effect.
    pub(super) fn without_effect(&self) -> Vec<&str> {
        self.ignored.names.iter().chain(&self.left_out).map(String::as_str).collect()
    }
}

/// Parses the body of `POST /v1/messages`: one with OAuth credentials is in the legacy dialect.
pub(super) fn messages(bytes: &[u8]) -> Result<TurnRequest, ApiError> {
    #[derive(Deserialize)]
    struct Probe {
        oauth_credentials: Option<serde::de::IgnoredAny>,
    }
    if may_name(bytes, "oauth_credentials") && message::read::<Probe>(bytes)?.oauth_credentials.is_some() {
        return legacy::parse(bytes);
    }
    anthropic::parse(bytes)
}

/// Whether JSON may have a field of this name, without parsing it. A name in other letters has an escape of one.
fn may_name(json: &[u8], name: &str) -> bool {
    [name, "\\u"].iter().any(|part| memchr::memmem::find(json, part.as_bytes()).is_some())
}

#[derive(Clone, Copy)]
pub(super) enum TurnEnd<'a> {
    /// The CLI ended the turn.
    Finished(&'a Outcome),
    /// The turn failed without an answer.
    Failed(&'a TurnError),
}

/// Renderer of the events of one turn. Pure.
pub(super) trait Render: Send {
    /// Renders CLI lines, each with its LF.
    fn lines(&mut self, lines: &[u8], frames: &mut BytesMut);

    fn ping(&self) -> &'static [u8];

    fn end(&mut self, ending: TurnEnd<'_>, files: Option<&ChangedFiles>, frames: &mut BytesMut);

    /// Text of the answer so far, if kept.
    fn text(&self) -> String {
        String::new()
    }

    /// The whole answer as JSON, once it has ended as one, if it can be stored.
    fn document(&mut self) -> Option<String> {
        None
    }
}

/// Fields of an answer that do not come from the turn.
pub(super) struct AnswerContext {
    pub(super) session: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
}

/// Creates the renderer of a stream. `keep_text` enables [`Render::text`].
pub(super) fn renderer(
    request: &TurnRequest,
    context: &AnswerContext,
    reader: Reader,
    keep_text: bool,
) -> Box<dyn Render> {
    match (request.dialect, &request.response) {
        (Dialect::Responses, Some(asked)) => {
            Box::new(Streamed::new(reader, responses::EventWriter::new(context, asked), keep_text))
        }
        // A request for a response always has the rest.
        (Dialect::Legacy | Dialect::Responses, _) => Box::new(legacy::Lines),
        (Dialect::Anthropic, _) => {
            Box::new(Streamed::new(reader, anthropic::EventWriter::new(context), keep_text))
        }
        (Dialect::OpenAi, _) => {
            Box::new(Streamed::new(reader, openai::ChunkWriter::new(context, request), keep_text))
        }
    }
}

pub(super) fn document(
    request: &TurnRequest,
    collected: Collected,
    outcome: &Outcome,
    context: &AnswerContext,
    files: Option<ChangedFiles>,
) -> Value {
    match (request.dialect, &request.response) {
        (Dialect::Responses, Some(asked)) => responses::document(collected, outcome, context, asked),
        (Dialect::Legacy | Dialect::Responses, _) => legacy::document(collected, outcome, context, files),
        (Dialect::Anthropic, _) => anthropic::document(collected, outcome, context),
        (Dialect::OpenAi, _) => openai::document(collected, outcome, context),
    }
}

pub(super) use crate::adapter::AnswerReader as Reader;

/// Whether the outcome is an answer. In the dialects of the SDKs a refusal by the model is one, although the CLI
/// reports an error.
pub(super) fn is_answer(dialect: Dialect, outcome: &Outcome) -> bool {
    outcome.is_ok() || (dialect != Dialect::Legacy && is_sdk_answer(outcome))
}

fn is_sdk_answer(outcome: &Outcome) -> bool {
    outcome.is_ok() || refused(outcome)
}

fn refused(outcome: &Outcome) -> bool {
    matches!(&outcome.status, crate::turn::Status::Failed(failure) if failure.kind == "refusal")
}

fn stop_reason(outcome: &Outcome) -> &str {
    match outcome.stop_reason.as_deref() {
        _ if refused(outcome) => "refusal",
        _ if !outcome.tool_calls.is_empty() => "tool_use",
        // The tools belonged to the CLI: the caller has none to run.
        None | Some("tool_use") => "end_turn",
        Some(reason) => reason,
    }
}

/// Marks an answer, or its last event, whose conversation has lost context.
fn mark_context_lost(outcome: &Outcome, answer: &mut Value) {
    if outcome.context_lost {
        answer["context_lost"] = true.into();
    }
}

/// Generates an id where the API gave none.
fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::new_v4().simple())
}

fn is_text(content: &Content) -> bool {
    match content {
        Content::Text(_) => true,
        Content::Blocks(blocks) => {
            blocks.iter().all(|block| block["type"] == "text" && block["text"].is_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn credentials_under_any_spelling_make_a_body_legacy() {
        let body = r#""model":"sonnet","max_tokens":1,"messages":[{"role":"user","content":"a"}]"#;
        let dialect = |name: &str, value: &str| {
            messages(format!("{{\"{name}\":{value},{body}}}").as_bytes()).map(|request| request.dialect).ok()
        };
        let credentials = r#"{"access_token":"a","refresh_token":"b","expires_at":1}"#;
        for name in ["oauth_credentials", r"oauth\u005fcredentials", r"\u006Fauth_credentials"] {
            assert_eq!(dialect(name, credentials), Some(Dialect::Legacy), "{name}");
            assert_eq!(dialect(name, "null"), Some(Dialect::Anthropic), "{name}");
            assert_eq!(dialect(name, "7"), None, "{name}");
        }
        assert_eq!(dialect("OAUTH_CREDENTIALS", credentials), Some(Dialect::Anthropic));
    }

    proptest! {
        #[test]
        fn named_field_is_never_passed_over(escaped in prop::collection::vec(any::<bool>(), 4), other in "[a-z\\\\\"]{0,6}") {
            let written = |letter: char, escaped: bool| {
                if escaped { format!("\\u{:04x}", u32::from(letter)) } else { letter.to_string() }
            };
            let name: String = "name".chars().zip(escaped).map(|(letter, escaped)| written(letter, escaped)).collect();
            let text = format!("{{{}:1,\"{name}\":2}}", Value::from(other));
            let parsed: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&parsed["name"], 2);
            prop_assert!(may_name(text.as_bytes(), "name"));
        }
    }
}
