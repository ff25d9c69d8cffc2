//! One answer of the Messages API of the tests: carries the steps of a message out, as events or as a whole.

use std::collections::VecDeque;
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::api::Book;
use crate::block::{Block, event};
use crate::request::{Fate, Request};
use crate::script::{Break, Step};

/// An answer on its way. Dropped before it is complete, the caller has gone away.
pub struct Answer {
    request: Request,
    steps: VecDeque<Step>,
    number: usize,
    book: Book,
    blocks: usize,
    /// A block was begun and is not to be ended.
    cut: bool,
    stop_reason: String,
}

impl Answer {
    pub fn to(request: Request, book: Book) -> Self {
        let mut steps = request.steps();
        let mut number = 0;
        book.send_modify(|entries| {
            let earlier = entries.requests.iter().filter(|former| former.last() == request.last()).count();
            if steps.iter().any(|step| matches!(step, Step::Times(times) if *times <= earlier)) {
                steps.retain(|step| !step.is_fault());
            }
            number = entries.requests.len();
            entries.requests.push(request.clone());
        });
        Self {
            request,
            steps: steps.into(),
            number,
            book,
            blocks: 0,
            cut: false,
            stop_reason: "end_turn".into(),
        }
    }

    /// What the message asks for instead of an answer, after the waiting before it.
    pub async fn instead(&mut self) -> Option<Response> {
        if !self.steps.iter().any(Step::is_instead) {
            return None;
        }
        loop {
            match self.steps.pop_front()? {
                Step::Error { status, retry_after } => return Some(refused(status, retry_after)),
                Step::TooLong => return Some(too_long()),
                Step::Break(Break::Empty) => return Some(StatusCode::OK.into_response()),
                Step::Break(Break::Html) => {
                    return Some(axum::response::Html("<h1>a proxy's page</h1>").into_response());
                }
                step => drop(self.block(step).await),
            }
        }
    }

    /// The next piece of the event stream; nothing after the last.
    pub async fn events(&mut self) -> Option<Result<String, Broken>> {
        if self.is_complete() {
            return None;
        }
        // Nothing is sent before the first block: a test that holds a request there sees a turn without any output.
        while let Some(step) = self.steps.pop_front() {
            match step {
                Step::Break(how) => return Some(self.broken(how).await),
                step => {
                    let Some(block) = self.block(step).await else { continue };
                    let start = if self.blocks == 0 { self.start() } else { String::new() };
                    self.blocks += 1;
                    return Some(Ok(start + &block.events(self.blocks - 1)));
                }
            }
        }
        let start = if self.blocks == 0 { self.start() } else { String::new() };
        self.complete();
        Some(Ok(start + &self.end()))
    }

    /// A block that has begun, and then: something else than its end.
    async fn broken(&mut self, how: Break) -> Result<String, Broken> {
        let has_begun = std::mem::replace(&mut self.cut, true);
        match how {
            Break::Drop if has_begun => {
                // What was sent before is to arrive.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return Err(Broken);
            }
            Break::Stall if has_begun => std::future::pending().await,
            _ => {}
        }
        let start = if self.blocks == 0 { self.start() } else { String::new() };
        let begun = start + &Block::text(String::new(), vec!["cut off ".into()]).beginning(self.blocks);
        self.blocks += 1;
        if matches!(how, Break::Drop | Break::Stall) {
            self.steps.push_front(Step::Break(how));
            return Ok(begun);
        }
        if how == Break::Garbage {
            return Ok(begun + "event: content_block_delta\ndata: {\"type\": broken\n\n");
        }
        self.complete();
        let error = json!({"type": "overloaded_error", "message": "overloaded in mid-stream"});
        Ok(begun + &event("error", json!({"error": error})))
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
            Step::CodeWord => Some(Block::text(self.request.code_word(), vec![self.request.code_word()])),
            Step::Deltas(count) => {
                let pieces: Vec<_> = (0..count).map(|number| format!(" {number}")).collect();
                Some(Block::text(pieces.concat(), pieces))
            }
            Step::Think(text) => Some(Block::thinking(text)),
            Step::Tool { name, input } => {
                self.stop_reason = "tool_use".into();
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
            Step::Stop(reason) => {
                self.stop_reason = reason;
                None
            }
            // An answer that is asked for as a whole has no middle to break in.
            Step::Error { .. } | Step::TooLong | Step::Break(_) | Step::Times(_) => None,
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

/// The connection ends here.
#[derive(Debug)]
pub struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection breaks here")
    }
}

impl std::error::Error for Broken {}

/// What the API says when a conversation does not fit into the model's context.
fn too_long() -> Response {
    let message = "prompt is too long: 205000 tokens > 200000 maximum";
    let error = json!({"type": "invalid_request_error", "message": message});
    (StatusCode::BAD_REQUEST, Json(json!({"type": "error", "error": error}))).into_response()
}

fn refused(status: u16, retry_after: Option<u64>) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    let error = json!({"type": "invalid_request_error", "message": format!("refused with {status}")});
    let mut answer = (status, Json(json!({"type": "error", "error": error}))).into_response();
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert("retry-after", seconds.into());
    }
    answer
}
