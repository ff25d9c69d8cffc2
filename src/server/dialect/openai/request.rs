//! Parser of the Chat Completions API. Pure.

use serde::Deserialize;
use serde_json::Value;

use super::message::{Sent, SentRole, assistant, tool, translate};
use crate::server::api::error::ApiError;
use crate::server::dialect::expected::Schema;
use crate::server::dialect::message::{Content, Message, Object, Role, read, take_last};
use crate::server::dialect::tools::{Offer, OpenAiTool};
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
    tools: Option<Vec<Object<OpenAiTool>>>,
    tool_choice: Option<Value>,
    response_format: Option<Object<ResponseFormat>>,
}

#[derive(Deserialize)]
struct ResponseFormat {
    r#type: String,
    json_schema: Option<Object<JsonSchema>>,
}

#[derive(Deserialize)]
struct JsonSchema {
    schema: Option<Value>,
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
    let offer = Offer::of_openai(body.tools, body.tool_choice)?;
    let schema = schema(body.response_format)?;
    let (system, mut history) = messages(body.messages)?;
    let (last, at) = take_last(&mut history)?;
    Ok(TurnRequest {
        dialect: Dialect::OpenAi,
        stream: body.stream.unwrap_or(false),
        user: body.user,
        include_usage: body.stream_options.is_some_and(|Object(options)| options.include_usage == Some(true)),
        ..TurnRequest::of_history(body.model, system, history, last, &at, offer, schema)?
    })
}

fn schema(format: Option<Object<ResponseFormat>>) -> Result<Option<Schema>, ApiError> {
    let Some(Object(ResponseFormat { r#type, json_schema })) = format else { return Ok(None) };
    match (r#type.as_str(), json_schema) {
        ("text", _) => Ok(None),
        ("json_object", _) => Ok(Some(Schema::any())),
        ("json_schema", Some(Object(JsonSchema { schema: Some(schema) }))) => {
            Schema::read(schema, "response_format.json_schema.schema").map(Some)
        }
        ("json_schema", _) => Err(ApiError::field("response_format.json_schema.schema", "is missing")),
        _ => Err(ApiError::field("response_format.type", "must be text, json_object or json_schema")),
    }
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
                let content = translate(content, &at, index == last)?;
                add_of_user(&mut messages, Message { role: Role::User, content });
            }
            SentRole::Assistant => messages.push(assistant(sent, &at)?),
            SentRole::Tool | SentRole::Function => add_of_user(&mut messages, tool(sent, &at)?),
        }
    }
    Ok((system.join("\n\n"), messages))
}

/// Adds a message of the user's, or of one of its tools. What follows the result of a tool belongs to one message with it:
/// this API has a message for each result.
pub(in crate::server::dialect) fn add_of_user(messages: &mut Vec<Message>, message: Message) {
    let is_result = |block: &Value| block["type"] == "tool_result";
    if let Some(Message { role: Role::User, content: Content::Blocks(blocks) }) = messages.last_mut()
        && blocks.first().is_some_and(is_result)
    {
        blocks.append(&mut message.content.into_blocks());
    } else {
        messages.push(message);
    }
}
