//! The API of the service that this one replaces: its requests in, the CLI's own lines out. Pure.
//!
//! Every refusal names the field and repeats no value, which may be a credential.

use bytes::{BufMut, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};

use super::history::bring_in;
use super::mcp::RequestedServers;
use super::message::{Message, Object, checked_model, prompt, read, take_last};
use super::{AnswerContext, Collected, Render, TurnEnd, TurnRequest, anthropic};
use crate::model::OauthCredentials;
use crate::server::api::error::{ApiError, failure_text, redact};
use crate::server::dialect::sse::{DONE, PING, error_event, event, frames as write};
use crate::server::files::ChangedFiles;
use crate::turn::{Outcome, Status, TurnOptions};

/// Fields read from a body; the table of the dialect classifies the rest.
#[derive(Deserialize)]
struct Body {
    messages: Vec<Object<Message>>,
    oauth_credentials: Option<Object<OauthCredentials>>,
    session_id: Option<String>,
    model: Option<String>,
    mcp_servers: Option<Value>,
    fallback_model: Option<String>,
    include_files: Option<bool>,
    stream: Option<bool>,
}

/// Parses the body of `POST /v1/messages/keepalive`, whose answer is always a stream.
pub(crate) fn parse_stream(bytes: &[u8]) -> Result<TurnRequest, ApiError> {
    parse(bytes).map(|request| TurnRequest { stream: true, ..request })
}

pub(crate) fn parse(bytes: &[u8]) -> Result<TurnRequest, ApiError> {
    check(read(bytes)?)
}

fn check(body: Body) -> Result<TurnRequest, ApiError> {
    let mut history: Vec<Message> = body.messages.into_iter().map(|Object(message)| message).collect();
    let (last, at) = take_last(&mut history)?;
    let prompt = prompt(last, &at)?;
    let credentials = body.oauth_credentials.map(|Object(credentials)| credentials);
    if let Some(credentials) = &credentials {
        for (field, token) in
            [("access_token", &credentials.access_token), ("refresh_token", &credentials.refresh_token)]
        {
            if token.is_empty() {
                return Err(ApiError::field(format_args!("oauth_credentials.{field}"), "must not be empty"));
            }
        }
    }
    let earlier = bring_in(history)?;
    let options = TurnOptions {
        model: body.model.map(|model| checked_model("model", model)).transpose()?,
        fallback_model: body
            .fallback_model
            .map(|model| checked_model("fallback_model", model))
            .transpose()?,
        history: earlier.history,
        ..TurnOptions::default()
    };
    Ok(TurnRequest {
        stream: body.stream.unwrap_or(false),
        prompt,
        options,
        conversation: body.session_id,
        credentials,
        mcp_servers: RequestedServers::read(body.mcp_servers)?,
        include_files: body.include_files.unwrap_or(false),
        left_out: earlier.left_out,
        ..TurnRequest::default()
    })
}

/// Renders the CLI's lines unchanged.
pub(super) struct Lines;

impl Render for Lines {
    fn lines(&mut self, lines: &[u8], frames: &mut BytesMut) {
        write(lines, frames);
    }

    fn ping(&self) -> &'static [u8] {
        PING
    }

    fn end(&mut self, ending: TurnEnd<'_>, files: Option<&ChangedFiles>, frames: &mut BytesMut) {
        if let Some(files) = files {
            files.events().iter().for_each(|one| event(one, frames));
        }
        match ending {
            TurnEnd::Finished(Outcome { status: Status::Failed(failure), .. }) => {
                error_event(&failure.kind, &failure_text(failure), frames);
            }
            TurnEnd::Finished(Outcome { status: Status::Aborted(error), .. }) | TurnEnd::Failed(error) => {
                error_event(error.code(), &redact::text_of(error), frames);
            }
            TurnEnd::Finished(_) => {}
        }
        frames.put_slice(DONE);
    }
}

/// Renders the answer as one document: the fields of the replaced service, and more.
pub(super) fn document(
    collected: Collected,
    outcome: &Outcome,
    context: &AnswerContext,
    files: Option<ChangedFiles>,
) -> Value {
    let mut document = anthropic::document(collected, outcome, context);
    // Existing clients read text only.
    if let Some(Value::Array(content)) = document.get_mut("content") {
        content.retain(|block| block["type"] == "text");
    }
    if let Some(files) = files {
        document["files"] = files.files;
        document["files_summary"] = files.summary;
    }
    document["duration_ms"] = json!(u64::try_from(outcome.duration.as_millis()).unwrap_or(u64::MAX));
    document
}

#[cfg(test)]
mod tests;
