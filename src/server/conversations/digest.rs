//! Digest of a message history. Pure.
//!
//! The digest is a hash chain: each message extends the digest of the messages before it. So the digest of a
//! conversation is extended by each turn without the history at hand. Each part is hashed with its kind and length, so
//! that different histories never hash the same bytes.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::server::dialect::message::{Content, Message, Role};
use crate::support::hex;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Digest(pub(super) [u8; 32]);

#[derive(Debug, Clone, Copy)]
pub(crate) struct HistoryDigest {
    /// Everything before the last message.
    pub(super) before: Digest,
    /// Everything including the last message.
    pub(super) asked: Digest,
    pub(super) system: Digest,
}

impl HistoryDigest {
    /// As [`HistoryDigest::of`], for messages that follow a history with this digest.
    pub(crate) fn following(
        former: Option<&str>,
        history: &[Message],
        last: &Message,
        system: Option<&str>,
    ) -> Self {
        // An unreadable digest matches nothing: no history has it.
        let former = former.map(|digest| hex::decode_array(digest).map_or(Digest::UNKNOWN, Digest));
        let before = history.iter().fold(former.unwrap_or(Digest::EMPTY), Digest::append);
        Self { before, asked: before.append(last), system: Digest::of_system(system) }
    }

    /// Digest of the history with its answer, as [`HistoryDigest::following`] takes it.
    pub(crate) fn answered(&self, text: &str, calls: &[String]) -> String {
        let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
        hex::encode(&self.asked.append_said(text, &calls).0)
    }

    /// Hashes the history, its last message and the system prompt. Megabytes belong on a thread for blocking work.
    pub(crate) fn of(history: &[Message], last: &Message, system: Option<&str>) -> Self {
        let before = history.iter().fold(Digest::EMPTY, Digest::append);
        Self { before, asked: before.append(last), system: Digest::of_system(system) }
    }
}

impl Digest {
    pub(super) const EMPTY: Self = Self([0; 32]);
    const UNKNOWN: Self = Self([0xff; 32]);

    pub(super) fn append(self, message: &Message) -> Self {
        let blocks = match (&message.role, &message.content) {
            (Role::Assistant, content) => return self.append_answer(content),
            (_, Content::Text(text)) => {
                let mut hash = self.next(message.role);
                if !text.is_empty() {
                    hash.part(TEXT, text.as_bytes());
                }
                return hash.done();
            }
            (_, Content::Blocks(blocks)) => blocks,
        };
        let mut hash = self.next(message.role);
        for block in blocks {
            match text_of(block) {
                Some("") => {}
                Some(text) => hash.part(TEXT, text.as_bytes()),
                None => hash.value(block),
            }
        }
        hash.done()
    }

    pub(super) fn append_text(self, answer: &str) -> Self {
        self.append_said(answer, &[])
    }

    /// An answer with this text and calls with these ids.
    pub(super) fn append_said(self, text: &str, calls: &[&str]) -> Self {
        self.append_texts(&[text], calls, &[])
    }

    /// An answer counts by its text and the ids of its calls: clients see or repeat neither block boundaries nor thinking,
    /// and write the input of a call in their own way.
    fn append_answer(self, content: &Content) -> Self {
        match content {
            Content::Text(text) => self.append_text(text),
            Content::Blocks(blocks) => {
                let texts: Vec<&str> = blocks.iter().filter_map(text_of).collect();
                let others: Vec<&Value> =
                    blocks.iter().filter(|it| text_of(it).is_none() && !is_left_out(it)).collect();
                let calls: Vec<&str> = blocks.iter().filter_map(call_of).collect();
                self.append_texts(&texts, &calls, &others)
            }
        }
    }

    fn append_texts(self, texts: &[&str], calls: &[&str], others: &[&Value]) -> Self {
        // Clients trim trailing white space of answers, because the API refuses it.
        let last = texts.iter().rposition(|text| !text.trim_end().is_empty());
        let (whole, end) = match last.and_then(|last| texts.split_at_checked(last)) {
            Some((whole, [end, ..])) => (whole, end.trim_end()),
            _ => (&[][..], ""),
        };
        if end.is_empty() && calls.is_empty() && others.is_empty() {
            // Clients omit an empty answer, or repeat it as an empty one.
            return self;
        }
        let mut hash = self.next(Role::Assistant);
        hash.kind(TEXT, whole.iter().map(|text| text.len()).sum::<usize>() + end.len());
        whole.iter().for_each(|text| hash.0.update(text));
        hash.0.update(end);
        calls.iter().for_each(|call| hash.part(CALL, call.as_bytes()));
        others.iter().for_each(|other| hash.value(other));
        hash.done()
    }

    fn of_system(system: Option<&str>) -> Self {
        let Some(system) = system.filter(|text| !text.is_empty()) else { return Self::EMPTY };
        let mut hash = Self::EMPTY.next(Role::System);
        hash.part(TEXT, system.as_bytes());
        hash.done()
    }

    fn next(self, role: Role) -> Hash {
        let role = match role {
            Role::User => b'u',
            Role::Assistant => b'a',
            Role::System => b's',
        };
        Hash(Sha256::new().chain_update(self.0).chain_update([role]))
    }
}

const TEXT: u8 = b't';
const CALL: u8 = b'c';

struct Hash(Sha256);

impl Hash {
    fn kind(&mut self, kind: u8, length: usize) {
        self.0.update([kind]);
        self.0.update((length as u64).to_le_bytes());
    }

    fn part(&mut self, kind: u8, bytes: &[u8]) {
        self.kind(kind, bytes.len());
        self.0.update(bytes);
    }

    /// Hashes any JSON; the order of keys does not matter. Parsers bound the depth.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.kind(b'n', 0),
            Value::Bool(value) => self.kind(b'b', usize::from(*value)),
            Value::Number(number) => self.part(b'#', number.to_string().as_bytes()),
            Value::String(text) => self.part(b'"', text.as_bytes()),
            Value::Array(values) => {
                self.kind(b'[', values.len());
                values.iter().for_each(|value| self.value(value));
            }
            Value::Object(map) => {
                // `cache_control` of a block is no content; clients move it from request to request.
                let is_block = map.get("type").is_some_and(Value::is_string);
                let is_content = |key: &str| !(is_block && key == "cache_control");
                let mut fields: Vec<_> = map.iter().filter(|(key, _)| is_content(key)).collect();
                // Sorted already, unless an embedding program enables `preserve_order` of serde_json.
                fields.sort_unstable_by_key(|(key, _)| *key);
                self.kind(b'{', fields.len());
                for (key, value) in fields {
                    self.part(b'"', key.as_bytes());
                    self.value(value);
                }
            }
        }
    }

    fn done(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

fn text_of(block: &Value) -> Option<&str> {
    let is_text = block.get("type").and_then(Value::as_str) == Some("text");
    block.get("text").and_then(Value::as_str).filter(|_| is_text)
}

/// Id of a tool call. The CLI's own calls are in no answer.
fn call_of(block: &Value) -> Option<&str> {
    let is_call = block.get("type").and_then(Value::as_str) == Some("tool_use");
    block.get("id").and_then(Value::as_str).filter(|_| is_call)
}

/// Blocks of an answer that are not part of the visible text.
fn is_left_out(block: &Value) -> bool {
    let kind = block.get("type").and_then(Value::as_str).unwrap_or_default();
    matches!(kind, "thinking" | "redacted_thinking" | "tool_use" | "server_tool_use")
        || kind.ends_with("_tool_result")
}

#[cfg(test)]
mod tests;
