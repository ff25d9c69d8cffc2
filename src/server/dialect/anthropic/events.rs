//! Renders the events of the Messages API: `message_start`, blocks, `message_delta`, `message_stop`.

use bytes::{BufMut, BytesMut};
use serde_json::{Value, json};

use super::{event, usage};
use crate::adapter::answer::{Block, Part};
use crate::server::api::error::ApiError;
use crate::server::dialect::sse::permission;
use crate::server::dialect::streamed::PartWriter;
use crate::server::dialect::{AnswerContext, mark_context_lost, new_id, stop_reason};
use crate::turn::Outcome;

/// SDKs skip `ping` events; before `message_start` a comment is safer.
const PING: &[u8] = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";
const EARLY_PING: &[u8] = b": ping\n\n";

pub(crate) struct EventWriter {
    session: String,
    /// Model as named by the caller, used if none is reported.
    model: String,
    begun: bool,
    /// The event of a text delta up to its text, rendered once per block.
    before_text: (u32, String),
}

impl EventWriter {
    pub(in crate::server::dialect) fn new(context: &AnswerContext) -> Self {
        Self {
            session: context.session.clone(),
            model: context.model.clone(),
            begun: false,
            before_text: (0, before_text(0)),
        }
    }
}

fn before_text(index: u32) -> String {
    format!(
        "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":{index},\"delta\":{{\"type\":\"text_delta\",\"text\":"
    )
}

impl PartWriter for EventWriter {
    const DONE: &[u8] = b"";

    fn ping(&self) -> &'static [u8] {
        if self.begun { PING } else { EARLY_PING }
    }

    fn end(&mut self, outcome: &Outcome, frames: &mut BytesMut) {
        if !self.begun {
            self.part(Part::Begin { id: "", model: "", usage: "{}" }, frames);
        }
        let mut delta = json!({
            "type": "message_delta",
            "delta": { "stop_reason": stop_reason(outcome), "stop_sequence": null },
            "usage": usage(&outcome.usage),
            "session_id": self.session,
            "cost_usd": outcome.cost_usd,
        });
        mark_context_lost(outcome, &mut delta);
        event(frames, "message_delta", format_args!("{delta}"));
        event(frames, "message_stop", format_args!(r#"{{"type":"message_stop"}}"#));
    }

    fn error(&self, error: &ApiError, frames: &mut BytesMut) {
        event(frames, "error", format_args!("{}", error.body(None)));
    }

    fn part(&mut self, part: Part<'_>, frames: &mut BytesMut) {
        match part {
            Part::Begin { id, model, usage } => {
                self.begun = true;
                let model = if model.is_empty() { &self.model } else { model };
                let id = if id.is_empty() { new_id("msg_") } else { id.to_owned() };
                let mut usage: Value = serde_json::from_str(usage).unwrap_or_default();
                // SDKs require these fields.
                if !usage.is_object() {
                    usage = json!({});
                }
                for field in ["input_tokens", "output_tokens"] {
                    if !usage[field].is_u64() {
                        usage[field] = json!(0);
                    }
                }
                let start = json!({
                    "type": "message_start",
                    "message": {
                        "id": id, "type": "message", "role": "assistant", "model": model, "content": [],
                        "stop_reason": null, "stop_sequence": null, "usage": usage,
                    },
                });
                event(frames, "message_start", format_args!("{start}"));
            }
            Part::Open { index, block } => {
                let block = match block {
                    Block::Text => r#"{"type":"text","text":""}"#,
                    Block::Thinking => r#"{"type":"thinking","thinking":"","signature":""}"#,
                    Block::Whole(block) => block,
                };
                let data = format_args!(
                    r#"{{"type":"content_block_start","index":{index},"content_block":{block}}}"#
                );
                event(frames, "content_block_start", data);
            }
            Part::Text { index, text } => {
                if self.before_text.0 != index {
                    self.before_text = (index, before_text(index));
                }
                frames.put_slice(self.before_text.1.as_bytes());
                frames.put_slice(text.as_bytes());
                frames.put_slice(b"}}\n\n");
            }
            Part::Delta { index, delta, .. } => {
                let data =
                    format_args!(r#"{{"type":"content_block_delta","index":{index},"delta":{delta}}}"#);
                event(frames, "content_block_delta", data);
            }
            Part::Close { index } => {
                let data = format_args!(r#"{{"type":"content_block_stop","index":{index}}}"#);
                event(frames, "content_block_stop", data);
            }
            Part::Waiting => frames.put_slice(self.ping()),
            Part::Permission(request) => {
                frames.put_slice(self.ping());
                permission(request, frames);
            }
        }
    }
}
