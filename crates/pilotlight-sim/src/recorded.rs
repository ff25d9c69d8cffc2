//! Replays the lines of a recorded turn as the answer: deltas, messages and tool results as they were, under the id of
//! this conversation. What belongs to the recorded process is left out: its `init`, replays and control lines.

use serde_json::Value;

use crate::conversation::new_id;
use crate::engine::Engine;
use crate::result::Outcome;
use crate::turn::{Turn, answered};

impl Engine {
    /// Writes the lines and keeps their messages in the conversation. The end is that of the recorded `result`; without
    /// one, that of an answer with the last text.
    pub(crate) fn replay_recorded(&mut self, turn: &mut Turn) -> Outcome {
        let mut last_text = String::new();
        let mut result = None;
        self.late_replay(turn);
        for line in std::mem::take(&mut turn.script.recorded) {
            match line.get("type").and_then(Value::as_str) {
                Some("result") => result = Some(line),
                Some("stream_event") if self.args.partial => self.emit_recorded(turn, line),
                Some("assistant") => {
                    self.keep_recorded(&line, true);
                    last_text = text_of(&line).unwrap_or(last_text);
                    self.emit_recorded(turn, line);
                }
                Some("user") if line.get("isReplay").is_none() => {
                    self.keep_recorded(&line, false);
                    self.emit_recorded(turn, line);
                }
                Some("system") if line.get("subtype").is_some_and(|subtype| subtype != "init") => {
                    self.emit_recorded(turn, line);
                }
                _ => {}
            }
        }
        self.end_recorded(turn, result, last_text)
    }

    fn emit_recorded(&mut self, turn: &mut Turn, mut line: Value) {
        turn.note_output();
        if let Some(session) = line.get_mut("session_id") {
            *session = self.conversation.session_id.clone().into();
        }
        self.out.bytes(format!("{line}\n").as_bytes());
    }

    fn keep_recorded(&mut self, line: &Value, of_assistant: bool) {
        let uuid = line.get("uuid").and_then(Value::as_str).map_or_else(new_id, str::to_owned);
        let message = line.get("message").cloned().unwrap_or_default();
        if of_assistant {
            self.conversation.assistant(&uuid, |o| {
                for (key, value) in message.as_object().into_iter().flatten() {
                    o.value(key, value);
                }
            });
        } else {
            self.conversation.note(&uuid, message.to_string().as_bytes(), None);
        }
    }

    fn end_recorded(&mut self, turn: &mut Turn, result: Option<Value>, last_text: String) -> Outcome {
        turn.rounds = turn.rounds.max(1);
        let result = result.unwrap_or_default();
        let tokens = |key: &str| {
            result.get("usage").and_then(|usage| usage.get(key)).and_then(Value::as_u64).unwrap_or(0)
        };
        self.book(turn, tokens("input_tokens"), tokens("output_tokens"));
        turn.document = result.get("structured_output").cloned();
        let text = result.get("result").and_then(Value::as_str).map_or(last_text, str::to_owned);
        let rounds = result.get("num_turns").and_then(Value::as_u64).unwrap_or(1);
        let is_error = result.get("is_error").and_then(Value::as_bool).unwrap_or(false);
        let status = result.get("api_error_status").and_then(Value::as_u64);
        let success = Outcome {
            is_error,
            api_status: Some(status.and_then(|status| u16::try_from(status).ok())),
            ..answered(text, rounds)
        };
        let errors = result.get("errors").and_then(Value::as_array);
        match errors.and_then(|errors| errors.first()).and_then(Value::as_str) {
            Some(error) => Outcome {
                subtype: "error_during_execution",
                is_error: true,
                text: Err(error.to_owned()),
                api_status: None,
                ..success
            },
            None => success,
        }
    }
}

/// The text blocks of an assistant's line.
fn text_of(line: &Value) -> Option<String> {
    let blocks = line.get("message")?.get("content")?.as_array()?;
    let texts: Vec<&str> =
        blocks.iter().filter_map(|block| block.get("text").and_then(Value::as_str)).collect();
    (!texts.is_empty()).then(|| texts.concat())
}
