//! Renders the chunks of a chat completion.

use bytes::{BufMut, BytesMut};
use serde_json::json;

use super::{finish_reason, usage};
use crate::adapter::answer::Part;
use crate::server::api::error::ApiError;
use crate::server::dialect::sse::{DONE, PING, event, permission};
use crate::server::dialect::streamed::PartWriter;
use crate::server::dialect::{AnswerContext, TurnRequest, new_id};
use crate::turn::Outcome;

/// Marks a loss of context: a comment, because chunks have no field for it.
const CONTEXT_LOST: &[u8] = b": context_lost\n\n";

pub(crate) struct ChunkWriter {
    session: String,
    id: String,
    created: u64,
    model: String,
    /// Everything before the delta: constant, so rendered once.
    before: String,
    begun: bool,
    /// Clients that ask for token counts expect the field in every chunk.
    with_usage: bool,
}

impl ChunkWriter {
    pub(in crate::server::dialect) fn new(context: &AnswerContext, request: &TurnRequest) -> Self {
        let mut writer = Self {
            session: context.session.clone(),
            id: new_id("chatcmpl-"),
            created: context.created,
            model: request.model.clone(),
            before: String::new(),
            begun: false,
            with_usage: request.include_usage,
        };
        writer.prepare();
        writer
    }

    fn prepare(&mut self) {
        // Writing to memory does not fail.
        let model = serde_json::to_string(&self.model).unwrap_or_default();
        let (id, created) = (&self.id, self.created);
        self.before = format!(
            r#"{{"id":"{id}","object":"chat.completion.chunk","created":{created},"model":{model},"choices":[{{"index":0,"delta":"#
        );
    }

    fn delta(&self, delta: &[&str], finish_reason: &str, frames: &mut BytesMut) {
        frames.put_slice(b"data: ");
        frames.put_slice(self.before.as_bytes());
        for piece in delta {
            frames.put_slice(piece.as_bytes());
        }
        frames.put_slice(br#","finish_reason":"#);
        frames.put_slice(finish_reason.as_bytes());
        frames.put_slice(b"}]");
        if self.with_usage {
            frames.put_slice(br#","usage":null"#);
        }
        frames.put_slice(b"}\n\n");
    }

    fn begin(&mut self, frames: &mut BytesMut) {
        if !std::mem::replace(&mut self.begun, true) {
            self.delta(&[r#"{"role":"assistant","content":""}"#], "null", frames);
        }
    }
}

impl PartWriter for ChunkWriter {
    const DONE: &[u8] = DONE;

    fn part(&mut self, part: Part<'_>, frames: &mut BytesMut) {
        match part {
            Part::Begin { model, .. } => {
                if !model.is_empty() {
                    model.clone_into(&mut self.model);
                    self.prepare();
                }
                self.begin(frames);
            }
            Part::Text { text, .. } => self.delta(&[r#"{"content":"#, text, "}"], "null", frames),
            Part::Delta { thought: Some(thought), .. } => {
                self.delta(&[r#"{"reasoning_content":"#, thought, "}"], "null", frames);
            }
            Part::Call { number, call, .. } => {
                let calls = json!({ "tool_calls": [{ "index": number, "id": call.id, "type": "function",
                    "function": { "name": call.name, "arguments": call.input.to_string() } }] });
                self.delta(&[&calls.to_string()], "null", frames);
            }
            Part::Open { .. } | Part::Close { .. } | Part::Delta { thought: None, .. } => {}
            Part::Waiting => frames.put_slice(PING),
            Part::Permission(request) => permission(request, frames),
        }
    }

    fn ping(&self) -> &'static [u8] {
        PING
    }

    fn end(&mut self, outcome: &Outcome, frames: &mut BytesMut) {
        self.begin(frames);
        if outcome.context_lost {
            frames.put_slice(CONTEXT_LOST);
        }
        self.delta(&["{}"], &format!("\"{}\"", finish_reason(outcome)), frames);
        if self.with_usage {
            let last = json!({
                "id": self.id,
                "object": "chat.completion.chunk",
                "created": self.created,
                "model": self.model,
                "choices": [],
                "usage": usage(&outcome.usage),
                "session_id": self.session,
                "cost_usd": outcome.cost_usd,
            });
            event(&last, frames);
        }
    }

    fn error(&mut self, error: &ApiError, frames: &mut BytesMut) {
        event(&error.openai_body(), frames);
    }
}
