//! The file of one stored response. Pure.
//!
//! Three lines of JSON: what continues it, what was asked, and the response as its client got it. The first is short, so
//! that the conversation of a file is known without reading it; the last is served unparsed.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::id::ResponseId;

/// Longest first line: the name of a conversation has 256 bytes, each at most six characters in JSON.
pub(super) const MAX_HEAD: u64 = 4 << 10;

/// What continues a response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) conversation: String,
    /// A request named the conversation; otherwise it was found, or begun, by its history.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) named: bool,
    /// The context of the response is its chain and nothing else.
    pub(crate) whole: bool,
    pub(crate) previous: Option<ResponseId>,
    /// Digest of the history including the answer.
    pub(crate) digest: String,
}

/// What was asked.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Debug))]
pub(crate) struct Asked {
    /// System messages among the input of the whole chain, without `instructions`.
    pub(crate) system: String,
    /// The input of this response, each item with its id.
    pub(crate) input: Vec<Value>,
}

/// A stored response. It has texts of the user, which no log may print.
#[derive(Clone, PartialEq)]
#[cfg_attr(test, derive(Debug))]
pub(crate) struct Stored {
    pub(crate) head: Head,
    pub(crate) asked: Asked,
    /// The response as JSON.
    pub(crate) response: String,
}

impl Stored {
    /// The items of the answer.
    pub(crate) fn output(&self) -> Vec<Value> {
        #[derive(Deserialize)]
        struct Output {
            output: Vec<Value>,
        }
        serde_json::from_str::<Output>(&self.response).map(|response| response.output).unwrap_or_default()
    }

    pub(super) fn render(&self) -> serde_json::Result<Vec<u8>> {
        let mut content = serde_json::to_vec(&self.head)?;
        content.push(b'\n');
        serde_json::to_writer(&mut content, &self.asked)?;
        content.push(b'\n');
        content.extend_from_slice(self.response.as_bytes());
        content.push(b'\n');
        Ok(content)
    }

    /// `None` for a damaged file, which counts as none.
    pub(super) fn parse(content: &[u8]) -> Option<Self> {
        let mut lines = content.split(|byte| *byte == b'\n');
        let head = serde_json::from_slice(lines.next()?).ok()?;
        let asked = serde_json::from_slice(lines.next()?).ok()?;
        let response = std::str::from_utf8(lines.next()?).ok()?;
        // A file that was cut off has no last line feed.
        lines.next()?;
        serde_json::from_str::<serde::de::IgnoredAny>(response).ok()?;
        Some(Self { head, asked, response: response.to_owned() })
    }
}

/// The conversation of a file, by its beginning.
pub(super) fn conversation_of(beginning: &[u8]) -> Option<String> {
    let line = beginning.split(|byte| *byte == b'\n').next()?;
    serde_json::from_slice::<Head>(line).ok().map(|head| head.conversation)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored() -> Stored {
        Stored {
            head: Head {
                conversation: "a\nb".to_owned(),
                named: true,
                whole: false,
                previous: ResponseId::parse(&format!("resp_{}", "0a".repeat(16))),
                digest: "00".to_owned(),
            },
            asked: Asked { system: "s\n\n".to_owned(), input: vec![json!({ "text": "a\nb" })] },
            response: r#"{"id":"x","output":[{"type":"message"}]}"#.to_owned(),
        }
    }

    #[test]
    fn file_round_trips() {
        let content = stored().render().unwrap();
        assert_eq!(Stored::parse(&content), Some(stored()));
        assert_eq!(conversation_of(&content).as_deref(), Some("a\nb"));
        assert_eq!(stored().output(), [json!({ "type": "message" })]);
        let longest = Head { conversation: "\u{1}".repeat(256), ..stored().head };
        assert!((serde_json::to_vec(&longest).unwrap().len() as u64) < MAX_HEAD);
    }

    #[test]
    fn file_that_is_cut_off_is_none() {
        let content = stored().render().unwrap();
        for length in 0..content.len() {
            assert_eq!(Stored::parse(&content[..length]), None, "{length}");
        }
        assert_eq!(Stored::parse(b"\xff\n{}\n{}\n"), None);
    }
}
