//! Calls of tools in the lines of a conversation, and their results: ids and names alone.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::fields::with_fields;
use super::read::ID_LIMIT;

/// Blocks of one message that are looked at: the model writes some dozen, and what a tool forges costs no more.
const MOST_BLOCKS: usize = 128;

/// Nothing of what a tool is given or gives back is kept, or copied.
#[derive(Deserialize)]
struct Block<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    tool_use_id: Option<Cow<'a, str>>,
    is_error: Option<bool>,
}

/// The first blocks of a message.
struct Blocks<'a>(Vec<Block<'a>>);

impl<'de> Deserialize<'de> for Blocks<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;
        impl<'de> Visitor<'de> for First {
            type Value = Blocks<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of blocks")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut blocks = Vec::new();
                while blocks.len() < MOST_BLOCKS
                    && let Some(block) = list.next_element()?
                {
                    blocks.push(block);
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Blocks(blocks))
            }
        }
        deserializer.deserialize_seq(First)
    }
}

fn of_blocks<T>(line: &[u8], read: impl FnMut(Block<'_>) -> Option<T>) -> Vec<T> {
    let found = with_fields(line, |fields| {
        let Blocks(blocks) = fields.object("message")?.get("content")?;
        Some(blocks.into_iter().filter_map(read).collect())
    });
    found.unwrap_or_default()
}

/// Id and name of each call.
pub(crate) fn tools_called(line: &[u8]) -> Vec<(String, String)> {
    of_blocks(line, |block| {
        let id = block.id.filter(|id| block.kind == "tool_use" && id.len() <= ID_LIMIT)?;
        Some((id.into_owned(), block.name?.into_owned()))
    })
}

/// Id of the call of each result, and whether it failed.
pub(crate) fn tools_ended(line: &[u8]) -> Vec<(String, bool)> {
    of_blocks(line, |block| {
        let id = block.tool_use_id.filter(|id| block.kind == "tool_result" && id.len() <= ID_LIMIT)?;
        Some((id.into_owned(), block.is_error == Some(true)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_of_tools_are_read() {
        let line = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"x"},
            {"type":"tool_use","id":"t1","name":"Bash","input":{"type":"tool_use","id":"no","name":"no"}},
            {"id":"t\u0032","name":"Re\"ad","type":"tool_use"},{"type":"server_tool_use","id":"t3","name":"no"}]}}"#;
        let expected = [("t1".to_owned(), "Bash".to_owned()), ("t2".to_owned(), "Re\"ad".to_owned())];
        assert_eq!(tools_called(line.as_bytes()), expected);
        assert_eq!(tools_ended(line.as_bytes()), []);
        let line = r#"{"type":"user","message":{"content":[{"tool_use_id":"t1","type":"tool_result","content":[{}]},
            {"tool_use_id":"t2","type":"tool_result","is_error":true,"content":"x"}]}}"#;
        assert_eq!(tools_ended(line.as_bytes()), [("t1".to_owned(), false), ("t2".to_owned(), true)]);
    }

    #[test]
    fn odd_lines_have_no_tools_and_many_are_cut() {
        let of = |content: &str| {
            let line = format!(r#"{{"type":"assistant","message":{{"content":{content}}}}}"#);
            tools_called(line.as_bytes()).len()
        };
        let long = format!(r#"[{{"type":"tool_use","id":"{}","name":"a"}}]"#, "x".repeat(ID_LIMIT + 1));
        for odd in
            ["\"text\"", "7", "[7]", "[{}]", "[{\"type\":\"tool_use\",\"id\":7,\"name\":\"a\"}]", &long]
        {
            assert_eq!(of(odd), 0, "{odd}");
        }
        let block = r#"{"type":"tool_use","id":"t","name":"a"}"#;
        assert_eq!(of(&format!("[{}]", vec![block; 10_000].join(","))), MOST_BLOCKS);
        assert_eq!(tools_called(b"{}").len() + tools_called(b"\xff").len(), 0);
    }
}
