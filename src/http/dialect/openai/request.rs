//! A request of the Chat Completions API: read, checked, translated. Pure.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::SessionConfig;
use crate::http::dialect::message::{Content, Message, Object, Role, checked_model, prompt, read, take_last};
use crate::http::dialect::preamble::fold;
use crate::http::dialect::{Asked, Dialect, picture};
use crate::http::error::ApiError;
use crate::http::history::Told;
use crate::turn::TurnOptions;

/// What is read of a body; the rest is judged by the table of the dialect.
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

#[derive(Deserialize)]
struct Sent {
    role: SentRole,
    content: Option<Content>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum SentRole {
    System,
    Developer,
    User,
    Assistant,
    Tool,
    Function,
}

/// Reads a body.
pub(in crate::http) fn parse(bytes: &[u8], limits: &SessionConfig) -> Result<Asked, ApiError> {
    let body: Body = read(bytes)?;
    if body.n.is_some_and(|n| n != 1) {
        return Err(ApiError::field("n", "must be 1"));
    }
    let (system, mut history) = messages(body.messages)?;
    let (last, at) = take_last(&mut history)?;
    let last = Message { role: Role::User, content: last };
    let told = Told::of(&history, &last, Some(&system));
    Ok(Asked {
        dialect: Dialect::OpenAi,
        stream: body.stream.unwrap_or(false),
        prompt: prompt(last.content, &at)?,
        options: TurnOptions {
            model: Some(checked_model("model", body.model.clone())?),
            system_prompt: Some(system),
            preamble: fold(&history, limits.prompt_limit),
            ..TurnOptions::default()
        },
        user: body.user,
        model: body.model,
        include_usage: body.stream_options.is_some_and(|Object(options)| options.include_usage == Some(true)),
        told: Some(told),
        ..Asked::default()
    })
}

/// The system prompt, and the messages of the conversation.
fn messages(all: Vec<Object<Sent>>) -> Result<(String, Vec<Message>), ApiError> {
    let (mut system, mut messages) = (Vec::new(), Vec::new());
    let count = all.len();
    for (index, Object(sent)) in all.into_iter().enumerate() {
        let at = format!("messages[{index}].content");
        let content = match (sent.content, sent.role) {
            (Some(content), _) => translate(content, &at)?,
            // What called tools of the caller may have no text.
            (None, SentRole::Assistant) => Content::Text(String::new()),
            (None, _) => return Err(ApiError::field(at, "is missing")),
        };
        let role = match sent.role {
            SentRole::System | SentRole::Developer => {
                system.push(content.texts("\n\n"));
                continue;
            }
            SentRole::User => Role::User,
            SentRole::Assistant => Role::Assistant,
            SentRole::Tool | SentRole::Function if index + 1 == count => {
                let path = format!("messages[{index}].role");
                let problem = "tools of the caller have no counterpart here; the CLI runs its own";
                return Err(ApiError::field(path, problem));
            }
            SentRole::Tool | SentRole::Function => Role::User,
        };
        messages.push(Message { role, content });
    }
    Ok((system.join("\n\n"), messages))
}

/// Content parts as blocks of the Messages API.
fn translate(content: Content, at: &str) -> Result<Content, ApiError> {
    let Content::Blocks(parts) = content else { return Ok(content) };
    let blocks = parts.iter().enumerate().map(|(index, part)| {
        block(part).map_err(|problem| ApiError::field(format_args!("{at}[{index}]"), problem))
    });
    Ok(Content::Blocks(blocks.collect::<Result<_, _>>()?))
}

fn block(part: &Value) -> Result<Value, &'static str> {
    match part.get("type").and_then(Value::as_str) {
        Some("text") => match part.get("text") {
            Some(Value::String(text)) => Ok(json!({ "type": "text", "text": text })),
            _ => Err("a text part needs a `text`, which must be a string"),
        },
        Some("refusal") => match part.get("refusal") {
            Some(Value::String(text)) => Ok(json!({ "type": "text", "text": text })),
            _ => Err("a refusal part needs a `refusal`, which must be a string"),
        },
        Some("image_url") => {
            let url = part["image_url"].get("url").and_then(Value::as_str);
            let url = url.ok_or("an image_url part needs `image_url.url`")?;
            let source = match url.strip_prefix("data:").and_then(|data| data.split_once(";base64,")) {
                Some((media_type, data)) => {
                    json!({ "type": "base64", "media_type": media_type, "data": data })
                }
                None => json!({ "type": "url", "url": url }),
            };
            let block = json!({ "type": "image", "source": source });
            picture::check(&block)?;
            Ok(block)
        }
        Some(_) => Err("must be a part of type text or image_url"),
        None => Err("must be an object with a `type`"),
    }
}
