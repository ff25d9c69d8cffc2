//! One answer of the Messages API of the tests: carries the steps of a message out, as events or as a whole.

use std::collections::VecDeque;

use axum::Json;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::api::Book;
use super::request::{Fate, Request};
use super::script::Step;

/// An answer on its way. Dropped before it is complete, the caller has gone away.
pub struct Answer {
    request: Request,
    steps: VecDeque<Step>,
    number: usize,
    book: Book,
    blocks: usize,
    stop_reason: &'static str,
}

impl Answer {
    pub fn to(request: Request, book: Book) -> Self {
        let steps = request.steps().into();
        let mut number = 0;
        book.send_modify(|entries| {
            number = entries.requests.len();
            entries.requests.push(request.clone());
        });
        Self { request, steps, number, book, blocks: 0, stop_reason: "end_turn" }
    }

    /// The status that the message asks for instead of an answer, after the waiting before it.
    pub async fn refusal(&mut self) -> Option<StatusCode> {
        if !self.steps.iter().any(|step| matches!(step, Step::Error(_))) {
            return None;
        }
        loop {
            match self.steps.pop_front()? {
                Step::Error(status) => return StatusCode::from_u16(status).ok(),
                step => drop(self.block(step).await),
            }
        }
    }

    /// The next piece of the event stream; nothing after the last.
    pub async fn events(&mut self) -> Option<String> {
        if self.is_complete() {
            return None;
        }
        // Nothing is sent before the first block: a test that holds a request there sees a turn without any output.
        while let Some(step) = self.steps.pop_front() {
            let Some(block) = self.block(step).await else { continue };
            let start = if self.blocks == 0 { self.start() } else { String::new() };
            self.blocks += 1;
            return Some(start + &block.events(self.blocks - 1));
        }
        let start = if self.blocks == 0 { self.start() } else { String::new() };
        self.complete();
        Some(start + &self.end())
    }

    pub fn streams(&self) -> bool {
        self.request.streaming
    }

    fn start(&self) -> String {
        event("message_start", json!({"message": self.message(Vec::new(), Value::Null)}))
    }

    fn end(&self) -> String {
        let delta = json!({"stop_reason": self.stop_reason, "stop_sequence": null});
        event("message_delta", json!({"delta": delta, "usage": {"output_tokens": 29}}))
            + &event("message_stop", json!({}))
    }

    /// The answer to a request that asked for no stream.
    pub async fn whole(mut self) -> Json<Value> {
        let mut content = Vec::new();
        while let Some(step) = self.steps.pop_front() {
            content.extend(self.block(step).await.map(|block| block.whole));
        }
        self.complete();
        Json(self.message(content, json!(self.stop_reason)))
    }

    fn message(&self, content: Vec<Value>, stop_reason: Value) -> Value {
        json!({
            "id": format!("msg_{:06}", self.number), "type": "message", "role": "assistant", "model": self.request.model,
            "content": content, "stop_reason": stop_reason, "stop_sequence": null,
            "usage": {"input_tokens": 17, "output_tokens": 3, "cache_creation_input_tokens": 11, "cache_read_input_tokens": 7},
        })
    }

    /// Carries one step out; the steps of waiting make no block.
    async fn block(&mut self, step: Step) -> Option<Block> {
        match step {
            Step::Say(text) => Some(Block::text(text.clone(), vec![text])),
            Step::Recall => Some(Block::text(self.request.former(), vec![self.request.former()])),
            Step::Deltas(count) => {
                let pieces: Vec<_> = (0..count).map(|number| format!(" {number}")).collect();
                Some(Block::text(pieces.concat(), pieces))
            }
            Step::Think(text) => Some(Block::thinking(text)),
            Step::Tool { name, input } => {
                self.stop_reason = "tool_use";
                Some(Block::tool(&format!("toolu_{:06}_{}", self.number, self.blocks), &name, &input))
            }
            Step::Delay(pause) => {
                tokio::time::sleep(pause).await;
                None
            }
            Step::Hold(name) => {
                let mut changes = self.book.subscribe();
                self.note(|request| request.held.push(name.clone()));
                changes.wait_for(|entries| entries.released.contains(&name)).await.expect("the API lives");
                None
            }
            Step::Hang => std::future::pending().await,
            Step::Error(_) => None,
        }
    }

    fn note(&self, change: impl FnOnce(&mut Request)) {
        self.book.send_modify(|entries| {
            if let Some(request) = entries.requests.get_mut(self.number) {
                change(request);
            }
        });
    }

    pub fn complete(&self) {
        self.note(|request| request.fate = Fate::Answered);
    }

    fn is_complete(&self) -> bool {
        self.book.borrow().requests.get(self.number).is_some_and(|request| request.fate == Fate::Answered)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.is_complete() {
            self.note(|request| request.fate = Fate::Aborted);
        }
    }
}

/// One content block: as it is in a whole answer, and how it arrives in pieces.
struct Block {
    whole: Value,
    start: Value,
    deltas: Vec<Value>,
}

impl Block {
    fn text(whole: String, pieces: Vec<String>) -> Self {
        Self {
            whole: json!({"type": "text", "text": whole}),
            start: json!({"type": "text", "text": ""}),
            deltas: pieces.into_iter().map(|text| json!({"type": "text_delta", "text": text})).collect(),
        }
    }

    fn thinking(text: String) -> Self {
        Self {
            whole: json!({"type": "thinking", "thinking": text, "signature": "c2lnbmVk"}),
            start: json!({"type": "thinking", "thinking": "", "signature": ""}),
            deltas: vec![
                json!({"type": "thinking_delta", "thinking": text}),
                json!({"type": "signature_delta", "signature": "c2lnbmVk"}),
            ],
        }
    }

    fn tool(id: &str, name: &str, input: &Value) -> Self {
        Self {
            whole: json!({"type": "tool_use", "id": id, "name": name, "input": input}),
            start: json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
            deltas: vec![json!({"type": "input_json_delta", "partial_json": input.to_string()})],
        }
    }

    fn events(self, index: usize) -> String {
        let start = event("content_block_start", json!({"index": index, "content_block": self.start}));
        let delta = |delta| event("content_block_delta", json!({"index": index, "delta": delta}));
        let deltas: String = self.deltas.into_iter().map(delta).collect();
        start + &deltas + &event("content_block_stop", json!({"index": index}))
    }
}

fn event(name: &str, mut data: Value) -> String {
    data["type"] = json!(name);
    format!("event: {name}\ndata: {data}\n\n")
}
