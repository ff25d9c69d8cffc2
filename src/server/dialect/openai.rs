//! The Chat Completions API, for its unmodified official SDKs.

use serde_json::{Value, json};

mod chunks;
mod message;
mod request;

pub(crate) use chunks::ChunkWriter;
pub(super) use message::{data_url, file};
pub(super) use request::add_of_user;
pub(crate) use request::parse;

use super::{AnswerContext, Collected, mark_context_lost, new_id, stop_reason};
use crate::model::Usage;
use crate::turn::Outcome;

pub(super) fn document(collected: Collected, outcome: &Outcome, context: &AnswerContext) -> Value {
    let mut message = json!({ "role": "assistant", "content": collected.text(), "refusal": null });
    let thoughts = collected.thoughts();
    if !thoughts.is_empty() {
        message["reasoning_content"] = thoughts.into();
    }
    let calls: Vec<Value> = collected
        .calls()
        .map(|call| {
            let function = json!({ "name": call["name"], "arguments": call["input"].to_string() });
            json!({ "id": call["id"], "type": "function", "function": function })
        })
        .collect();
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
        if message["content"] == "" {
            message["content"] = Value::Null;
        }
    }
    let mut document = json!({
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": context.created,
        "model": collected.model_or(&context.model),
        "choices": [{ "index": 0, "message": message, "finish_reason": finish_reason(outcome), "logprobs": null }],
        "usage": usage(&outcome.usage),
        "session_id": context.session,
        "cost_usd": outcome.cost_usd,
    });
    mark_context_lost(outcome, &mut document);
    document
}

fn finish_reason(outcome: &Outcome) -> &'static str {
    match stop_reason(outcome) {
        "max_tokens" | "model_context_window_exceeded" => "length",
        "refusal" => "content_filter",
        "tool_use" => "tool_calls",
        _ => "stop",
    }
}

/// Token counts of this API, which include cached tokens in the prompt.
fn usage(usage: &Usage) -> Value {
    let cached = usage.cache_read_input_tokens;
    let prompt = usage.input_tokens + usage.cache_creation_input_tokens + cached;
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": usage.output_tokens,
        "total_tokens": prompt + usage.output_tokens,
        "prompt_tokens_details": { "cached_tokens": cached },
    })
}
