//! User messages to the CLI.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

use super::caller_tools;
use super::control::line;
#[cfg(doc)]
use crate::adapter::LineKind;
use crate::config::SlashCommands;
use crate::model::{Prompt, PromptRefused};

/// First character of a command of the CLI.
const COMMAND: char = '/';

/// Prefix that makes a command plain text.
const PLAIN: &str = " ";

#[derive(Serialize)]
struct UserLine<'a> {
    r#type: &'static str,
    message: Message<'a>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Content<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(Cow<'a, str>),
    Blocks(Vec<Cow<'a, Value>>),
}

/// Adds an id to a user message, which the CLI repeats in a [`LineKind::Echo`] when it takes the message up. With the priority `later`: otherwise the CLI adds it to a turn of its own that uses a tool,
/// and the message gets no turn.
pub(crate) fn with_message_id(line: &[u8], id: &str) -> Vec<u8> {
    let Some(rest) = line.strip_prefix(b"{") else { return line.to_vec() };
    let fields = format!("{{\"uuid\":{},\"priority\":\"later\",", Value::from(id));
    [fields.as_bytes(), rest].concat()
}

/// One user message. It has no `uuid`: the CLI silently drops a message with a known id.
///
/// # Errors
/// If the prompt may not be sent (see [`PromptRefused`]).
pub(crate) fn encode_turn(prompt: &Prompt, commands: SlashCommands) -> Result<Vec<u8>, PromptRefused> {
    let content = match prompt {
        Prompt::Text(text) => Content::Text(as_text(text, commands)?),
        Prompt::Blocks(blocks) => Content::Blocks(as_blocks(blocks, commands)?),
        Prompt::ToolResults(results) => {
            let message = caller_tools::as_message(results);
            // Text of a result is never a command.
            let blocks = as_blocks(&message, SlashCommands::Text)?;
            Content::Blocks(blocks.into_iter().map(|block| Cow::Owned(block.into_owned())).collect())
        }
    };
    Ok(line(&UserLine { r#type: "user", message: Message { role: "user", content } }))
}

fn as_text(text: &str, commands: SlashCommands) -> Result<Cow<'_, str>, PromptRefused> {
    match commands {
        _ if !text.starts_with(COMMAND) => Ok(Cow::Borrowed(text)),
        SlashCommands::Pass => Ok(Cow::Borrowed(text)),
        SlashCommands::Text => Ok(Cow::Owned(format!("{PLAIN}{text}"))),
        SlashCommands::Refuse => Err(PromptRefused::SlashCommand),
    }
}

/// Treats the last text block as a possible command: the CLI takes commands from the last block.
fn as_blocks(blocks: &[Value], commands: SlashCommands) -> Result<Vec<Cow<'_, Value>>, PromptRefused> {
    for (index, block) in blocks.iter().enumerate() {
        if let Some(problem) = problem(block) {
            return Err(PromptRefused::Block { index, problem });
        }
    }
    let mut content: Vec<Cow<'_, Value>> = blocks.iter().map(Cow::Borrowed).collect();
    let last_text = blocks.iter().enumerate().rev().find_map(|(at, block)| Some((at, text_of(block)?)));
    if let Some((at, text)) = last_text
        && let Cow::Owned(text) = as_text(text, commands)?
        && let Some(block) = content.get_mut(at)
    {
        block.to_mut()["text"] = text.into();
    }
    Ok(content)
}

fn text_of(block: &Value) -> Option<&str> {
    (block.get("type")? == "text").then(|| block.get("text")?.as_str())?
}

/// Error of a block. Strict, because the CLI keeps every block: one that the API refuses fails all later turns of the
/// conversation.
fn problem(block: &Value) -> Option<&'static str> {
    let Some(fields) = block.as_object() else { return Some("not a JSON object") };
    let is_text = |value: Option<&Value>| value.is_some_and(Value::is_string);
    match fields.get("type").and_then(Value::as_str) {
        None => Some("without a type"),
        Some("text") if is_text(fields.get("text")) => None,
        Some("text") => Some("a text without text"),
        Some("image" | "document") => {
            let Some(source) = fields.get("source").and_then(Value::as_object) else {
                return Some("without a source");
            };
            let complete = match source.get("type").and_then(Value::as_str) {
                Some("base64" | "text") => is_text(source.get("media_type")) && is_text(source.get("data")),
                Some("url") => is_text(source.get("url")),
                Some("file") => is_text(source.get("file_id")),
                Some("content") => {
                    source.get("content").is_some_and(|value| value.is_string() || value.is_array())
                }
                _ => false,
            };
            (!complete).then_some("with a source that is incomplete or of an unknown type")
        }
        Some(_) => Some("of a type that a prompt cannot have (text, image or document)"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::control::tests::parse;
    use super::*;

    fn content(prompt: Prompt, commands: SlashCommands) -> Result<Value, PromptRefused> {
        encode_turn(&prompt, commands).map(|line| parse(&line)["message"]["content"].clone())
    }

    #[test]
    fn prompt_is_one_user_message_without_id() {
        let line = encode_turn(&"two\nlines \u{2028}\0".into(), SlashCommands::Text).unwrap();
        assert_eq!(
            parse(&line),
            json!({"type": "user", "message": {"role": "user", "content": "two\nlines \u{2028}\0"}})
        );
    }

    #[test]
    fn message_id_changes_nothing_else() {
        let plain = encode_turn(&"{\"uuid\"".into(), SlashCommands::Text).unwrap();
        let mut marked = parse(&with_message_id(&plain, "an \"id\""));
        let fields = marked.as_object_mut().unwrap();
        assert_eq!(fields.remove("uuid"), Some("an \"id\"".into()));
        assert_eq!(fields.remove("priority"), Some("later".into()));
        assert_eq!(marked, parse(&plain));
    }

    #[test]
    fn commands_are_text_unless_configured() {
        use SlashCommands::{Pass, Refuse, Text};
        assert_eq!(content("/clear".into(), Text).unwrap(), " /clear");
        assert_eq!(content("/clear".into(), Pass).unwrap(), "/clear");
        assert_eq!(content("/clear".into(), Refuse), Err(PromptRefused::SlashCommand));
        for text in ["", " /clear", "\n/clear", "a/b"] {
            assert_eq!(content(text.into(), Refuse).unwrap(), text);
        }
    }

    #[test]
    fn only_the_last_text_block_is_escaped() {
        let text = |text: &str| json!({"type": "text", "text": text});
        let image =
            json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}});
        let blocks = |blocks: Vec<Value>| content(Prompt::Blocks(blocks), SlashCommands::Text).unwrap();
        assert_eq!(blocks(vec![text("/a"), text("/b")]), json!([text("/a"), text(" /b")]));
        assert_eq!(blocks(vec![text("/a"), image.clone()]), json!([text(" /a"), image]));
        assert_eq!(blocks(vec![text("/a"), text("b")]), json!([text("/a"), text("b")]));
        assert_eq!(blocks(vec![]), json!([]));
        let refused = content(Prompt::Blocks(vec![text("a"), text("/b")]), SlashCommands::Refuse);
        assert_eq!(refused, Err(PromptRefused::SlashCommand));
    }

    #[test]
    fn invalid_blocks_are_refused() {
        let bad = [
            json!(null),
            json!("text"),
            json!({}),
            json!({"type": 7}),
            json!({"type": "text"}),
            json!({"type": "text", "text": null}),
            json!({"type": "image"}),
            json!({"type": "image", "source": null}),
            json!({"type": "image", "source": {"type": "base64", "media_type": 5, "data": 7}}),
            json!({"type": "document", "source": {"type": "zzz"}}),
            json!({"type": "tool_result", "content": 5}),
            json!({"type": "zzz"}),
        ];
        for block in bad {
            let result = content(
                Prompt::Blocks(vec![json!({"type": "text", "text": "a"}), block.clone()]),
                SlashCommands::Text,
            );
            assert!(matches!(result, Err(PromptRefused::Block { index: 1, .. })), "{block}");
        }
        for source in [
            json!({"type": "url", "url": "https://x"}),
            json!({"type": "file", "file_id": "f"}),
            json!({"type": "text", "media_type": "text/plain", "data": "x"}),
            json!({"type": "content", "content": []}),
        ] {
            assert!(
                content(
                    Prompt::Blocks(vec![json!({"type": "document", "source": source})]),
                    SlashCommands::Text
                )
                .is_ok()
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_encoded_in_one_line(text: String) {
            let sent = content(text.as_str().into(), SlashCommands::Pass).unwrap();
            prop_assert_eq!(sent.as_str(), Some(text.as_str()));
            let sent = content(text.as_str().into(), SlashCommands::Text).unwrap();
            prop_assert!(!sent.as_str().unwrap().starts_with('/'));
            prop_assert_eq!(sent.as_str().unwrap().trim_start(), text.trim_start());
        }
    }
}
