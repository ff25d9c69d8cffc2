//! Converts a history to a form that the model's API accepts. Pure.
//!
//! The API refuses empty texts, a first message of the assistant, two messages of one role in a row, a tool call without
//! its result in the next message, a result without its call, and repeated or odd ids. Content is never dropped: it moves
//! to another block where necessary.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::model::{Block, History, Role};

/// The CLI's text for a message without content.
const NO_CONTENT: &str = "(no content)";
/// The CLI's text between an unanswered user message and the next one.
const NOT_ANSWERED: &str = "No response requested.";
/// Longest tool name that the API accepts.
const MAX_TOOL_NAME: usize = 128;

/// A history that the API accepts.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Valid<'a> {
    /// Messages with alternating roles, from the user to the assistant.
    pub(super) messages: Vec<Spoken<'a>>,
    /// User content after the last answer, which belongs to the next prompt.
    pub(super) tail: Vec<Piece<'a>>,
}

/// One message.
#[derive(Debug, PartialEq)]
pub(super) struct Spoken<'a> {
    pub(super) role: Role,
    pub(super) content: Vec<Piece<'a>>,
}

/// Original or changed block. Serialises as a content block of the Messages API.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type")]
pub(super) enum Piece<'a> {
    #[serde(rename = "text")]
    Note { text: &'static str },
    #[serde(rename = "tool_use")]
    Call { id: String, name: Cow<'a, str>, input: &'a Map<String, Value> },
    #[serde(rename = "tool_result")]
    Result {
        #[serde(rename = "tool_use_id")]
        id: String,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        content: Vec<&'a Block>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
    },
    #[serde(untagged)]
    Whole(&'a Block),
}

/// Converts a history.
pub(super) fn valid(history: &History) -> Valid<'_> {
    let merged = merged(history);
    let (mut ids, mut open) = (Ids::default(), Vec::new());
    let mut messages = Vec::new();
    if merged.first().is_some_and(|(role, _)| *role == Role::Assistant) {
        messages.push(Spoken { role: Role::User, content: vec![Piece::Note { text: NO_CONTENT }] });
    }
    for (role, blocks) in merged {
        let content = match role {
            Role::Assistant => assistant(blocks, &mut ids, &mut open),
            Role::User => user(blocks, std::mem::take(&mut open)),
        };
        messages.push(Spoken { role, content });
    }
    if !open.is_empty() {
        messages.push(Spoken { role: Role::User, content: user(Vec::new(), open) });
    }
    let mut valid = Valid { messages, tail: Vec::new() };
    valid.split_tail();
    valid
}

impl<'a> Valid<'a> {
    /// Moves a last user message to the tail: the CLI would add text of its own behind it.
    fn split_tail(&mut self) {
        let Some(last) = self.messages.pop_if(|last| last.role == Role::User) else { return };
        let is_result = |piece: &Piece<'a>| matches!(piece, Piece::Result { .. });
        let (results, tail): (Vec<_>, Vec<_>) = last.content.into_iter().partition(is_result);
        self.tail = tail;
        if !results.is_empty() {
            // Results must directly follow their calls, so they cannot move to the prompt.
            self.messages.push(Spoken { role: Role::User, content: results });
            let answer = vec![Piece::Note { text: NOT_ANSWERED }];
            self.messages.push(Spoken { role: Role::Assistant, content: answer });
        }
    }
}

/// Messages without blank texts; neighbours of one role are joined.
fn merged(history: &History) -> Vec<(Role, Vec<&Block>)> {
    let mut merged: Vec<(Role, Vec<&Block>)> = Vec::new();
    for message in history.messages() {
        let content = message.content.iter().filter(|block| !is_blank(block));
        match merged.last_mut() {
            Some((role, last)) if *role == message.role => last.extend(content),
            _ => {
                let content: Vec<_> = content.collect();
                if !content.is_empty() {
                    merged.push((message.role, content));
                }
            }
        }
    }
    merged
}

fn is_blank(block: &Block) -> bool {
    matches!(block, Block::Text(text) if text.trim().is_empty())
}

/// Call without result: the given id, and the valid one.
type Open<'a> = (&'a str, String);

/// Content of an answer, with its calls last.
fn assistant<'a>(blocks: Vec<&'a Block>, ids: &mut Ids, open: &mut Vec<Open<'a>>) -> Vec<Piece<'a>> {
    let (mut content, mut calls) = (Vec::new(), Vec::new());
    for block in blocks {
        match block {
            Block::ToolUse { id, name, input } => {
                let own = ids.unique(id);
                open.push((id, own.clone()));
                calls.push(Piece::Call { id: own, name: tool_name(name), input });
            }
            other => content.push(Piece::Whole(other)),
        }
    }
    content.append(&mut calls);
    content
}

/// Results of all open calls in order, then other content.
fn user<'a>(blocks: Vec<&'a Block>, open: Vec<Open<'a>>) -> Vec<Piece<'a>> {
    let mut positions: HashMap<&str, VecDeque<usize>> = HashMap::new();
    for (position, (id, _)) in open.iter().enumerate() {
        positions.entry(id).or_default().push_back(position);
    }
    // A call without a result has failed.
    let unanswered = |(_, id): Open<'a>| Piece::Result { id, content: Vec::new(), is_error: true };
    let mut results: Vec<_> = open.into_iter().map(unanswered).collect();
    let mut others = Vec::new();
    for block in blocks {
        let Block::ToolResult { id, content: given, is_error: failed } = block else {
            others.push(Piece::Whole(block));
            continue;
        };
        let given = given.iter().filter(|block| !is_blank(block));
        let position = positions.get_mut(id.as_str()).and_then(VecDeque::pop_front);
        match position.and_then(|position| results.get_mut(position)) {
            Some(Piece::Result { content, is_error, .. }) => {
                // The API accepts only text in the result of a failed tool.
                let (kept, moved): (Vec<_>, Vec<_>) =
                    given.partition(|block| !failed || matches!(block, Block::Text(_)));
                others.extend(moved.into_iter().map(Piece::Whole));
                (*content, *is_error) = (kept, *failed);
            }
            _ => others.extend(given.map(Piece::Whole)),
        }
    }
    results.append(&mut others);
    if results.is_empty() {
        results.push(Piece::Note { text: NO_CONTENT });
    }
    results
}

/// Unique ids of tool calls.
#[derive(Default)]
struct Ids {
    used: HashSet<String>,
    made: usize,
}

impl Ids {
    /// The given id, or a generated one if the API would refuse it.
    fn unique(&mut self, id: &str) -> String {
        let is_valid = !id.is_empty() && id.bytes().all(is_name_byte);
        if is_valid && self.used.insert(id.to_owned()) {
            return id.to_owned();
        }
        loop {
            self.made += 1;
            let own = format!("call_{}", self.made);
            if self.used.insert(own.clone()) {
                return own;
            }
        }
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// The name with refused characters replaced.
fn tool_name(name: &str) -> Cow<'_, str> {
    match name.len() {
        0 => "tool".into(),
        1..=MAX_TOOL_NAME if name.bytes().all(is_name_byte) => name.into(),
        _ => {
            let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '_' };
            name.chars().map(plain).take(MAX_TOOL_NAME).collect::<String>().into()
        }
    }
}

#[cfg(test)]
mod tests;
