//! The Messages API, for its unmodified official SDKs.

use std::fmt::Write as _;

use bytes::BytesMut;
use serde_json::{Value, json};

mod client;
mod events;
mod request;

pub(crate) use events::EventWriter;
pub(crate) use request::{count, parse};

use super::{AnswerContext, Collected, mark_context_lost, new_id, stop_reason};
use crate::model::Usage;
use crate::turn::Outcome;

pub(super) fn document(collected: Collected, outcome: &Outcome, context: &AnswerContext) -> Value {
    let id = if collected.id.is_empty() { new_id("msg_") } else { collected.id.clone() };
    let mut document = json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": collected.model_or(&context.model),
        "content": collected.content,
        "stop_reason": stop_reason(outcome),
        "stop_sequence": null,
        "usage": usage(&outcome.usage),
        "session_id": context.session,
        "cost_usd": outcome.cost_usd,
    });
    mark_context_lost(outcome, &mut document);
    document
}

pub(super) fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_creation_input_tokens": usage.cache_creation_input_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
    })
}

fn event(frames: &mut BytesMut, name: &str, data: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    write!(frames, "event: {name}\ndata: {data}\n\n").ok();
}
