//! Answers of the client to its child: to permission requests, hooks and calls of its tools.

use serde_json::{Map, Value, json};

use super::{Gate, pass};
use crate::adapter::FromClient;
use crate::adapter::claude::attach::mode_problem;
use crate::adapter::claude::control::line;
use crate::config::PermissionPolicy;

/// Keys whose value permits a tool, and these values.
const PERMITS: [(&str, &str); 4] =
    [("behavior", "allow"), ("permissionDecision", "allow"), ("decision", "approve"), ("decision", "allow")];

/// Kind of an updated permission that opens directories to tools.
const MORE_DIRECTORIES: &str = "addDirectories";
/// The only place of an updated permission that ends with the child.
const UNTIL_THE_END: &str = "session";

/// Deepest nesting of an answer that is searched. The parser accepts a little more.
const MAX_DEPTH: usize = 100;

impl Gate {
    /// An answer to the child: of a permission request, a hook, a tool of the client's.
    pub(super) fn response(&self, text: &[u8], message: &Map<String, Value>) -> FromClient {
        let Some(Value::Object(response)) = message.get("response") else {
            return FromClient::Broken("a control response has no response");
        };
        let forbidden = |key: &str, value: &Value| {
            let Some(value) = value.as_str() else { return false };
            let policy = self.rules.policy;
            match key {
                "mode" => mode_problem(value, policy).is_some(),
                "type" => policy != PermissionPolicy::Allow && value == MORE_DIRECTORIES,
                "destination" => policy != PermissionPolicy::Allow && value != UNTIL_THE_END,
                _ => policy == PermissionPolicy::Deny && PERMITS.contains(&(key, value)),
            }
        };
        let body = response.get("response").unwrap_or(&Value::Null);
        if !has(body, &forbidden, 0) {
            return pass(text);
        }
        let id = response.get("request_id").and_then(Value::as_str).unwrap_or_default();
        // An error fails the tool, and hangs nothing.
        let error = json!({ "subtype": "error", "request_id": id, "error": "the server's policy does not permit this" });
        let lines = vec![line(&json!({ "type": "control_response", "response": error })).into()];
        FromClient::Pass { lines, is_message: false }
    }
}

/// Whether a field in `value` is forbidden. What a tool of the client or a person has answered decides nothing.
fn has(value: &Value, forbidden: &impl Fn(&str, &Value) -> bool, depth: usize) -> bool {
    if depth > MAX_DEPTH {
        return true;
    }
    match value {
        Value::Object(fields) => fields.iter().any(|(key, value)| {
            !matches!(key.as_str(), "mcp_response" | "updatedInput" | "content")
                && (forbidden(key, value) || has(value, forbidden, depth + 1))
        }),
        Value::Array(values) => values.iter().any(|value| has(value, forbidden, depth + 1)),
        _ => false,
    }
}
