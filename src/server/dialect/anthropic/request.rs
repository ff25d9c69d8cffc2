//! Parser of the Messages API. Pure.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::client;
use crate::server::api::error::ApiError;
use crate::server::dialect::expected::Schema;
use crate::server::dialect::message::{Content, Message, Object, Role, checked_model, read, take_last};
use crate::server::dialect::tools::{AnthropicChoice, AnthropicTool, Offer};
use crate::server::dialect::{Dialect, RequestedServers, TurnRequest, image, is_text};

/// Fields read from a body; the table of the dialect classifies the rest.
#[derive(Deserialize)]
struct Body {
    model: String,
    max_tokens: u64,
    messages: Vec<Object<Message>>,
    system: Option<Content>,
    stream: Option<bool>,
    metadata: Option<Object<Metadata>>,
    mcp_servers: Option<Value>,
    tools: Option<Vec<Object<AnthropicTool>>>,
    tool_choice: Option<Object<AnthropicChoice>>,
    output_config: Option<Object<OutputConfig>>,
    /// The form of the beta.
    output_format: Option<Object<OutputFormat>>,
}

#[derive(Deserialize)]
struct OutputConfig {
    format: Option<Object<OutputFormat>>,
}

#[derive(Deserialize)]
struct OutputFormat {
    r#type: String,
    schema: Option<Value>,
}

/// The schema that the answer is to match.
fn schema(format: Option<Object<OutputFormat>>, at: &str) -> Result<Option<Schema>, ApiError> {
    let Some(Object(OutputFormat { r#type, schema })) = format else { return Ok(None) };
    if r#type != "json_schema" {
        return Err(ApiError::field(format_args!("{at}.type"), "must be json_schema"));
    }
    let at = format!("{at}.schema");
    let schema = schema.ok_or_else(|| ApiError::field(&at, "is missing"))?;
    Schema::read(schema, &at).map(Some)
}

#[derive(Deserialize)]
struct Metadata {
    user_id: Option<String>,
}

pub(crate) fn parse(bytes: &[u8]) -> Result<TurnRequest, ApiError> {
    let body: Body = read(bytes)?;
    if body.max_tokens == 0 {
        return Err(ApiError::field("max_tokens", "must be at least 1"));
    }
    let mut system = body.system.map(system).transpose()?.unwrap_or_default();
    let (mut history, at) = messages(body.messages, &mut system)?;
    let (last, _) = take_last(&mut history).map_err(|error| match history.len() {
        0 => error,
        _ => error.at(format_args!("{at}.role")),
    })?;
    let system = system.join("\n\n");
    if let Content::Blocks(blocks) = &last {
        blocks.iter().enumerate().try_for_each(|(index, block)| {
            check_block(block)
                .map_err(|problem| ApiError::field(format_args!("{at}.content[{index}]"), problem))
        })?;
    }
    let offer = Offer::of_anthropic(body.tools, body.tool_choice)?;
    let format = body.output_config.and_then(|Object(config)| config.format);
    let schema = match schema(format, "output_config.format")? {
        Some(schema) => Some(schema),
        None => self::schema(body.output_format, "output_format")?,
    };
    let user = body.metadata.and_then(|Object(metadata)| metadata.user_id);
    let client = user.as_deref().and_then(client::of);
    Ok(TurnRequest {
        dialect: Dialect::Anthropic,
        stream: body.stream.unwrap_or(false),
        user: user.filter(|_| client.is_none()),
        client,
        mcp_servers: RequestedServers::read(body.mcp_servers)?,
        ..TurnRequest::of_history(body.model, system, history, last, &at, offer, schema)?
    })
}

/// Prefix that `claude` puts first into its system prompt for the API's accounting. The session's own CLI sends its
/// own.
const BILLING: &str = "x-anthropic-billing-header:";

fn system(content: Content) -> Result<Vec<String>, ApiError> {
    if !is_text(&content) {
        return Err(ApiError::field("system", "must be text or a list of text blocks"));
    }
    Ok(texts(content))
}

fn texts(content: Content) -> Vec<String> {
    let all = match content {
        Content::Text(text) => vec![text],
        Content::Blocks(blocks) => {
            let texts = blocks.iter().filter_map(|block| block.get("text")?.as_str().map(str::to_owned));
            texts.filter(|text| !text.starts_with(BILLING)).collect()
        }
    };
    all.into_iter().filter(|text| !text.is_empty()).collect()
}

/// Messages of the conversation, and the position of the last. System messages extend the system prompt in order:
/// clients repeat them with each request.
fn messages(all: Vec<Object<Message>>, system: &mut Vec<String>) -> Result<(Vec<Message>, String), ApiError> {
    let (mut messages, mut last) = (Vec::with_capacity(all.len()), 0);
    for (index, Object(message)) in all.into_iter().enumerate() {
        if message.role != Role::System {
            last = index;
            messages.push(message);
        } else if is_text(&message.content) {
            system.extend(texts(message.content));
        } else {
            let path = format!("messages[{index}].content");
            return Err(ApiError::field(
                path,
                "must be text or a list of text blocks, for it is the system's",
            ));
        }
    }
    Ok((messages, format!("messages[{last}]")))
}

/// Checks the blocks that the CLI accepts from a user.
fn check_block(block: &Value) -> Result<(), &'static str> {
    match block.get("type").and_then(Value::as_str) {
        Some("text") => match block.get("text") {
            Some(Value::String(_)) => Ok(()),
            _ => Err("a text block needs a `text`, which must be a string"),
        },
        Some("image") => image::check(&block["source"]),
        Some("document") => match block.get("source") {
            Some(Value::Object(source)) if source.get("type").is_some_and(Value::is_string) => Ok(()),
            _ => Err("a document block needs a `source` with a `type`"),
        },
        // Checked where it is read.
        Some("tool_result") => Ok(()),
        Some(_) => Err("must be a block of type text, image, document or tool_result"),
        None => Err("must be an object with a `type`"),
    }
}

/// Estimates the tokens of a request: four characters of text per token, and a fixed number per image.
pub(crate) fn count(bytes: &[u8]) -> Result<u64, ApiError> {
    #[derive(Deserialize)]
    struct Counted {
        model: String,
        messages: Vec<Object<Message>>,
        system: Option<Content>,
        tools: Option<Vec<Map<String, Value>>>,
        #[serde(rename = "tool_choice")]
        _tool_choice: Option<IgnoredAny>,
    }
    /// The API's estimate for an image of a megapixel.
    const PICTURE: usize = 1600;
    const CHARACTERS_PER_TOKEN: usize = 4;
    /// Role and separators.
    const PER_MESSAGE: usize = 3;

    let body: Counted = read(bytes)?;
    checked_model("model", body.model)?;
    let mut system = body.system.map(system).transpose()?.unwrap_or_default();
    let (messages, _) = messages(body.messages, &mut system)?;
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
        + system.iter().map(|text| text.chars().count()).sum::<usize>()
        + body
            .tools
            .iter()
            .flatten()
            .map(|tool| Value::Object(tool.clone()).to_string().len())
            .sum::<usize>();
    let tokens = characters.div_ceil(CHARACTERS_PER_TOKEN) + messages.len() * PER_MESSAGE;
    Ok(u64::try_from(tokens).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(system: Value, messages: Value) -> Result<TurnRequest, String> {
        let body = json!({ "model": "sonnet", "max_tokens": 9, "system": system, "messages": messages });
        parse(body.to_string().as_bytes()).map_err(|error| format!("{error:?}"))
    }

    #[test]
    fn system_message_extends_the_system_prompt() {
        let billing =
            json!({ "type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.332.bd3;" });
        let cached = json!({ "type": "ephemeral" });
        let system = json!([billing, { "type": "text", "text": "one", "cache_control": cached }]);
        let first = json!({ "role": "user", "content": "a" });
        let said = json!({ "role": "system", "output_config": { "effort": "high" },
            "content": [{ "type": "text", "text": "two", "cache_control": cached }] });
        let begun = request(system.clone(), json!([first, said])).unwrap();
        assert_eq!(begun.options.system_prompt.as_deref(), Some("one\n\ntwo"));
        assert!(begun.prompt == crate::model::Prompt::Text("a".into()) && begun.options.history.is_none());

        let answer = json!({ "role": "assistant", "content": "b" });
        let next = json!({ "role": "user", "content": "c" });
        let continued = request(system, json!([first, said, answer, next])).unwrap();
        assert_eq!(continued.options.system_prompt, begun.options.system_prompt);
        let history =
            serde_json::to_string(&continued.options.history.unwrap().messages()[0].content).unwrap();
        assert!(!history.contains("two"), "it is no part of the history");
        let plain = request(json!("one\n\ntwo"), json!([first, answer, next])).unwrap();
        assert_eq!(format!("{:?}", plain.history_digest), format!("{:?}", continued.history_digest));
    }

    #[test]
    fn invalid_system_message_is_named() {
        let image = json!({ "type": "image", "source": { "type": "url", "url": "https://h" } });
        let user = json!({ "role": "user", "content": "a" });
        let system = |content: Value| json!({ "role": "system", "content": content });
        for (messages, named) in [
            (json!([system(json!("a"))]), "messages: must not be empty"),
            (json!([user, system(json!([image]))]), "messages[1].content: must be text"),
            (json!([system(json!("s")), user, { "role": "assistant", "content": "b" }]), "messages[2].role"),
            (json!([system(json!("s")), { "role": "user", "content": " " }]), "messages[1].content"),
        ] {
            let error = request(json!(null), messages.clone()).err().unwrap();
            assert!(error.contains(named), "{messages} gave {error}");
        }
    }
}
