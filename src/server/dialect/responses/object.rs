//! The response object, whole and in events. Pure.
//!
//! Fields without effect have the value that is in effect, whatever the request says: an answer must not claim a
//! temperature that nobody set.

use serde_json::{Value, json};

use super::request::Asked;
use crate::model::Usage;
use crate::server::dialect::{AnswerContext, stop_reason};
use crate::turn::Outcome;

/// Everything that stays the same, rendered once: a stream has the object three times.
pub(super) struct Object {
    /// Without the closing brace.
    fixed: String,
    created: u64,
}

impl Object {
    pub(super) fn new(context: &AnswerContext, asked: &Asked) -> Self {
        let fixed = json!({
            "id": asked.id.to_string(),
            "object": "response",
            "created_at": context.created,
            "background": asked.is_background,
            "instructions": asked.instructions,
            "max_output_tokens": null,
            "max_tool_calls": null,
            "metadata": asked.metadata,
            "parallel_tool_calls": true,
            "previous_response_id": asked.previous.as_ref().map(ToString::to_string),
            "conversation": asked.named.as_ref().map(|name| json!({ "id": name })),
            "prompt_cache_key": null,
            "reasoning": { "effort": null, "summary": null },
            "safety_identifier": null,
            "service_tier": "default",
            "store": asked.is_stored,
            "temperature": null,
            "text": { "format": asked.format },
            "tool_choice": asked.tool_choice,
            "tools": asked.tools,
            "top_logprobs": 0,
            "top_p": null,
            "truncation": "disabled",
            "user": asked.user,
            "session_id": context.session,
        });
        let mut fixed = fixed.to_string();
        fixed.pop();
        Self { fixed, created: context.created }
    }

    pub(super) fn bytes(&self) -> usize {
        self.fixed.len()
    }

    /// The object before its answer.
    pub(super) fn begun(&self, model: &str) -> String {
        self.without_answer(model, "in_progress")
    }

    /// The object without an answer, with this status.
    pub(super) fn without_answer(&self, model: &str, status: &str) -> String {
        let (fixed, model) = (&self.fixed, Value::from(model));
        format!(
            r#"{fixed},"model":{model},"status":"{status}","error":null,"incomplete_details":null,"output":[],"usage":null}}"#
        )
    }

    /// The object with its answer. `output` has JSON objects.
    pub(super) fn ended(&self, model: &str, outcome: &Outcome, output: &[String]) -> String {
        let (fixed, model, output) = (&self.fixed, Value::from(model), output.join(","));
        let (status, details) = match incomplete(outcome) {
            Some(reason) => ("incomplete", json!({ "reason": reason })),
            None => ("completed", Value::Null),
        };
        let took = outcome.duration.as_secs();
        let completed = if details.is_null() { Value::from(self.created + took) } else { Value::Null };
        let (usage, cost) = (usage(&outcome.usage), Value::from(outcome.cost_usd));
        let lost = if outcome.context_lost { r#","context_lost":true"# } else { "" };
        format!(
            r#"{fixed},"model":{model},"status":"{status}","error":null,"incomplete_details":{details},"completed_at":{completed},"output":[{output}],"usage":{usage},"cost_usd":{cost}{lost}}}"#
        )
    }

    /// The object of a turn that failed with an error, its code and message, with what came of its answer.
    pub(super) fn failed(&self, model: &str, (code, message): (&str, &str), output: &[String]) -> String {
        let (fixed, model, output) = (&self.fixed, Value::from(model), output.join(","));
        let error = json!({ "code": code, "message": message });
        format!(
            r#"{fixed},"model":{model},"status":"failed","error":{error},"incomplete_details":null,"output":[{output}],"usage":null}}"#
        )
    }
}

/// Why an answer is incomplete.
pub(super) fn incomplete(outcome: &Outcome) -> Option<&'static str> {
    match stop_reason(outcome) {
        "max_tokens" | "model_context_window_exceeded" => Some("max_output_tokens"),
        "refusal" => Some("content_filter"),
        _ => None,
    }
}

/// Token counts of this API, which include cached tokens in the input. The CLI does not report those of thoughts apart.
fn usage(usage: &Usage) -> Value {
    let (read, written) = (usage.cache_read_input_tokens, usage.cache_creation_input_tokens);
    let input = usage.input_tokens.saturating_add(written).saturating_add(read);
    json!({
        "input_tokens": input,
        "input_tokens_details": { "cached_tokens": read, "cache_write_tokens": written },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": input.saturating_add(usage.output_tokens),
    })
}
