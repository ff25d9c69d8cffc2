//! Parser of the Responses API. Pure.
//!
//! A request that continues a response, or refers to its items, is completed in a second step, once these are read.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::items::{self, Origin};
use crate::model::{CallerTool, Prompt};
use crate::server::api::error::ApiError;
use crate::server::conversations::HistoryDigest;
use crate::server::dialect::expected::{Expected, Schema};
use crate::server::dialect::history::{BroughtIn, bring_in};
use crate::server::dialect::message::{self, Content, Message, Object, Role, checked_model, read};
use crate::server::dialect::tools::{self, Offer, ResponsesTool};
use crate::server::dialect::{Dialect, TurnRequest};
use crate::server::responses::{MAX_BYTES_EACH, ResponseId};
use crate::turn::TurnOptions;

/// Limits of `metadata`, as in the API reference: pairs, characters of a key, characters of a value.
const METADATA: (usize, usize, usize) = (16, 64, 512);

/// Fields read from a body; the table of the dialect classifies the rest.
#[derive(Deserialize)]
struct Body {
    model: String,
    input: Value,
    instructions: Option<String>,
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    store: Option<bool>,
    background: Option<bool>,
    stream: Option<bool>,
    metadata: Option<BTreeMap<String, String>>,
    user: Option<String>,
    tools: Option<Vec<Object<ResponsesTool>>>,
    tool_choice: Option<Value>,
    text: Option<Object<Text>>,
    /// Classified field by field, which needs an object.
    #[serde(rename = "stream_options")]
    _stream_options: Option<Object<StreamOptions>>,
}

#[derive(Deserialize)]
struct Text {
    format: Option<Object<Format>>,
}

#[derive(Deserialize)]
struct Format {
    r#type: String,
    schema: Option<Value>,
    /// Its name, and what else the response repeats.
    #[serde(flatten)]
    more: Map<String, Value>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

/// What a request for a response says beside its turn.
pub(crate) struct Asked {
    pub(crate) id: ResponseId,
    pub(crate) previous: Option<ResponseId>,
    pub(crate) is_stored: bool,
    /// It is answered later.
    pub(crate) is_background: bool,
    /// It would be stored if it were not that long.
    is_too_long: bool,
    /// Conversation named in the body.
    pub(super) named: Option<String>,
    pub(super) instructions: Option<String>,
    /// Format of the answer, tools and choice among them, as the response repeats them.
    pub(super) format: Value,
    pub(super) tools: Vec<Value>,
    pub(super) tool_choice: Value,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) user: Option<String>,
    /// What the model is asked about its tools.
    instruction: Option<String>,
    /// Tools without effect.
    tools_left_out: Vec<String>,
    /// Items of the input, until the request is complete; then as they are stored.
    pub(crate) items: Vec<Value>,
    /// Texts of system messages among the input of the whole chain.
    pub(crate) system: String,
}

/// What came before a request.
pub(crate) struct Former {
    /// Digest of the history so far.
    pub(crate) digest: String,
    pub(crate) system: String,
    /// Everything that was said; `None` if it is not known any more.
    pub(crate) items: Option<Vec<Value>>,
}

pub(crate) fn parse(bytes: &[u8]) -> Result<TurnRequest, ApiError> {
    let body: Body = read(bytes)?;
    let items = match body.input {
        Value::String(text) => vec![json!({ "role": "user", "content": text })],
        Value::Array(items) if !items.is_empty() => items,
        Value::Array(_) => return Err(ApiError::field("input", "must not be empty")),
        _ => return Err(ApiError::field("input", "must be a string or a list of items")),
    };
    let metadata = body.metadata.unwrap_or_default();
    check_metadata(&metadata)?;
    let named = conversation(body.conversation)?;
    if named.is_some() && body.previous_response_id.is_some() {
        let problem = "cannot be used together with previous_response_id";
        return Err(ApiError::field("conversation", problem));
    }
    let previous = body.previous_response_id.map(|id| {
        let known = ResponseId::parse(&id);
        known.ok_or_else(previous_not_found)
    });
    let tool_choice = body.tool_choice.clone().unwrap_or_else(|| "auto".into());
    let offer = Offer::of_responses(body.tools, body.tool_choice)?;
    let format = body.text.and_then(|Object(text)| text.format);
    let echoed = format.as_ref().map_or_else(|| json!({ "type": "text" }), |Object(format)| format.echoed());
    let schema = schema(format)?;
    let is_too_long = bytes.len() > MAX_BYTES_EACH;
    let is_wanted = body.store.unwrap_or(true);
    let is_background = body.background.unwrap_or(false);
    if is_background && (!is_wanted || is_too_long) {
        let problem = format!("needs `store`, and a request of at most {MAX_BYTES_EACH} bytes");
        return Err(ApiError::field("background", problem));
    }
    let asked = Asked {
        id: ResponseId::new(),
        previous: previous.transpose()?,
        is_stored: is_wanted && !is_too_long,
        is_background,
        is_too_long: is_wanted && is_too_long,
        named: named.clone(),
        instructions: body.instructions,
        format: echoed,
        tools: offer.tools.iter().map(|tool| function(tool, &offer.strict)).collect(),
        tool_choice,
        metadata,
        user: body.user.clone(),
        instruction: offer.choice.instruction(),
        tools_left_out: offer.left_out,
        items,
        system: String::new(),
    };
    let is_whole = !asked.needs_others();
    let mut request = TurnRequest {
        dialect: Dialect::Responses,
        stream: body.stream.unwrap_or(false),
        user: body.user,
        conversation: named,
        options: TurnOptions {
            model: Some(checked_model("model", body.model.clone())?),
            tools: offer.tools,
            output_schema: schema.as_ref().map(|schema| schema.value().clone()),
            ..TurnOptions::default()
        },
        expected: Expected::of(schema, offer.choice, offer.strict),
        model: body.model,
        response: Some(Box::new(asked)),
        ..TurnRequest::default()
    };
    if is_whole {
        request.complete(None)?;
    }
    Ok(request)
}

impl Format {
    /// Clients read from the response what its text is.
    fn echoed(&self) -> Value {
        let mut fields = self.more.clone();
        fields.insert("type".to_owned(), self.r#type.clone().into());
        if let Some(schema) = &self.schema {
            fields.insert("schema".to_owned(), schema.clone());
        }
        Value::Object(fields)
    }
}

/// A tool that the model was offered.
fn function(tool: &CallerTool, strict: &[String]) -> Value {
    json!({
        "type": "function", "name": tool.name(), "description": tool.description(),
        "parameters": tool.input_schema(), "strict": strict.iter().any(|name| name == tool.name()),
    })
}

fn schema(format: Option<Object<Format>>) -> Result<Option<Schema>, ApiError> {
    let Some(Object(Format { r#type, schema, .. })) = format else { return Ok(None) };
    match (r#type.as_str(), schema) {
        ("text", _) => Ok(None),
        ("json_object", _) => Ok(Some(Schema::any())),
        ("json_schema", Some(schema)) => Schema::read(schema, "text.format.schema").map(Some),
        ("json_schema", None) => Err(ApiError::field("text.format.schema", "is missing")),
        _ => Err(ApiError::field("text.format.type", "must be text, json_object or json_schema")),
    }
}

/// No such response, or one of another user: nobody learns which.
pub(crate) fn previous_not_found() -> ApiError {
    let message = "previous_response_id: there is no such response; it may be too old, or have been deleted";
    ApiError::new(StatusCode::NOT_FOUND, "previous_response_not_found", message).about("previous_response_id")
}

fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let (most, longest_key, longest_value) = METADATA;
    let is_long = |text: &str, most: usize| text.chars().nth(most).is_some();
    let long = |(key, value): (&String, &String)| is_long(key, longest_key) || is_long(value, longest_value);
    if metadata.len() > most || metadata.iter().any(long) {
        let problem =
            format!("must have at most {most} pairs, of {longest_key} and {longest_value} characters");
        return Err(ApiError::field("metadata", problem));
    }
    Ok(())
}

/// `conversation` is an id or an object with one.
fn conversation(named: Option<Value>) -> Result<Option<String>, ApiError> {
    match named {
        None => Ok(None),
        Some(Value::String(name)) => Ok(Some(name)),
        Some(Value::Object(mut fields)) => match fields.remove("id") {
            Some(Value::String(name)) => Ok(Some(name)),
            _ => Err(ApiError::field("conversation.id", "must be a string")),
        },
        Some(_) => Err(ApiError::field("conversation", "must be a string or an object with an `id`")),
    }
}

impl Asked {
    /// Whether stored responses are needed to complete the request.
    pub(crate) fn needs_others(&self) -> bool {
        self.previous.is_some() || self.items.iter().any(|item| item["type"] == "item_reference")
    }
}

impl TurnRequest {
    /// Completes a request for a response: history, system prompt, message.
    pub(crate) fn complete(&mut self, former: Option<Former>) -> Result<(), ApiError> {
        let Some(asked) = &mut self.response else { return Ok(()) };
        let sent = std::mem::take(&mut asked.items);
        if asked.is_stored {
            asked.items = items::listed(sent.clone(), &asked.id);
        }
        let mut own = items::messages(sent, Origin::Request)?;
        let last = take_last(&mut own.messages)?;
        let (digest, mut system, chain) = match former {
            Some(Former { digest, system, items }) => (Some(digest), system, Some(items)),
            None => (None, String::new(), None),
        };
        for text in &own.system {
            join(&mut system, text);
        }
        let mut whole = asked.instructions.clone().unwrap_or_default();
        join(&mut whole, &system);
        asked.system = system;
        let last = Message { role: Role::User, content: last };
        self.history_digest =
            Some(HistoryDigest::following(digest.as_deref(), &own.messages, &last, Some(&whole)));
        let is_known = !matches!(chain, Some(None));
        let mut all = match chain.flatten() {
            Some(items) => items::messages(items, Origin::Stored)?.messages,
            None => Vec::new(),
        };
        all.append(&mut own.messages);
        let results = tools::results(&all, &last.content, "input").map_err(|error| error.at("input"))?;
        let prompt = match results {
            Some(results) => {
                // Where no turn waits for them they are the end of the history.
                all.push(last);
                Prompt::ToolResults(results)
            }
            None => message::prompt(last.content, "input").map_err(|error| error.at("input"))?,
        };
        let all = if is_known { all } else { Vec::new() };
        let BroughtIn { history, left_out } = bring_in(all).map_err(|error| error.at("input"))?;
        self.left_out = own.left_out.iter().map(|kind| format!("input.{kind}")).collect();
        let parts = left_out.iter().map(|name| name.replacen("messages.", "input.", 1));
        self.left_out.extend(parts);
        self.left_out.append(&mut asked.tools_left_out);
        self.left_out.extend(asked.is_too_long.then(|| "store".to_owned()));
        self.options.history = history;
        self.options.system_prompt = Some(whole);
        self.prompt = match asked.instruction.take() {
            Some(instruction) => tools::instruct(prompt, instruction),
            None => prompt,
        };
        Ok(())
    }
}

fn join(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(more);
}

/// Removes the last message, which must be the user's.
fn take_last(messages: &mut Vec<Message>) -> Result<Content, ApiError> {
    match messages.pop() {
        Some(Message { role: Role::User, content }) => Ok(content),
        _ => Err(ApiError::field("input", "the last message must be the user's")),
    }
}
