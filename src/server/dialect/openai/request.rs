//! Parser of the Chat Completions API. Pure.

use serde::Deserialize;

use super::message::{Sent, SentRole, assistant, tool, translate};
use crate::server::api::error::ApiError;
use crate::server::dialect::message::{Message, Object, Role, read, take_last};
use crate::server::dialect::{Dialect, TurnRequest};

/// Fields read from a body; the table of the dialect classifies the rest.
#[derive(Deserialize)]
struct Body {
    model: String,
    messages: Vec<Object<Sent>>,
    stream: Option<bool>,
    stream_options: Option<Object<StreamOptions>>,
    user: Option<String>,
    n: Option<u64>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

pub(crate) fn parse(bytes: &[u8]) -> Result<TurnRequest, ApiError> {
    let body: Body = read(bytes)?;
    if body.n.is_some_and(|n| n != 1) {
        return Err(ApiError::field("n", "must be 1"));
    }
    let (system, mut history) = messages(body.messages)?;
    let (last, at) = take_last(&mut history)?;
    Ok(TurnRequest {
        dialect: Dialect::OpenAi,
        stream: body.stream.unwrap_or(false),
        user: body.user,
        include_usage: body.stream_options.is_some_and(|Object(options)| options.include_usage == Some(true)),
        ..TurnRequest::of_history(body.model, system, history, last, &at)?
    })
}

/// Splits the system prompt from the messages of the conversation.
fn messages(all: Vec<Object<Sent>>) -> Result<(String, Vec<Message>), ApiError> {
    let (mut system, mut messages) = (Vec::new(), Vec::new());
    let last = all.len().saturating_sub(1);
    for (index, Object(sent)) in all.into_iter().enumerate() {
        let at = format!("messages[{index}]");
        match sent.role {
            SentRole::System | SentRole::Developer => {
                let content =
                    sent.content.ok_or_else(|| ApiError::field(format!("{at}.content"), "is missing"))?;
                system.push(translate(content, &at, true)?.texts("\n\n"));
            }
            SentRole::User => {
                let content =
                    sent.content.ok_or_else(|| ApiError::field(format!("{at}.content"), "is missing"))?;
                messages.push(Message { role: Role::User, content: translate(content, &at, index == last)? });
            }
            SentRole::Assistant => messages.push(assistant(sent, &at)?),
            SentRole::Tool | SentRole::Function if index == last => {
                let problem = "tools of the caller have no counterpart here; the CLI runs its own";
                return Err(ApiError::field(format!("{at}.role"), problem));
            }
            SentRole::Tool | SentRole::Function => messages.push(tool(sent, &at)?),
        }
    }
    Ok((system.join("\n\n"), messages))
}
