//! The dialect of the service whose clients we took over: requests of its form in, the CLI's own lines out. Pure.
//!
//! Every refusal names the field. Values are not repeated in refusals: they may be credentials.

use bytes::{BufMut, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};

use super::history::bring_in;
use super::mcp::RequestedServers;
use super::message::{Message, Object, checked_model, prompt, read, take_last};
use super::{AnswerContext, Collected, Render, TurnEnd, TurnRequest, anthropic};
use crate::model::OauthCredentials;
use crate::server::api::error::ApiError;
use crate::server::dialect::sse::{DONE, PING, aborted, event, failed, frames as write};
use crate::server::files::ChangedFiles;
use crate::turn::{Outcome, Status, TurnOptions};

/// What is read of a body; the rest is judged by the table of the dialect.
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

/// Reads the body of `POST /v1/messages/keepalive`, whose answer is always a stream.
pub(crate) fn parse_stream(bytes: &[u8]) -> Result<TurnRequest, ApiError> {
    parse(bytes).map(|request| TurnRequest { stream: true, ..request })
}

/// Reads a body.
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

/// The CLI's lines as they are.
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
            TurnEnd::Finished(Outcome { status: Status::Failed(failure), .. }) => failed(failure, frames),
            TurnEnd::Finished(Outcome { status: Status::Aborted(error), .. }) | TurnEnd::Failed(error) => {
                aborted(error, frames);
            }
            TurnEnd::Finished(_) => {}
        }
        frames.put_slice(DONE);
    }
}

/// The answer to a request without a stream: what the original sent, and what it lacked.
pub(super) fn document(
    collected: Collected,
    outcome: &Outcome,
    context: &AnswerContext,
    files: Option<ChangedFiles>,
) -> Value {
    let mut document = anthropic::document(collected, outcome, context);
    // Existing clients know text alone.
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
mod tests {
    use super::*;
    use crate::model::Prompt;
    use crate::model::{Block, History, Message, Role};

    fn request(text: &str) -> Result<TurnRequest, String> {
        parse(text.as_bytes()).map_err(|error| format!("{error:?}"))
    }

    #[test]
    fn only_the_last_message_is_the_prompt() {
        let request = request(
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},
                {"role":"user","content":[{"type":"text","text":"c"}]}],
                "session_id":"work","model":"claude-sonnet-4-5@20250929","stream":true,"thinking":true,
                "include_files":true,"mcp_servers":null,"something":{"new":[1]}}"#,
        )
        .unwrap();
        assert!(request.stream);
        assert!(request.prompt == Prompt::Blocks(vec![serde_json::json!({"type":"text","text":"c"})]));
        let text = |role, text: &str| Message { role, content: vec![Block::Text(text.into())] };
        let expected = History::new(vec![text(Role::User, "a"), text(Role::Assistant, "b")]);
        assert!(request.options.history == Some(expected));
        assert_eq!(request.conversation.as_deref(), Some("work"));
        assert!(request.include_files && request.credentials.is_none());
    }

    #[test]
    fn credentials_have_defaults() {
        let request = request(
            r#"{"messages":[{"role":"user","content":"a"}],
                "oauth_credentials":{"access_token":"a","refresh_token":"r","expires_at":1}}"#,
        )
        .unwrap();
        let credentials = request.credentials.unwrap();
        assert_eq!(credentials.scopes, ["user:inference", "user:profile"]);
        assert_eq!(credentials.subscription_type, "max");
    }

    #[test]
    fn every_refusal_names_the_field() {
        let cases = [
            ("", "EOF"),
            ("[]", "invalid type: sequence, expected an object"),
            (r#"[[{"role":"user","content":"a"}]]"#, "expected an object"),
            (r#"{"messages":[["user","a"]]}"#, "messages[0]: invalid type: sequence"),
            ("{\"messages\":", "EOF"),
            ("{}", "missing field `messages`"),
            (r#"{"messages":[]}"#, "messages: must not be empty"),
            (r#"{"messages":[{"content":"a"}]}"#, "messages[0]: missing field `role`"),
            (r#"{"messages":[{"role":"user"}]}"#, "messages[0]: missing field `content`"),
            (r#"{"messages":[{"role":"user","content":7}]}"#, "messages[0].content: invalid type"),
            (r#"{"messages":[{"role":"user","content":null}]}"#, "messages[0].content: invalid type"),
            (r#"{"messages":[{"role":"user","content":" \n"}]}"#, "messages[0].content: must not be empty"),
            (r#"{"messages":[{"role":"user","content":[]}]}"#, "messages[0].content: must not be empty"),
            (
                r#"{"messages":[{"role":"user","content":["a"]}]}"#,
                "messages[0].content[0]: must be an object",
            ),
            (r#"{"messages":[{"role":"robot","content":"a"}]}"#, "messages[0].role: unknown variant"),
            (
                r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
                "messages[1].role: the last message",
            ),
            (r#"{"messages":[{"role":"user","content":"a"}],"model":"--help"}"#, "model: must be"),
            (r#"{"messages":[{"role":"user","content":"a"}],"model":5}"#, "model: invalid type"),
            (r#"{"messages":[{"role":"user","content":"a"}],"fallback_model":"a b"}"#, "fallback_model"),
            (r#"{"messages":[{"role":"user","content":"a"}],"include_files":"yes"}"#, "include_files"),
            (r#"{"messages":[{"role":"user","content":"a"}],"session_id":[]}"#, "session_id"),
            (r#"{"messages":[{"role":"user","content":"a"}],"mcp_servers":"m"}"#, "mcp_servers: must be"),
            (
                r#"{"messages":[{"role":"user","content":"a"}],"oauth_credentials":{"access_token":"a"}}"#,
                "oauth_credentials: missing field",
            ),
            (
                r#"{"messages":[{"role":"user","content":"a"}],
                "oauth_credentials":{"access_token":"","refresh_token":"r","expires_at":1}}"#,
                "oauth_credentials.access_token: must not be empty",
            ),
            (r#"{"messages":[{"role":"user","content":"a"}]} {}"#, "trailing"),
        ];
        for (body, named) in cases {
            let error = request(body).err().unwrap_or_else(|| panic!("{body} was accepted"));
            assert!(error.contains(named), "{body} gave {error}");
        }
        assert!(request(&format!("{}1", "[".repeat(100_000))).is_err());
    }

    #[test]
    fn no_refusal_repeats_a_value() {
        let error = request(
            r#"{"messages":[],"oauth_credentials":{"access_token":"a","refresh_token":"r","expires_at":"sk-\"secret"}}"#,
        );
        let error = error.err().unwrap();
        assert!(error.contains("oauth_credentials.expires_at") && !error.contains("secret"), "{error}");
        assert!(error.contains("expected i64"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            // The answer does not matter.
            parse(&bytes).ok();
        }
    }
}
