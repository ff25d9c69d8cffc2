//! What fills the model's context, as the CLI counts it. Pure.

use serde::Deserialize;
use serde_json::json;

use super::control::{request_with, response};
use crate::model::{ContextCategory, ContextUsage};

/// Categories that are kept; the CLI has ten.
const MOST_CATEGORIES: usize = 64;

/// Longest name of a category that is kept.
const LONGEST_NAME: usize = 128;

/// Control request for the use of the context. The CLI has the API count tokens for it, which costs none.
pub(crate) fn context_request(request_id: &str) -> Vec<u8> {
    let request = json!({"subtype": "get_context_usage"});
    request_with(request_id, &request)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    total_tokens: Option<u64>,
    max_tokens: Option<u64>,
    model: Option<String>,
    auto_compact_threshold: Option<u64>,
    #[serde(default)]
    is_auto_compact_enabled: bool,
    #[serde(default)]
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct Category {
    name: String,
    tokens: u64,
}

/// The answer to [`context_request`].
pub(crate) fn context_usage(line: &[u8]) -> Option<ContextUsage> {
    let found: Found = response(line)?;
    let categories = found.categories.into_iter().filter(|it| it.name.len() <= LONGEST_NAME);
    let categories = categories.take(MOST_CATEGORIES);
    Some(ContextUsage {
        model: found.model,
        total_tokens: found.total_tokens,
        max_tokens: found.max_tokens,
        auto_compact_at: found.auto_compact_threshold.filter(|_| found.is_auto_compact_enabled),
        categories: categories.map(|it| ContextCategory { name: it.name, tokens: it.tokens }).collect(),
        is_measured: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As 2.1.197 and 2.1.332 answer.
    #[test]
    fn usage_is_read() {
        let line = json!({"type": "control_response", "response": {"subtype": "success", "request_id": "context-1",
            "response": {"categories": [{"name": "System prompt", "tokens": 40, "color": "promptBorder"},
                {"id": "free_space", "name": "Free space", "tokens": 99, "kind": "free"}],
                "totalTokens": 1527, "maxTokens": 1_000_000, "gridRows": [[]], "percentage": 0, "model": "claude-x[1m]",
                "autoCompactThreshold": 967_000, "isAutoCompactEnabled": true}}});
        let usage = context_usage(line.to_string().as_bytes()).unwrap();
        assert_eq!((usage.total_tokens, usage.max_tokens), (Some(1527), Some(1_000_000)));
        assert_eq!((usage.model.as_deref(), usage.auto_compact_at), (Some("claude-x[1m]"), Some(967_000)));
        let names: Vec<_> = usage.categories.iter().map(|it| (it.name.as_str(), it.tokens)).collect();
        assert_eq!(names, [("System prompt", 40), ("Free space", 99)]);
        let refused =
            br#"{"type":"control_response","response":{"subtype":"error","request_id":"c","error":"no"}}"#;
        assert_eq!(context_usage(refused), None);
        assert_eq!(context_usage(b"garbage"), None);
    }
}
