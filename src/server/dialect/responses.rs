//! The Responses API, for its unmodified official SDKs.
//!
//! Items of the input become messages (`items`), a request is completed once what came before it is known (`request`), and
//! the blocks of an answer become items of the output: one each, as text and as events (`output`, `events`).

use serde_json::Value;

mod background;
mod events;
mod items;
mod object;
mod output;
mod request;
#[cfg(test)]
mod tests;

pub(crate) use background::Background;
pub(crate) use events::EventWriter;
pub(crate) use request::{Asked, Former, parse, previous_not_found};

use super::{AnswerContext, Collected};
use crate::turn::Outcome;
use object::Object;
use output::{call, message, reasoning};

/// The whole response.
pub(super) fn document(
    collected: Collected,
    outcome: &Outcome,
    context: &AnswerContext,
    asked: &Asked,
) -> Value {
    let mut output = Vec::with_capacity(collected.content.len());
    for block in &collected.content {
        if block["type"] == "tool_use" {
            let id = asked.id.output_item("fc", output.len());
            let named = |field: &str| block[field].as_str().unwrap_or_default();
            let arguments = block["input"].to_string();
            output.push(call(&id, (named("id"), named("name")), "completed", &arguments));
            continue;
        }
        let text = |field: &str| block[field].as_str().map(|text| Value::from(text).to_string());
        if let Some(text) = text("text") {
            output.push(message(&asked.id.output_item("msg", output.len()), "completed", Some(&text)));
        } else if let Some(thought) = text("thinking") {
            let thought = Some(thought).filter(|thought| thought != "\"\"");
            output.push(reasoning(&asked.id.output_item("rs", output.len()), thought.as_deref()));
        }
    }
    let object = Object::new(context, asked);
    let rendered = object.ended(collected.model_or(&context.model), outcome, &output);
    // Written by `Object` as one JSON object.
    serde_json::from_str(&rendered).unwrap_or_default()
}
