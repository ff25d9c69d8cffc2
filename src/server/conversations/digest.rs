//! What a client says was said before, as a digest. Pure; reads no clock and keeps nothing.
//!
//! The digest is a chain: that of a history follows from the digest of the history without its last message and from
//! that message alone. So a record is carried on by what a turn adds, without the history at hand. Each part goes in
//! with its kind and its length, so that no two histories can be cut differently into the same bytes.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::server::dialect::message::{Content, Message, Role};

/// A history in 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Digest(pub(super) [u8; 32]);

/// What a request tells of its conversation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    /// Everything before the last message.
    pub(super) before: Digest,
    /// The same with the last message.
    pub(super) asked: Digest,
    pub(super) system: Digest,
}

impl Told {
    /// The history before the last message, the last message, and the system prompt. Hashes everything: for some
    /// megabytes it belongs on a thread for blocking work.
    pub(crate) fn of(history: &[Message], last: &Message, system: Option<&str>) -> Self {
        let before = history.iter().fold(Digest::NOTHING, Digest::then);
        Self { before, asked: before.then(last), system: Digest::of_system(system) }
    }
}

impl Digest {
    /// That of no message at all.
    pub(super) const NOTHING: Self = Self([0; 32]);

    /// With one more message.
    pub(super) fn then(self, message: &Message) -> Self {
        let blocks = match (&message.role, &message.content) {
            (Role::Assistant, content) => return self.then_answer(content),
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

    /// With an answer of which this is the text.
    pub(super) fn then_text(self, answer: &str) -> Self {
        self.then_texts(&[answer], &[])
    }

    /// An answer is its text: how that is cut into blocks, what was thought and which tools ran is either not shown to
    /// clients or left out by them.
    fn then_answer(self, content: &Content) -> Self {
        match content {
            Content::Text(text) => self.then_text(text),
            Content::Blocks(blocks) => {
                let texts: Vec<&str> = blocks.iter().filter_map(text_of).collect();
                let others: Vec<&Value> =
                    blocks.iter().filter(|it| text_of(it).is_none() && !is_left_out(it)).collect();
                self.then_texts(&texts, &others)
            }
        }
    }

    fn then_texts(self, texts: &[&str], others: &[&Value]) -> Self {
        // White space at the end of an answer is lost on the way back: APIs refuse it there.
        let last = texts.iter().rposition(|text| !text.trim_end().is_empty());
        let (told, end) = match last.and_then(|last| texts.split_at_checked(last)) {
            Some((told, [end, ..])) => (told, end.trim_end()),
            _ => (&[][..], ""),
        };
        if end.is_empty() && others.is_empty() {
            // Clients leave an answer without a word out, or send it as an empty one.
            return self;
        }
        let mut hash = self.next(Role::Assistant);
        hash.kind(TEXT, told.iter().map(|text| text.len()).sum::<usize>() + end.len());
        told.iter().for_each(|text| hash.0.update(text));
        hash.0.update(end);
        others.iter().for_each(|other| hash.value(other));
        hash.done()
    }

    fn of_system(system: Option<&str>) -> Self {
        let Some(system) = system.filter(|text| !text.is_empty()) else { return Self::NOTHING };
        let mut hash = Self::NOTHING.next(Role::System);
        hash.part(TEXT, system.as_bytes());
        hash.done()
    }

    /// The hash of the message that follows.
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

    /// Any JSON; the order of keys does not matter. Parsers bound how deep it is.
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
                // What is cached, a block says of itself; clients move it along from request to request.
                let is_block = map.get("type").is_some_and(Value::is_string);
                let is_told = |key: &str| !(is_block && key == "cache_control");
                let mut fields: Vec<_> = map.iter().filter(|(key, _)| is_told(key)).collect();
                // Sorted already, unless the program that embeds us makes serde_json keep the order of keys.
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

/// The text of a block that is one.
fn text_of(block: &Value) -> Option<&str> {
    let is_text = block.get("type").and_then(Value::as_str) == Some("text");
    block.get("text").and_then(Value::as_str).filter(|_| is_text)
}

/// What stands in an answer beside its text and is no part of what was said.
fn is_left_out(block: &Value) -> bool {
    let kind = block.get("type").and_then(Value::as_str).unwrap_or_default();
    matches!(kind, "thinking" | "redacted_thinking" | "tool_use" | "server_tool_use")
        || kind.ends_with("_tool_result")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(messages: Value) -> Digest {
        let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
        messages.iter().fold(Digest::NOTHING, Digest::then)
    }

    fn user(content: Value) -> Digest {
        digest(json!([{ "role": "user", "content": content }]))
    }

    fn answer(content: Value) -> Digest {
        digest(json!([{ "role": "assistant", "content": content }]))
    }

    fn text(text: &str) -> Value {
        json!({ "type": "text", "text": text })
    }

    #[test]
    fn what_means_the_same_is_the_same() {
        let image = |key: &str| {
            let source: Value = serde_json::from_str(key).unwrap();
            json!([{ "type": "image", "source": source }, text("what?")])
        };
        let cached = json!([{ "text": "a", "cache_control": { "type": "ephemeral" }, "type": "text" }]);
        let result = |cache: Value| {
            let mut inner = json!({ "type": "image", "source": { "type": "url", "url": "u" } });
            if !cache.is_null() {
                inner["cache_control"] = cache;
            }
            json!([{ "type": "tool_result", "tool_use_id": "t", "content": [inner] }])
        };
        let same = [
            (user(json!("a")), user(json!([text("a")])), "a string is a block of text"),
            (user(cached), user(json!("a")), "caching is not said"),
            (user(json!([text("a"), text("")])), user(json!("a")), "nothing is nothing"),
            (user(result(json!({ "type": "ephemeral" }))), user(result(json!(null))), "nor within a block"),
            (
                user(image(r#"{"type":"base64","media_type":"image/png","data":"AA"}"#)),
                user(image(r#"{"data":"AA","type":"base64","media_type":"image/png"}"#)),
                "keys have no order",
            ),
            (answer(json!([text("a"), text("b")])), answer(json!("ab")), "an answer is its text"),
            (answer(json!("ab \n")), answer(json!([text("ab"), text("\n "), text("")])), "but for its end"),
            (
                answer(json!([{ "type": "thinking", "thinking": "h", "signature": "s" }, text("a"),
                    { "type": "redacted_thinking", "data": "x" }, { "type": "tool_use", "id": "t", "name": "n", "input": {} }])),
                answer(json!("a")),
                "thoughts and tools are not told",
            ),
            (Digest::NOTHING.then_text("ab\n"), answer(json!("ab")), "a recorded answer comes back"),
            (answer(json!("")), Digest::NOTHING, "an answer without a word is none"),
            (answer(json!([])), Digest::NOTHING, "also as blocks"),
        ];
        for (a, b, what) in same {
            assert_eq!(a, b, "{what}");
        }
    }

    #[test]
    fn what_means_something_else_is_something_else() {
        let image = |data: &str| json!([{ "type": "image", "source": { "type": "base64", "data": data } }]);
        let all = [
            Digest::NOTHING,
            user(json!("")),
            user(json!("a")),
            user(json!(" a")),
            user(json!("a ")),
            user(json!("ab")),
            user(json!([text("a"), text("b")])),
            answer(json!("a")),
            answer(json!(" a")),
            answer(json!([text("a"), image("AA")[0]])),
            digest(json!([{ "role": "system", "content": "a" }])),
            user(image("AA")),
            user(image("AB")),
            user(json!([text("x"), image("AA")[0]])),
            user(json!([image("AA")[0], text("x")])),
            user(json!([{ "type": "tool_result", "content": { "cache_control": 1 } }])),
            user(json!([{ "type": "tool_result", "content": {} }])),
            user(json!([{ "type": "x", "y": null }])),
            user(json!([{ "type": "x", "y": false }])),
            user(json!([{ "type": "x", "y": true }])),
            user(json!([{ "type": "x", "y": 1 }])),
            user(json!([{ "type": "x", "y": "1" }])),
            user(json!([{ "type": "x", "y": [] }])),
            user(json!([{ "type": "x", "y": [[]] }])),
            digest(json!([{ "role": "user", "content": "a" }, { "role": "user", "content": "b" }])),
            digest(json!([{ "role": "user", "content": "b" }, { "role": "user", "content": "a" }])),
            digest(json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }])),
        ];
        for (index, a) in all.iter().enumerate() {
            for (other, b) in all.iter().enumerate().skip(index + 1) {
                assert_ne!(a, b, "{index} and {other}");
            }
        }
    }

    #[test]
    fn the_system_prompt_is_told_apart() {
        let told = |system| {
            Told::of(&[], &serde_json::from_value(json!({ "role": "user", "content": "a" })).unwrap(), system)
        };
        assert_eq!(told(None).system, told(Some("")).system);
        assert_ne!(told(None).system, told(Some("be brief")).system);
        assert_eq!(told(Some("be brief")).asked, user(json!("a")));
    }

    proptest::proptest! {
        #[test]
        fn an_answer_is_the_same_however_it_was_cut(pieces: Vec<String>) {
            let blocks: Vec<Value> = pieces.iter().map(|piece| text(piece)).collect();
            proptest::prop_assert_eq!(answer(json!(blocks)), Digest::NOTHING.then_text(&pieces.concat()));
        }

        #[test]
        fn a_record_carried_on_is_the_digest_of_the_whole(turns: Vec<(String, String)>) {
            let mut carried = Digest::NOTHING;
            let mut whole = Vec::new();
            for (asked, said) in turns {
                let last: Message = serde_json::from_value(json!({ "role": "user", "content": asked })).unwrap();
                carried = carried.then(&last).then_text(&said);
                whole.push(json!({ "role": "user", "content": [text(&asked)] }));
                whole.push(json!({ "role": "assistant", "content": [text(&said)] }));
            }
            proptest::prop_assert_eq!(digest(json!(whole)), carried);
        }
    }
}
