//! The content blocks of answers, and the form of an event.

use serde_json::{Value, json};

/// One content block: as it is in a whole answer, and how it arrives in pieces.
pub struct Block {
    pub whole: Value,
    start: Value,
    deltas: Vec<Value>,
}

impl Block {
    pub fn text(whole: String, pieces: Vec<String>) -> Self {
        Self {
            whole: json!({"type": "text", "text": whole}),
            start: json!({"type": "text", "text": ""}),
            deltas: pieces.into_iter().map(|text| json!({"type": "text_delta", "text": text})).collect(),
        }
    }

    pub fn thinking(text: String) -> Self {
        Self {
            whole: json!({"type": "thinking", "thinking": text, "signature": "c2lnbmVk"}),
            start: json!({"type": "thinking", "thinking": "", "signature": ""}),
            deltas: vec![
                json!({"type": "thinking_delta", "thinking": text}),
                json!({"type": "signature_delta", "signature": "c2lnbmVk"}),
            ],
        }
    }

    pub fn tool(id: &str, name: &str, input: &Value) -> Self {
        Self {
            whole: json!({"type": "tool_use", "id": id, "name": name, "input": input}),
            start: json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
            deltas: vec![json!({"type": "input_json_delta", "partial_json": input.to_string()})],
        }
    }

    /// All but its end.
    pub fn beginning(&self, index: usize) -> String {
        let start = event("content_block_start", json!({"index": index, "content_block": self.start}));
        let delta = |delta| event("content_block_delta", json!({"index": index, "delta": delta}));
        let deltas: String = self.deltas.iter().map(delta).collect();
        start + &deltas
    }

    pub fn events(&self, index: usize) -> String {
        self.beginning(index) + &event("content_block_stop", json!({"index": index}))
    }
}

/// One event of a stream.
pub fn event(name: &str, mut data: Value) -> String {
    data["type"] = json!(name);
    format!("event: {name}\ndata: {data}\n\n")
}
