//! Import of a history, as a transcript of this CLI or as one message. Pure.
//!
//! The CLI resumes a transcript with one line per message as its own (verified with 2.0.76, 2.1.197 and 2.1.332): the API
//! gets the original roles, images, documents, tool calls and results.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};

use super::caller_tools::as_message;
use super::prompt::encode_turn;
use super::transcript::entry::{Content, Writer, line_id, timestamp};
use crate::adapter::Import;
#[cfg(doc)]
use crate::adapter::LaunchMode;
use crate::config::SlashCommands;
use crate::model::{Block, Dirs, History, Prompt, PromptRefused, Role};
use valid::{Piece, Spoken, valid};

mod valid;

/// The CLI's model name for messages without a model. Any other name would become the conversation's model.
const NO_MODEL: &str = "<synthetic>";

const INTRODUCTION: &str = "What was said before in this conversation:";
const CONTINUATION: &str = "The conversation goes on with this message:";

#[derive(Serialize)]
#[serde(untagged)]
enum Message<'a> {
    User {
        role: &'static str,
        content: &'a [Piece<'a>],
    },
    Assistant {
        id: String,
        r#type: &'static str,
        role: &'static str,
        model: &'static str,
        content: &'a [Piece<'a>],
        stop_reason: &'static str,
        stop_sequence: Option<&'static str>,
        usage: NoUsage,
    },
}

/// Usage of an imported turn: none here.
#[derive(Default, Serialize)]
struct NoUsage {
    input_tokens: u64,
    output_tokens: u64,
}

/// Transcript of a history, for [`LaunchMode::Resume`] under this id; `None` if the first prompt carries all of it. Takes
/// long for megabytes of text: use a thread for blocking work.
pub(crate) fn import(history: &History, session_id: &str, dirs: &Dirs, now: SystemTime) -> Option<Import> {
    let messages = valid(history).messages;
    let mut writer = Writer::new(session_id, dirs);
    for (number, spoken) in messages.iter().enumerate() {
        let uuid = line_id(session_id, number);
        let entry = Content {
            r#type: role(spoken.role),
            message: message(spoken, &uuid),
            timestamp: timestamp(now, messages.len() - number),
            api_error: false,
        };
        writer.push(&uuid, &entry)?;
    }
    writer.finish()
}

/// User message that follows a history: with all of it, or, if `imported`, with what a transcript cannot hold. `None` if
/// the message is the prompt alone.
///
/// # Errors
/// As [`encode_turn`].
pub(crate) fn encode_first_turn(
    history: &History,
    imported: bool,
    prompt: &Prompt,
    commands: SlashCommands,
) -> Result<Option<Vec<u8>>, PromptRefused> {
    first_prompt(history, imported, prompt).map(|prompt| encode_turn(&prompt, commands)).transpose()
}

/// First message of a conversation with a history; `None` if it is the prompt alone.
fn first_prompt(history: &History, imported: bool, prompt: &Prompt) -> Option<Prompt> {
    let valid = valid(history);
    let mut blocks = Vec::new();
    if !imported && !valid.messages.is_empty() {
        blocks.push(text(INTRODUCTION));
        valid.messages.iter().for_each(|spoken| labelled(spoken, &mut blocks));
        blocks.push(text(CONTINUATION));
    }
    blocks.extend(valid.tail.iter().map(value));
    if blocks.is_empty() {
        return None;
    }
    match prompt {
        Prompt::Text(own) => blocks.push(text(own)),
        Prompt::Blocks(own) => blocks.extend(own.iter().cloned()),
        Prompt::ToolResults(results) => blocks.extend(as_message(results)),
    }
    Some(Prompt::Blocks(blocks))
}

fn message<'a>(spoken: &'a Spoken<'a>, uuid: &str) -> Message<'a> {
    let content = spoken.content.as_slice();
    let calls = content.iter().any(|piece| matches!(piece, Piece::Call { .. }));
    match spoken.role {
        Role::User => Message::User { role: role(spoken.role), content },
        Role::Assistant => Message::Assistant {
            id: format!("msg_{}", uuid.replace('-', "")),
            r#type: "message",
            role: role(spoken.role),
            model: NO_MODEL,
            content,
            stop_reason: if calls { "tool_use" } else { "end_turn" },
            stop_sequence: None,
            usage: NoUsage::default(),
        },
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

/// A message as blocks of another message, with its role in front.
fn labelled(spoken: &Spoken<'_>, blocks: &mut Vec<Value>) {
    let who = match spoken.role {
        Role::User => "User:",
        Role::Assistant => "Assistant:",
    };
    blocks.push(text(who));
    for piece in &spoken.content {
        match piece {
            Piece::Call { name, input, .. } => {
                let input = serde_json::to_string(input).unwrap_or_default();
                blocks.push(text(&format!("[called the tool {name} with {input}]")));
            }
            Piece::Result { content, is_error, .. } => {
                blocks.push(text(if *is_error { "[the tool failed:]" } else { "[the tool answered:]" }));
                blocks.extend(content.iter().map(value));
            }
            // A signature is valid only within the original answer.
            Piece::Whole(Block::Thinking(thinking)) => match thinking.get("thinking").and_then(Value::as_str)
            {
                Some(thought) => blocks.extend([text("[thought:]"), text(thought)]),
                None => blocks.push(text("[thought something encrypted, which is left out]")),
            },
            other => blocks.push(value(other)),
        }
    }
}

fn value(block: &impl Serialize) -> Value {
    serde_json::to_value(block).unwrap_or_default()
}

fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

#[cfg(test)]
mod tests;
