//! A whole answer, collected for callers without streaming.

use serde_json::{Value, json};

use super::Reader;
use crate::adapter::answer::{Block, Part};
use crate::model::ToolCall;

#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// Message id of the model's API; empty without one.
    pub(super) id: String,
    pub(super) model: String,
    pub(super) content: Vec<Value>,
}

impl Collected {
    pub(crate) fn lines(&mut self, reader: &mut Reader, lines: &[u8]) {
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            reader.read(line, &mut |part| self.take(part));
        }
    }

    /// Collects the rest at the end of the turn.
    pub(crate) fn end(&mut self, reader: &mut Reader, text: &str, calls: &[ToolCall]) {
        reader.end(text, &mut |part| self.take(part));
        reader.calls(calls, &mut |part| self.take(part));
    }

    /// The model that answered, else `request`.
    pub(super) fn model_or<'a>(&'a self, request: &'a str) -> &'a str {
        if self.model.is_empty() { request } else { &self.model }
    }

    pub(crate) fn text(&self) -> String {
        let texts = self.content.iter().filter_map(|block| block.get("text")?.as_str());
        texts.collect()
    }

    /// The calls of the caller's tools.
    pub(super) fn calls(&self) -> impl Iterator<Item = &Value> {
        self.content.iter().filter(|block| block["type"] == "tool_use")
    }

    pub(super) fn thoughts(&self) -> String {
        let thoughts = self.content.iter().filter_map(|block| block.get("thinking")?.as_str());
        thoughts.collect()
    }

    fn take(&mut self, part: Part<'_>) {
        match part {
            Part::Begin { id, model, .. } => (self.id, self.model) = (id.to_owned(), model.to_owned()),
            Part::Open { block, .. } => self.content.push(match block {
                Block::Text => json!({ "type": "text", "text": "" }),
                Block::Thinking => json!({ "type": "thinking", "thinking": "", "signature": "" }),
                Block::Whole(block) => serde_json::from_str(block).unwrap_or_default(),
            }),
            Part::Text { text, .. } => self.add("text", text),
            Part::Delta { delta, .. } => {
                let delta: Value = serde_json::from_str(delta).unwrap_or_default();
                for field in ["thinking", "signature"] {
                    if let Some(more) = delta.get(field) {
                        self.add(field, &more.to_string());
                    }
                }
            }
            Part::Call { call, .. } => self.content.push(json!({
                "type": "tool_use", "id": call.id, "name": call.name, "input": call.input,
            })),
            Part::Close { .. } | Part::Waiting | Part::Permission(_) => {}
        }
    }

    /// `more` is a JSON string.
    fn add(&mut self, field: &str, more: &str) {
        let more: String = serde_json::from_str(more).unwrap_or_default();
        if let Some(Value::String(text)) = self.content.last_mut().and_then(|block| block.get_mut(field)) {
            text.push_str(&more);
        }
    }
}
