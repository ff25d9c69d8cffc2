//! A request of the Messages API: read, checked, translated. Pure.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::config::SessionConfig;
use crate::http::dialect::message::{
    Content, Message, Object, Role, checked_model, given, prompt, read, take_last,
};
use crate::http::dialect::preamble::fold;
use crate::http::dialect::{Asked, AskedServers, Dialect, is_text, picture};
use crate::http::error::ApiError;
use crate::http::history::Told;
use crate::turn::TurnOptions;

/// The body as it is sent; unknown fields are ignored.
#[derive(Deserialize)]
struct Body {
    model: String,
    max_tokens: u64,
    messages: Vec<Object<Message>>,
    system: Option<Content>,
    stream: Option<bool>,
    metadata: Option<Object<Metadata>>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u64>,
    stop_sequences: Option<Vec<String>>,
    tools: Option<Vec<Map<String, Value>>>,
    tool_choice: Option<Map<String, Value>>,
    thinking: Option<Map<String, Value>>,
    mcp_servers: Option<Value>,
}

#[derive(Deserialize)]
struct Metadata {
    user_id: Option<String>,
}

/// Reads a body.
pub(in crate::http) fn parse(bytes: &[u8], limits: &SessionConfig) -> Result<Asked, ApiError> {
    let body: Body = read(bytes)?;
    if body.max_tokens == 0 {
        return Err(ApiError::field("max_tokens", "must be at least 1"));
    }
    let ignored = ignored(&body);
    let system = body.system.map(system).transpose()?;
    let mut history = messages(body.messages)?;
    let (last, at) = take_last(&mut history)?;
    if let Content::Blocks(blocks) = &last {
        blocks.iter().enumerate().try_for_each(|(index, block)| {
            check_block(block)
                .map_err(|problem| ApiError::field(format_args!("{at}.content[{index}]"), problem))
        })?;
    }
    let last = Message { role: Role::User, content: last };
    let system = system.unwrap_or_default();
    let told = Told::of(&history, &last, Some(&system));
    Ok(Asked {
        dialect: Dialect::Anthropic,
        stream: body.stream.unwrap_or(false),
        prompt: prompt(last.content, &at)?,
        options: TurnOptions {
            model: Some(checked_model("model", body.model.clone())?),
            // Each request says all of it: none is said as well.
            system_prompt: Some(system),
            preamble: fold(&history, limits.prompt_limit),
            ..TurnOptions::default()
        },
        user: body.metadata.and_then(|Object(metadata)| metadata.user_id),
        mcp_servers: AskedServers::read(body.mcp_servers)?,
        model: body.model,
        ignored,
        told: Some(told),
        ..Asked::default()
    })
}

/// Without a counterpart in the CLI.
fn ignored(body: &Body) -> Vec<&'static str> {
    given(&[
        ("temperature", body.temperature.is_some()),
        ("top_p", body.top_p.is_some()),
        ("top_k", body.top_k.is_some()),
        ("stop_sequences", body.stop_sequences.as_ref().is_some_and(|all| !all.is_empty())),
        ("tools", body.tools.as_ref().is_some_and(|all| !all.is_empty())),
        ("tool_choice", body.tool_choice.is_some()),
        ("thinking", body.thinking.is_some()),
    ])
}

fn system(content: Content) -> Result<String, ApiError> {
    if !is_text(&content) {
        return Err(ApiError::field("system", "must be text or a list of text blocks"));
    }
    Ok(content.texts("\n\n"))
}

fn messages(all: Vec<Object<Message>>) -> Result<Vec<Message>, ApiError> {
    let checked = all.into_iter().enumerate().map(|(index, Object(message))| {
        if message.role == Role::System {
            let path = format!("messages[{index}].role");
            return Err(ApiError::field(
                path,
                "must be user or assistant; a system prompt goes into `system`",
            ));
        }
        Ok(message)
    });
    checked.collect()
}

/// What the CLI takes from a user.
fn check_block(block: &Value) -> Result<(), &'static str> {
    match block.get("type").and_then(Value::as_str) {
        Some("text") => match block.get("text") {
            Some(Value::String(_)) => Ok(()),
            _ => Err("a text block needs a `text`, which must be a string"),
        },
        Some("image") => picture::check(block),
        Some("document") => match block.get("source") {
            Some(Value::Object(source)) if source.get("type").is_some_and(Value::is_string) => Ok(()),
            _ => Err("a document block needs a `source` with a `type`"),
        },
        Some("tool_result" | "tool_use") => {
            Err("tools of the caller have no counterpart here; the CLI runs its own")
        }
        Some(_) => Err("must be a block of type text, image or document"),
        None => Err("must be an object with a `type`"),
    }
}

/// An estimate of the tokens of a request: four characters of text each, and a fixed number for a picture.
pub(in crate::http) fn count(bytes: &[u8]) -> Result<u64, ApiError> {
    #[derive(Deserialize)]
    struct Counted {
        model: String,
        messages: Vec<Object<Message>>,
        system: Option<Content>,
        tools: Option<Vec<Map<String, Value>>>,
        #[serde(rename = "tool_choice")]
        _tool_choice: Option<IgnoredAny>,
    }
    /// The API's own estimate for a picture of a megapixel.
    const PICTURE: usize = 1600;
    const CHARACTERS_PER_TOKEN: usize = 4;
    /// Role and separators.
    const PER_MESSAGE: usize = 3;

    let body: Counted = read(bytes)?;
    checked_model("model", body.model)?;
    let messages = messages(body.messages)?;
    if messages.is_empty() {
        return Err(ApiError::field("messages", "must not be empty"));
    }
    let block = |block: &Value| match block.get("type").and_then(Value::as_str) {
        Some("image" | "document") => PICTURE * CHARACTERS_PER_TOKEN,
        Some("text") => block.get("text").and_then(Value::as_str).map_or(0, |text| text.chars().count()),
        _ => block.to_string().len(),
    };
    let content = |content: &Content| match content {
        Content::Text(text) => text.chars().count(),
        Content::Blocks(blocks) => blocks.iter().map(block).sum(),
    };
    let characters: usize = messages.iter().map(|message| content(&message.content)).sum::<usize>()
        + body.system.as_ref().map_or(0, content)
        + body
            .tools
            .iter()
            .flatten()
            .map(|tool| Value::Object(tool.clone()).to_string().len())
            .sum::<usize>();
    let tokens = characters.div_ceil(CHARACTERS_PER_TOKEN) + messages.len() * PER_MESSAGE;
    Ok(u64::try_from(tokens).unwrap_or(u64::MAX))
}
