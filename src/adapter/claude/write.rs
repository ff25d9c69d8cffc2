//! Writes the lines that go in. Every one goes through the serialiser and is exactly one line: one that the CLI cannot
//! parse ends it.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Value, json};

use crate::adapter::LaunchSettings;
use crate::config::SlashCommands;
use crate::model::{Decision, Prompt};
use crate::model::{PermissionRequest, PromptRefused};

/// Text that begins with it is a command of the CLI.
const COMMAND: char = '/';

/// Text that begins with a blank is never a command.
const PLAIN: &str = " ";

/// The answer to `initialize` is the first thing that a fresh child says, and costs no tokens. It also takes the system
/// prompt, for this process only: a resumed conversation needs it again.
pub(super) fn handshake(request_id: &str, settings: &LaunchSettings) -> Vec<u8> {
    // Else 2.1.332 keeps the first system prompt of a conversation for ever.
    let mut request = json!({"subtype": "initialize", "systemPromptSnapshot": false});
    // An empty one would not leave the default but remove it.
    if let Some(prompt) = settings.system_prompt.as_deref().filter(|prompt| !prompt.is_empty()) {
        request["systemPrompt"] = prompt.into();
    }
    line(&json!({"type": "control_request", "request_id": request_id, "request": request}))
}

/// Works also with `--strict-mcp-config`. `${VARIABLE}` is replaced in headers by some versions (2.1.197), in a file of
/// definitions everywhere by all: it must not stand there.
pub(super) fn mcp_servers(request_id: &str, settings: &LaunchSettings) -> Vec<u8> {
    let request = json!({"subtype": "mcp_set_servers", "servers": settings.mcp_servers});
    line(&json!({"type": "control_request", "request_id": request_id, "request": request}))
}

/// A control request without fields.
pub(super) fn control(request_id: &str, subtype: &str) -> Vec<u8> {
    line(&json!({"type": "control_request", "request_id": request_id, "request": {"subtype": subtype}}))
}

pub(super) fn permission_answer(request: &PermissionRequest, decision: &Decision) -> Vec<u8> {
    let answer = match decision {
        // The input is obligatory with a permission, changed or not.
        Decision::Allow { updated_input } => {
            json!({"behavior": "allow", "updatedInput": updated_input.as_ref().unwrap_or(&request.input)})
        }
        Decision::Deny { message } => json!({"behavior": "deny", "message": message}),
    };
    let response = json!({"subtype": "success", "request_id": request.request_id, "response": answer});
    line(&json!({"type": "control_response", "response": response}))
}

pub(super) fn unsupported_answer(request_id: &str, what: &str) -> Vec<u8> {
    let error = format!("this host does not support {what}");
    let response = json!({"subtype": "error", "request_id": request_id, "error": error});
    line(&json!({"type": "control_response", "response": response}))
}

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

/// The line of a message with an id. Of priority `later`, or the CLI would put it into a turn of its own that uses a tool:
/// such a message gets no answer.
pub(super) fn marked(line: &[u8], id: &str) -> Vec<u8> {
    let Some(rest) = line.strip_prefix(b"{") else { return line.to_vec() };
    let mark = format!("{{\"uuid\":{},\"priority\":\"later\",", Value::from(id));
    [mark.as_bytes(), rest].concat()
}

/// One user message. Without a `uuid`: the CLI silently drops a message whose id it has seen before.
pub(super) fn turn(prompt: &Prompt, commands: SlashCommands) -> Result<Vec<u8>, PromptRefused> {
    let content = match prompt {
        Prompt::Text(text) => Content::Text(as_text(text, commands)?),
        Prompt::Blocks(blocks) => Content::Blocks(as_blocks(blocks, commands)?),
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

/// The CLI takes a command from the last block alone; the last text is treated whether something follows it or not.
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

/// What is wrong with a block. Strict, for the CLI keeps what it was given: a block that it or the API chokes on fails
/// this turn and all later ones of the conversation.
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

/// One line with its LF. JSON escapes every control character in a string, so there is no other.
fn line(value: &impl Serialize) -> Vec<u8> {
    // Values with text keys cannot fail to serialise into memory; were it so, a line without content would do no harm.
    let mut bytes = serde_json::to_vec(value).unwrap_or_else(|_| b"{}".to_vec());
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(line: &[u8]) -> Value {
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        assert!(line.ends_with(b"\n"));
        serde_json::from_slice(line).unwrap()
    }

    fn content(prompt: Prompt, commands: SlashCommands) -> Result<Value, PromptRefused> {
        turn(&prompt, commands).map(|line| parse(&line)["message"]["content"].clone())
    }

    #[test]
    fn a_turn_is_one_user_message_without_an_id() {
        let line = turn(&"two\nlines \u{2028}\0".into(), SlashCommands::Text).unwrap();
        assert_eq!(
            parse(&line),
            json!({"type": "user", "message": {"role": "user", "content": "two\nlines \u{2028}\0"}})
        );
    }

    #[test]
    fn a_marked_turn_is_the_same_with_an_id() {
        let plain = turn(&"{\"uuid\"".into(), SlashCommands::Text).unwrap();
        let mut marked = parse(&marked(&plain, "an \"id\""));
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
    fn the_last_text_block_is_what_counts() {
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
    fn blocks_that_would_spoil_the_conversation_are_refused() {
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

    #[test]
    fn the_system_prompt_goes_with_the_handshake() {
        let request = |prompt: Option<&str>| {
            let settings =
                LaunchSettings { system_prompt: prompt.map(str::to_owned), ..LaunchSettings::default() };
            parse(&handshake("r1", &settings))["request"].clone()
        };
        assert_eq!(
            request(Some("be brief")),
            json!({"subtype": "initialize", "systemPrompt": "be brief", "systemPromptSnapshot": false})
        );
        assert_eq!(request(None), json!({"subtype": "initialize", "systemPromptSnapshot": false}));
        assert_eq!(request(Some("")), request(None));
    }

    #[test]
    fn permissions_are_answered_in_full() {
        let request = PermissionRequest {
            request_id: "r1".to_owned(),
            tool_name: "Bash".to_owned(),
            input: json!({"command": "ls"}),
            description: None,
        };
        let answer = |decision: Decision| parse(&permission_answer(&request, &decision))["response"].clone();
        let other = json!({"command": "true"});
        for (updated, expected) in [(None, json!({"command": "ls"})), (Some(other.clone()), other)] {
            let response = answer(Decision::Allow { updated_input: updated });
            assert_eq!(response["response"], json!({"behavior": "allow", "updatedInput": expected}));
            assert_eq!((&response["subtype"], &response["request_id"]), (&json!("success"), &json!("r1")));
        }
        let response = answer(Decision::Deny { message: "no".to_owned() });
        assert_eq!(response["response"], json!({"behavior": "deny", "message": "no"}));
        let refused = parse(&unsupported_answer("r2", "hook_callback"))["response"].clone();
        assert_eq!((&refused["subtype"], &refused["request_id"]), (&json!("error"), &json!("r2")));
    }

    #[test]
    fn control_requests() {
        assert_eq!(
            parse(&control("r", "interrupt")),
            json!({"type": "control_request", "request_id": "r", "request": {"subtype": "interrupt"}})
        );
        let servers = json!({"m": {"type": "stdio", "command": "serve\nit", "args": [], "env": {}}});
        let settings =
            LaunchSettings { mcp_servers: servers.as_object().unwrap().clone(), ..LaunchSettings::default() };
        assert_eq!(
            parse(&mcp_servers("r", &settings))["request"],
            json!({"subtype": "mcp_set_servers", "servers": servers})
        );
    }

    proptest! {
        #[test]
        fn any_text_arrives_as_it_was_in_one_line(text: String) {
            let sent = content(text.as_str().into(), SlashCommands::Pass).unwrap();
            prop_assert_eq!(sent.as_str(), Some(text.as_str()));
            let sent = content(text.as_str().into(), SlashCommands::Text).unwrap();
            prop_assert!(!sent.as_str().unwrap().starts_with('/'));
            prop_assert_eq!(sent.as_str().unwrap().trim_start(), text.trim_start());
        }
    }
}
