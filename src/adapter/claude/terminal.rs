//! The last line of a turn: outcome, usage and cost, and the kind of a failure. Tolerant: see [`super::fields`].

use std::collections::BTreeMap;

use serde::Deserialize;

use super::amounts::Amounts;
use super::fields::{Fields, with_fields};
use super::read::is_plain;
use crate::adapter::Terminal;
use crate::model::Failure;

/// Reads a `result` message.
pub(crate) fn terminal(line: &[u8]) -> Option<Terminal> {
    with_fields(line, |fields| {
        if fields.text("type")? != "result" {
            return None;
        }
        let subtype = fields.text("subtype").unwrap_or_default();
        let mut amounts = Amounts::default();
        let usage = fields.object("usage").map(|usage| amounts.usage(&usage)).unwrap_or_default();
        let total = fields.has("total_cost_usd").then(|| fields.get("total_cost_usd"));
        let cumulative_cost_usd = amounts.cost(total);
        let cost_usd = fields.has(SINCE_LAST).then(|| amounts.cost(Some(cost_of_models(fields))));
        Some(Terminal {
            unsolicited: fields.has("origin"),
            session_id: fields.text("session_id").filter(|id| is_plain(id)),
            text: fields.text("result").unwrap_or_default(),
            failure: failure(fields, &subtype),
            stop_reason: fields.text("stop_reason"),
            usage,
            cumulative_cost_usd,
            cost_usd,
            implausible: amounts.implausible,
            // A process over its budget refuses all further turns.
            process_exhausted: subtype == "error_max_budget_usd",
        })
    })
}

/// Field with what each model has cost since the last such line.
const SINCE_LAST: &str = "model_usage_since_last_result";

/// Cost of one model.
#[derive(Deserialize)]
struct ModelCost {
    #[serde(rename = "costUSD")]
    cost_usd: f64,
}

/// Sum over all models. `None` if a cost is missing, negative or no number.
fn cost_of_models(fields: &Fields<'_>) -> Option<f64> {
    let models: BTreeMap<String, ModelCost> = fields.get(SINCE_LAST)?;
    let costs = models.values().map(|model| model.cost_usd);
    costs.map(|usd| (usd >= 0.0).then_some(usd)).sum()
}

/// The failure, if any. Failures of the API have the subtype `success` and `is_error`.
fn failure(fields: &Fields<'_>, subtype: &str) -> Option<Failure> {
    let is_error: Option<bool> = fields.get("is_error");
    // A turn that is interrupted in its last milliseconds is a success without text.
    let aborted = fields.text("terminal_reason").is_some_and(|reason| reason.starts_with("aborted"));
    // Versions before 2.1 mark an interrupted turn by an error subtype without `is_error`.
    if !is_error.unwrap_or(subtype != "success") && !subtype.starts_with("error_") && !aborted {
        return None;
    }
    let given_status: Option<u16> = fields.get("api_error_status");
    let errors: Vec<String> = fields.get("errors").unwrap_or_default();
    let without_reason = || {
        errors.iter().any(|error| error.starts_with("[ede_diagnostic]"))
            || (is_error == Some(false) && errors.is_empty())
    };
    let interrupted = aborted || (subtype == "error_during_execution" && without_reason());
    if interrupted {
        let (kind, message) = ("interrupted".to_owned(), "the turn was interrupted".to_owned());
        return Some(Failure { kind, api_status: given_status, message, interrupted });
    }
    let message = fields.text("result").filter(|text| !text.is_empty()).unwrap_or_else(|| errors.join("; "));
    let api_status = given_status.or_else(|| message.starts_with(REPEATED_529).then_some(529));
    let kind = match subtype.strip_prefix("error_") {
        Some(kind) => kind,
        None if fields.text("stop_reason").as_deref() == Some("refusal") => "refusal",
        None if is_context_full(fields, &message) => "context_full",
        None => api_kind(api_status, &message, fields.text("api_error").as_deref()),
    };
    Some(Failure { kind: kind.to_owned(), api_status, message, interrupted })
}

/// Whether the conversation exceeds the model's context: the API refused it, or the CLI did not send it. Version 2.0
/// reports that in the text only.
fn is_context_full(fields: &Fields<'_>, message: &str) -> bool {
    let reason = fields.text("terminal_reason");
    let is_named = |reason: &str| CONTEXT_FULL_REASONS.contains(&reason);
    reason.as_deref().is_some_and(is_named) || message.starts_with("Prompt is too long")
}

/// Reasons for a full context. The last one: the context is full again right after it was compacted.
const CONTEXT_FULL_REASONS: [&str; 3] = ["prompt_too_long", "blocking_limit", "rapid_refill_breaker"];

/// Beginning of a failure whose status is missing.
const REPEATED_529: &str = "API Error: Repeated 529";

/// The CLI's name for a failure of the API. The CLI gives it in an earlier line; here it follows from the status, the
/// beginning of the text, or the name that 2.1.332 adds for some failures.
fn api_kind(status: Option<u16>, message: &str, name: Option<&str>) -> &'static str {
    match status {
        Some(401 | 403) => "authentication_failed",
        Some(404) => "model_not_found",
        Some(400) => "invalid_request",
        Some(413) => "request_too_large",
        Some(429) => "rate_limit",
        Some(500..) => "server_error",
        _ if message.starts_with("Not logged in") => "authentication_failed",
        _ if name == Some("max_output_tokens") => "max_output_tokens",
        // There is no status without a complete response of the API.
        _ if message.starts_with("API Error: ") || message.starts_with("Request timed out") => "server_error",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::model::Usage;

    fn read(line: &serde_json::Value) -> Terminal {
        terminal(line.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn terminal_without_fields_gets_defaults() {
        let empty = read(&json!({"type": "result"}));
        assert_eq!((empty.text.as_str(), empty.usage, empty.unsolicited), ("", Usage::default(), false));
        assert_eq!(empty.failure.map(|failure| failure.kind).as_deref(), Some("unknown"));
        let odd = json!({"type": "result", "subtype": "success", "is_error": false, "result": [], "usage": {"input_tokens": "7",
            "output_tokens": 3}, "total_cost_usd": null, "session_id": 5, "stop_reason": {}, "origin": null});
        let odd = read(&odd);
        assert_eq!((odd.failure, odd.usage.output_tokens, odd.session_id), (None, 3, None));
        assert_eq!(terminal(br#"{"type":"assistant","result":"x"}"#), None);
        assert_eq!(terminal(br#"{"type":"result","#), None);
    }

    #[test]
    fn implausible_amounts_count_as_zero() {
        let line = |tokens: &str, total: &str, models: &str| {
            let line = format!(
                r#"{{"type":"result","subtype":"success","usage":{{"input_tokens":{tokens},"output_tokens":3}},
                "total_cost_usd":{total},"model_usage_since_last_result":{models}}}"#
            );
            let read = terminal(line.as_bytes()).unwrap();
            assert_eq!(read.usage.output_tokens, 3, "one amount affects no other");
            (read.usage.input_tokens, read.cumulative_cost_usd, read.cost_usd, read.implausible)
        };
        let model = |cost: &str| format!(r#"{{"a":{{"costUSD":1}},"b":{{"costUSD":{cost}}}}}"#);
        assert_eq!(line("7", "0.5", "null"), (7, 0.5, None, false));
        assert_eq!(line("null", "null", &model("0.25")), (0, 0.0, Some(1.25), false));
        for tokens in ["18446744073709551615", "1e30", "-1", "0.5", "\"7\"", "[]", "10000000001"] {
            assert_eq!(line(tokens, "0", "null"), (0, 0.0, None, true), "{tokens}");
        }
        for cost in ["1e999", "-1e999", "1.7e308", "-0.01", "10000.01", "\"1\"", "{}"] {
            assert_eq!(line("7", cost, "null"), (7, 0.0, None, true), "{cost}");
            assert_eq!(line("7", "0", &model(cost)), (7, 0.0, Some(0.0), true), "{cost}");
        }
        assert_eq!(line("7", "0", r#"{"a":{}}"#), (7, 0.0, Some(0.0), true));
        assert_eq!(terminal(br#"{"type":"result","total_cost_usd":NaN}"#), None, "no JSON");
    }

    #[test]
    fn failures_have_the_names_of_the_cli() {
        let cases = [
            (json!(401), "API Error: 401", "authentication_failed"),
            (json!(403), "x", "authentication_failed"),
            (json!(404), "x", "model_not_found"),
            (json!(413), "x", "request_too_large"),
            (json!(429), "x", "rate_limit"),
            (json!(529), "x", "server_error"),
            (json!(null), "API Error: Repeated 529 Overloaded errors", "server_error"),
            (json!(null), "Not logged in · Please run /login", "authentication_failed"),
            (json!("what"), "x", "unknown"),
        ];
        for (status, text, kind) in cases {
            let line = json!({"type": "result", "subtype": "success", "is_error": true, "api_error_status": status, "result": text});
            let failure = read(&line).failure.unwrap();
            assert_eq!((failure.kind.as_str(), failure.message.as_str()), (kind, text));
            assert!(!failure.interrupted);
        }
    }

    #[test]
    fn full_context_is_recognised_in_every_version() {
        let kind = |status: serde_json::Value, text: &str, reason: serde_json::Value| {
            let line = json!({"type": "result", "subtype": "success", "is_error": true, "api_error_status": status,
                "result": text, "terminal_reason": reason});
            read(&line).failure.unwrap().kind
        };
        let long = "Prompt is too long · the request is ~205000 tokens (limit 200000)";
        assert_eq!(kind(json!(400), long, json!("prompt_too_long")), "context_full");
        assert_eq!(kind(json!(null), "Prompt is too long", json!(null)), "context_full", "2.0.76");
        for reason in CONTEXT_FULL_REASONS {
            assert_eq!(kind(json!(null), "in other words", json!(reason)), "context_full", "{reason}");
        }
        assert_eq!(
            kind(json!(413), "Request too large (max 32MB).", json!("image_error")),
            "request_too_large"
        );
        assert_eq!(kind(json!(400), "API Error: 400", json!("completed")), "invalid_request");
    }

    #[test]
    fn interrupted_turn_is_recognised() {
        let with = |is_error: bool, errors: &[&str], reason: serde_json::Value| {
            let line = json!({"type": "result", "subtype": "error_during_execution", "is_error": is_error,
                "errors": errors, "terminal_reason": reason});
            read(&line).failure.unwrap().interrupted
        };
        assert!(with(true, &["[ede_diagnostic] result_type=user"], json!("aborted_streaming")));
        assert!(with(true, &[], json!("aborted_tools")));
        assert!(with(false, &[], json!(null)), "2.0");
        let late = json!({"type": "result", "subtype": "success", "is_error": false, "result": "",
            "terminal_reason": "aborted_streaming"});
        assert!(read(&late).failure.is_some_and(|failure| failure.interrupted));
        assert!(!with(true, &["Path \"/x\" does not exist"], json!(null)));
    }

    #[test]
    fn hostile_session_id_is_ignored() {
        for id in ["../../etc", "--dangerous", "", "a b", &"x".repeat(200)] {
            assert_eq!(read(&json!({"type": "result", "session_id": id})).session_id, None);
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_panic(line: Vec<u8>) {
            terminal(&line);
        }
    }
}
