//! Streams one message of the simulated API. Deltas use prepared bytes per block: only text and id are inserted.

use serde_json::Value;

use crate::conversation::{line_id, new_id};
use crate::engine::{Engine, Stop};
use crate::events::{ApiMessage, block};
use crate::json::{self, Object, object};
use crate::turn::Turn;

/// Characters per delta, unless the message sets a number of deltas.
const PIECE: usize = 8;
/// Approximate maximum number of deltas of a long answer.
const MAX_PIECES: usize = 64;

/// A content block of a message.
pub(crate) enum Block {
    Thinking(String),
    Text(String),
    Tool { id: String, name: String, input: Value },
}

impl Engine {
    /// Streams a message and adds its tokens to the usage.
    pub(crate) fn stream_message(
        &mut self,
        turn: &mut Turn,
        blocks: &[Block],
        stop_reason: &'static str,
    ) -> Result<ApiMessage, Stop> {
        turn.rounds += 1;
        turn.stop_reason = None;
        let (input, output) = turn.script.usage.unwrap_or_else(|| self.estimate(turn, blocks));
        let api =
            ApiMessage { id: Self::api_id("msg"), request_id: Self::api_id("req"), input_tokens: input };
        if self.args.partial {
            self.system("status", |o| {
                o.str("status", "requesting");
            });
            self.message_start(turn, &api);
        }
        turn.note_output();
        for (index, block) in blocks.iter().enumerate() {
            self.stream_block(turn, &api, index, block, stop_reason)?;
        }
        if self.args.partial && !turn.script.fallback {
            self.stream_event(|o| {
                o.str("type", "message_delta").object("delta", |o| {
                    o.str("stop_reason", stop_reason).null("stop_sequence");
                });
                o.object("usage", |o| {
                    o.int("output_tokens", output);
                });
            });
            self.stream_event(|o| {
                o.str("type", "message_stop");
            });
        }
        turn.stop_reason = Some(stop_reason);
        // claude counts no output tokens for an answer without streaming.
        self.book(turn, input, if turn.script.fallback { 0 } else { output });
        Ok(api)
    }

    /// Estimates four bytes per token.
    fn estimate(&self, turn: &Turn, blocks: &[Block]) -> (u64, u64) {
        let said: usize = self.conversation.user_texts.iter().map(|user| user.text.len()).sum();
        let answered: usize = blocks
            .iter()
            .map(|block| match block {
                Block::Thinking(text) | Block::Text(text) => text.len(),
                Block::Tool { .. } => 32,
            })
            .sum();
        let tokens = |bytes: usize, base: u64| base + u64::try_from(bytes / 4).unwrap_or(0);
        (tokens(said, 8 + turn.rounds), tokens(answered, 1))
    }

    fn message_start(&mut self, turn: &Turn, api: &ApiMessage) {
        let ms = turn.ms();
        let session = &self.conversation.session_id;
        self.out.line(|o| {
            o.str("type", "stream_event").object("event", |o| {
                o.str("type", "message_start");
                o.object("message", |o| api.write(o, &self.model, b"[]"));
            });
            o.str("session_id", session).null("parent_tool_use_id").str("uuid", &new_id()).int("ttft_ms", ms);
        });
    }

    fn stream_event(&mut self, event: impl FnOnce(&mut Object<'_>)) {
        let session = &self.conversation.session_id;
        self.out.line(|o| {
            o.str("type", "stream_event").object("event", event);
            o.str("session_id", session).null("parent_tool_use_id").str("uuid", &new_id());
        });
    }

    fn stream_block(
        &mut self,
        turn: &mut Turn,
        api: &ApiMessage,
        index: usize,
        content: &Block,
        stop_reason: &str,
    ) -> Result<(), Stop> {
        let at = u64::try_from(index).unwrap_or(0);
        let (start, whole) = match content {
            Block::Thinking(text) => (thinking_start(), block("thinking", text)),
            Block::Text(text) => (block("text", ""), block("text", text)),
            Block::Tool { id, name, input } => {
                (tool_block(id, name, &Value::Object(serde_json::Map::new())), tool_block(id, name, input))
            }
        };
        if self.args.partial {
            self.stream_event(|o| {
                o.str("type", "content_block_start").int("index", at).raw("content_block", &start);
            });
        }
        match content {
            Block::Thinking(text) => self.thinking_deltas(at, text),
            Block::Text(text) => self.text_deltas(turn, at, text)?,
            Block::Tool { input, .. } => {
                self.delta(at, "input_json_delta", "partial_json", &input.to_string())
            }
        }
        self.late_replay(turn);
        self.emit_assistant(api, &whole, stop_reason);
        turn.partial_text.clear();
        if self.args.partial && !turn.script.fallback {
            self.stream_event(|o| {
                o.str("type", "content_block_stop").int("index", at);
            });
        }
        Ok(())
    }

    fn delta(&mut self, index: u64, kind: &str, key: &str, text: &str) {
        if self.args.partial {
            self.stream_event(|o| {
                o.str("type", "content_block_delta").int("index", index).object("delta", |o| {
                    o.str("type", kind).str(key, text);
                });
            });
        }
    }

    fn thinking_deltas(&mut self, index: u64, text: &str) {
        if !self.args.partial {
            return;
        }
        let tokens = u64::try_from(text.len().div_ceil(4)).unwrap_or(1);
        self.system("thinking_tokens", |o| {
            o.int("estimated_tokens", tokens).int("estimated_tokens_delta", tokens);
        });
        self.delta(index, "thinking_delta", "thinking", text);
        self.delta(index, "signature_delta", "signature", "c2ln");
    }

    fn text_deltas(&mut self, turn: &mut Turn, index: u64, text: &str) -> Result<(), Stop> {
        let pieces = pieces(text, turn.script.deltas, turn.script.slow);
        let half = pieces.len().div_ceil(2);
        let delay = turn.script.delay;
        let mut line = Vec::with_capacity(512);
        let prefix = format!(
            r#"{{"type":"stream_event","event":{{"type":"content_block_delta","index":{index},"delta":{{"type":"text_delta","text":"#
        );
        let suffix = format!(
            r#"}}}},"session_id":"{}","parent_tool_use_id":null,"uuid":""#,
            self.conversation.session_id
        );
        let mut id = [0; 36];
        for (number, piece) in pieces.into_iter().enumerate() {
            if number == half {
                self.apply_mid_answer_faults(turn);
                if turn.script.fallback {
                    break;
                }
            }
            if self.args.partial {
                line.clear();
                line.extend_from_slice(prefix.as_bytes());
                json::string(&mut line, piece);
                line.extend_from_slice(suffix.as_bytes());
                line.extend_from_slice(line_id(&mut id).as_bytes());
                line.extend_from_slice(b"\"}\n");
                self.out.bytes(&line);
            }
            turn.partial_text.push_str(piece);
            self.wait(delay)?;
        }
        if half <= 1 {
            self.apply_mid_answer_faults(turn);
        }
        Ok(())
    }
}

fn thinking_start() -> Vec<u8> {
    br#"{"type":"thinking","thinking":"","signature":""}"#.to_vec()
}

fn tool_block(id: &str, name: &str, input: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    object(&mut out, |o| {
        o.str("type", "tool_use").str("id", id).str("name", name).value("input", input);
    });
    out
}

/// Splits a text into deltas at character boundaries. A short text gives fewer deltas.
fn pieces(text: &str, wanted: Option<usize>, slow: bool) -> Vec<&str> {
    let characters = text.chars().count();
    let size = match wanted {
        _ if slow => 1,
        Some(wanted) => characters.div_ceil(wanted.max(1)),
        None => PIECE.max(characters.div_ceil(MAX_PIECES)),
    };
    let size = size.max(1);
    let mut pieces = Vec::with_capacity(characters / size + 1);
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.char_indices().nth(size).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn pieces_concatenate_to_the_text() {
        for text in ["", "a", "hello there", "ü😀x".repeat(300).as_str()] {
            for (wanted, slow) in [(None, false), (Some(3), false), (Some(5000), false), (None, true)] {
                assert_eq!(pieces(text, wanted, slow).concat(), text);
            }
        }
        assert_eq!(pieces("hello there", None, false), ["hello th", "ere"]);
        assert_eq!(pieces("abcd", Some(4), false).len(), 4);
    }
}
