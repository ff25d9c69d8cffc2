//! The body of a turn in the original dialect: read, checked, translated. Pure.
//!
//! Every refusal names the field. Values are not repeated in refusals: they may be credentials.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::error::ApiError;
use super::mcp::{McpServer, translate};
use super::preamble::fold;
use crate::config::SessionConfig;
use crate::session::OauthCredentials;
use crate::turn::{Prompt, TurnOptions, is_model_name};

/// What a caller asks for.
pub(super) struct Asked {
    pub(super) prompt: Prompt,
    pub(super) options: TurnOptions,
    pub(super) conversation: Option<String>,
    pub(super) credentials: Option<OauthCredentials>,
    pub(super) include_files: bool,
    /// Fields that are understood but have no effect here.
    pub(super) ignored: Vec<&'static str>,
}

/// The body as it is sent; unknown fields are ignored.
#[derive(Deserialize)]
struct Body {
    messages: Vec<Object<Message>>,
    oauth_credentials: Option<Object<OauthCredentials>>,
    session_id: Option<String>,
    model: Option<String>,
    mcp_servers: Option<BTreeMap<String, Object<McpServer>>>,
    fallback_model: Option<String>,
    thinking: Option<bool>,
    include_files: Option<bool>,
}

/// One message of the history.
#[derive(Deserialize)]
pub(super) struct Message {
    pub(super) role: Role,
    pub(super) content: Content,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    User,
    Assistant,
    System,
}

/// Text or content blocks.
pub(super) enum Content {
    Text(String),
    Blocks(Vec<Value>),
}

// By hand and not `untagged`: an untagged enum forgets where in the body the fault was.
impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrBlocks;
        impl<'de> Visitor<'de> for TextOrBlocks {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of content blocks")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut blocks: A) -> Result<Content, A::Error> {
                let mut all = Vec::new();
                while let Some(block) = blocks.next_element()? {
                    all.push(block);
                }
                Ok(Content::Blocks(all))
            }
        }
        deserializer.deserialize_any(TextOrBlocks)
    }
}

/// What must be written as an object. Without this a list would do as well, its values taken in the order of the
/// fields.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyMap<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMap<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(OnlyMap(PhantomData))
    }
}

/// Reads a body.
pub(super) fn parse(bytes: &[u8], limits: &SessionConfig) -> Result<Asked, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let Object(body): Object<Body> = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, error.inner())
    })?;
    json.end().map_err(|error| explain(".", &error))?;
    check(body, limits)
}

fn check(body: Body, limits: &SessionConfig) -> Result<Asked, ApiError> {
    let mut history: Vec<Message> = body.messages.into_iter().map(|Object(message)| message).collect();
    let Some(last) = history.pop() else {
        return Err(ApiError::field("messages", "must not be empty"));
    };
    let at = format!("messages[{}]", history.len());
    if last.role != Role::User {
        return Err(ApiError::field(format_args!("{at}.role"), "the last message must be the user's"));
    }
    let prompt = prompt(last.content, &at)?;
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
    let options = TurnOptions {
        model: body.model.map(|model| checked_model("model", model)).transpose()?,
        fallback_model: body
            .fallback_model
            .map(|model| checked_model("fallback_model", model))
            .transpose()?,
        mcp_servers: body
            .mcp_servers
            .map(|all| translate(all.into_iter().map(|(name, Object(one))| (name, one))))
            .transpose()?,
        preamble: fold(&history, limits.prompt_limit),
        ..TurnOptions::default()
    };
    Ok(Asked {
        prompt,
        options,
        conversation: body.session_id,
        credentials,
        include_files: body.include_files.unwrap_or(false),
        ignored: body.thinking.filter(|asked| *asked).map(|_| "thinking").into_iter().collect(),
    })
}

fn prompt(content: Content, at: &str) -> Result<Prompt, ApiError> {
    match content {
        Content::Text(text) if text.trim().is_empty() => {
            Err(ApiError::field(format_args!("{at}.content"), "must not be empty"))
        }
        Content::Text(text) => Ok(Prompt::Text(text)),
        Content::Blocks(blocks) => {
            if blocks.is_empty() {
                return Err(ApiError::field(format_args!("{at}.content"), "must not be empty"));
            }
            for (index, block) in blocks.iter().enumerate() {
                if !block.get("type").is_some_and(Value::is_string) {
                    let path = format!("{at}.content[{index}]");
                    return Err(ApiError::field(path, "must be an object with a `type`"));
                }
            }
            Ok(Prompt::Blocks(blocks))
        }
    }
}

fn checked_model(field: &str, model: String) -> Result<String, ApiError> {
    if is_model_name(&model) {
        return Ok(model);
    }
    Err(ApiError::field(field, "must be a model's name such as \"sonnet\" or a full id"))
}

fn explain(path: &str, error: &serde_json::Error) -> ApiError {
    let text = without_value(&error.to_string());
    if path == "." { ApiError::invalid("invalid_body", text) } else { ApiError::field(path, text) }
}

/// The parser's text without the value that it was given.
fn without_value(text: &str) -> String {
    for (before, after) in [(": string \"", "\", expected"), ("unknown variant `", "`, expected")] {
        if let Some(((left, _), (_, right))) = text.split_once(before).zip(text.rsplit_once(after)) {
            let what = if before.starts_with(':') { ": a string" } else { "unknown variant" };
            return format!("{left}{what}, expected{right}");
        }
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<Asked, String> {
        parse(text.as_bytes(), &SessionConfig::default()).map_err(|error| format!("{error:?}"))
    }

    #[test]
    fn only_the_last_message_is_the_prompt() {
        let asked = asked(
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},
                {"role":"user","content":[{"type":"text","text":"c"}]}],
                "session_id":"work","model":"claude-sonnet-4-5@20250929","stream":true,"thinking":true,
                "include_files":true,"mcp_servers":null,"something":{"new":[1]}}"#,
        )
        .unwrap();
        assert!(asked.prompt == Prompt::Blocks(vec![serde_json::json!({"type":"text","text":"c"})]));
        assert!(asked.options.preamble.is_some_and(|text| text.contains("User: a\n\nAssistant: b")));
        assert_eq!(asked.conversation.as_deref(), Some("work"));
        assert_eq!(asked.ignored, ["thinking"]);
        assert!(asked.include_files && asked.credentials.is_none());
    }

    #[test]
    fn credentials_have_defaults() {
        let asked = asked(
            r#"{"messages":[{"role":"user","content":"a"}],
                "oauth_credentials":{"access_token":"a","refresh_token":"r","expires_at":1}}"#,
        )
        .unwrap();
        let credentials = asked.credentials.unwrap();
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
            (
                r#"{"messages":[{"role":"user","content":"a"}],"mcp_servers":{"m":{"args":[1]}}}"#,
                "mcp_servers.m.args[0]",
            ),
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
            let error = asked(body).err().unwrap_or_else(|| panic!("{body} was accepted"));
            assert!(error.contains(named), "{body} gave {error}");
        }
        assert!(asked(&format!("{}1", "[".repeat(100_000))).is_err());
    }

    #[test]
    fn no_refusal_repeats_a_value() {
        let error = asked(
            r#"{"messages":[],"oauth_credentials":{"access_token":"a","refresh_token":"r","expires_at":"sk-\"secret"}}"#,
        );
        let error = error.err().unwrap();
        assert!(error.contains("oauth_credentials.expires_at") && !error.contains("secret"), "{error}");
        assert!(error.contains("expected i64"), "{error}");
        let error = asked(
            r#"{"messages":[],"mcp_servers":{"m":{"url":"http://m","auth_type":"a `secret`, expected"}}}"#,
        );
        let error = error.err().unwrap();
        assert!(error.contains("auth_type") && !error.contains("secret"), "{error}");
        assert!(error.contains("expected one of `jwt`"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            // The answer does not matter.
            parse(&bytes, &SessionConfig::default()).ok();
        }
    }
}
