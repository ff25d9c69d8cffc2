//! A history as the model's API accepts it. Pure.
//!
//! The API refuses empty texts, a first message that is the assistant's, two messages of one role in a row, a tool call
//! without its result in the very next message, a result without its call, and ids that are repeated or hold odd
//! characters. Nothing is dropped here: what has no place of its own keeps its content in another.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Map, Value};

use crate::model::{Block, History, Role};

/// The CLI's own word for a message without content.
const NO_CONTENT: &str = "(no content)";
/// What the CLI itself puts between a user's message that was not answered and the next one.
const NOT_ANSWERED: &str = "No response requested.";
/// Longest name of a tool that the API accepts.
const MAX_TOOL_NAME: usize = 128;

/// A history, made acceptable.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Valid<'a> {
    /// Begins with the user's and ends with the assistant's. Roles alternate.
    pub(super) messages: Vec<Spoken<'a>>,
    /// What the user said after the last answer: it belongs to the next prompt.
    pub(super) tail: Vec<Piece<'a>>,
}

/// A message.
#[derive(Debug, PartialEq)]
pub(super) struct Spoken<'a> {
    pub(super) role: Role,
    pub(super) content: Vec<Piece<'a>>,
}

/// A block, as it is or with what had to be changed. Serialises as a content block of the Messages API.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece<'a> {
    Whole(&'a Block),
    Note(&'static str),
    Call { id: String, name: Cow<'a, str>, input: &'a Map<String, Value> },
    Result { id: String, content: Vec<&'a Block>, is_error: bool },
}

/// See the module.
pub(super) fn valid(history: &History) -> Valid<'_> {
    let merged = merged(history);
    let (mut ids, mut open) = (Ids::default(), Vec::new());
    let mut messages = Vec::new();
    if merged.first().is_some_and(|(role, _)| *role == Role::Assistant) {
        messages.push(Spoken { role: Role::User, content: vec![Piece::Note(NO_CONTENT)] });
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
    /// A conversation on disk ends with an answer: the CLI would put words of its own behind a user's message.
    fn split_tail(&mut self) {
        let Some(last) = self.messages.pop_if(|last| last.role == Role::User) else { return };
        let is_result = |piece: &Piece<'a>| matches!(piece, Piece::Result { .. });
        let (results, tail): (Vec<_>, Vec<_>) = last.content.into_iter().partition(is_result);
        self.tail = tail;
        if !results.is_empty() {
            // Results must follow their calls at once, so they cannot go with the prompt.
            self.messages.push(Spoken { role: Role::User, content: results });
            let answer = vec![Piece::Note(NOT_ANSWERED)];
            self.messages.push(Spoken { role: Role::Assistant, content: answer });
        }
    }
}

/// Without blank texts and empty messages, neighbours of one role joined.
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

/// A call without its result: the caller's id, and the one that it has here.
type Open<'a> = (&'a str, String);

/// An answer: its calls come last.
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

/// The results of all open calls, in their order, then everything else.
fn user<'a>(blocks: Vec<&'a Block>, open: Vec<Open<'a>>) -> Vec<Piece<'a>> {
    let mut places: HashMap<&str, VecDeque<usize>> = HashMap::new();
    for (place, (id, _)) in open.iter().enumerate() {
        places.entry(id).or_default().push_back(place);
    }
    // A call that nobody answered has failed.
    let unanswered = |(_, id): Open<'a>| Piece::Result { id, content: Vec::new(), is_error: true };
    let mut results: Vec<_> = open.into_iter().map(unanswered).collect();
    let mut others = Vec::new();
    for block in blocks {
        let Block::ToolResult { id, content: given, is_error: failed } = block else {
            others.push(Piece::Whole(block));
            continue;
        };
        let given = given.iter().filter(|block| !is_blank(block));
        let place = places.get_mut(id.as_str()).and_then(VecDeque::pop_front);
        match place.and_then(|place| results.get_mut(place)) {
            Some(Piece::Result { content, is_error, .. }) => {
                // The API accepts nothing but text in the result of a tool that failed.
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
        results.push(Piece::Note(NO_CONTENT));
    }
    results
}

/// The ids of tool calls.
#[derive(Default)]
struct Ids {
    used: HashSet<String>,
    made: usize,
}

impl Ids {
    /// This id, or one of our own if the API would refuse it.
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

/// The name, with the characters that the API refuses replaced.
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

impl Serialize for Piece<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = match self {
            Self::Whole(block) => return block.serialize(serializer),
            _ => serializer.serialize_map(None)?,
        };
        match self {
            Self::Whole(_) => {}
            Self::Note(text) => {
                map.serialize_entry("type", "text")?;
                map.serialize_entry("text", text)?;
            }
            Self::Call { id, name, input } => {
                map.serialize_entry("type", "tool_use")?;
                map.serialize_entry("id", id)?;
                map.serialize_entry("name", name)?;
                map.serialize_entry("input", input)?;
            }
            Self::Result { id, content, is_error } => {
                map.serialize_entry("type", "tool_result")?;
                map.serialize_entry("tool_use_id", id)?;
                if !content.is_empty() {
                    map.serialize_entry("content", content)?;
                }
                if *is_error {
                    map.serialize_entry("is_error", is_error)?;
                }
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
