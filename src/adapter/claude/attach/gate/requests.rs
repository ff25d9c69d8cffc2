//! Control requests of the client: passed on if they change nothing that a policy is about.

use serde_json::{Map, Value};

use super::{Gate, OWN, pass, refuse};
use crate::adapter::FromClient;
use crate::adapter::claude::attach::mode_problem;

/// Control requests that change nothing a policy is about.
const HARMLESS: [&str; 13] = [
    "interrupt",
    "set_max_thinking_tokens",
    "mcp_status",
    "mcp_message",
    "mcp_reconnect",
    "mcp_toggle",
    "get_context_usage",
    "cancel_async_message",
    "stop_task",
    "rewind_files",
    "end_session",
    "generate_session_title",
    "get_binary_version",
];

impl Gate {
    pub(super) fn request(&mut self, text: &[u8], message: Map<String, Value>) -> FromClient {
        let id = message.get("request_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(Value::Object(request)) = message.get("request") else {
            return FromClient::Broken("a control request has no request");
        };
        let field = |key: &str| request.get(key).and_then(Value::as_str);
        if id.is_empty() || id.starts_with(OWN) {
            return refuse(&id, "the id of a request must be there, and must not be the server's");
        }
        match field("subtype").unwrap_or_default() {
            "initialize" => self.initialize(&id, request.clone()),
            "set_permission_mode" => {
                match mode_problem(field("mode").unwrap_or_default(), self.rules.policy) {
                    Some(problem) => refuse(&id, problem),
                    None => pass(text),
                }
            }
            "set_model" => {
                let problem = match field("model") {
                    Some(model) => self.rules.model_problem(model),
                    None => self.rules.models.is_some().then_some("the key may not use the default model"),
                };
                problem.map_or_else(|| pass(text), |problem| refuse(&id, problem))
            }
            "mcp_set_servers" => {
                let servers = request.get("servers").and_then(Value::as_object);
                let is_own = |server: &Value| server.get("type").and_then(Value::as_str) == Some("sdk");
                match servers.is_some_and(|servers| servers.values().all(is_own)) {
                    true => pass(text),
                    false => refuse(&id, "only MCP servers of the client's own process (type sdk) are taken"),
                }
            }
            known if HARMLESS.contains(&known) => pass(text),
            _ => refuse(&id, "the server does not pass this control request on"),
        }
    }
}
