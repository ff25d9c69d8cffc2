//! The lines between an attached client and its child: passed on unchanged, unless a policy says otherwise.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::super::control::line;
use super::super::{classify, control_response, host_request, is_streamed};
use super::mode_problem;
use crate::adapter::{AttachRules, FromChild, FromClient, HostRequest, LineKind};
use crate::config::{PermissionPolicy, SlashCommands};

/// Prefix of the ids of the server's own requests.
const OWN: &str = "pilotlight-";

/// Control requests that change nothing a policy is about.
const HARMLESS: [&str; 14] = [
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
    "get_settings",
];

/// Fields of the handshake that are passed on.
const OPENING: [&str; 12] = [
    "subtype",
    "hooks",
    "sdkMcpServers",
    "systemPrompt",
    "appendSystemPrompt",
    "jsonSchema",
    "agents",
    "systemPromptSnapshot",
    "excludeDynamicSections",
    "promptSuggestions",
    "agentProgressSummaries",
    "title",
];

/// Fields of an agent that are passed on. Others name MCP servers, hooks and permission modes.
const AGENT: [&str; 6] = ["description", "prompt", "tools", "disallowedTools", "model", "maxTurns"];

/// Keys whose value permits a tool, and these values.
const PERMITS: [(&str, &str); 4] =
    [("behavior", "allow"), ("permissionDecision", "allow"), ("decision", "approve"), ("decision", "allow")];

/// Deepest nesting of an answer that is searched. The parser accepts a little more.
const MAX_DEPTH: usize = 100;

/// See the module.
#[derive(Debug)]
pub(crate) struct Gate {
    rules: AttachRules,
    /// Fields for the handshake, from the client's command line.
    opening: Map<String, Value>,
    opened: bool,
    /// The client answers permission requests.
    asks: bool,
    partial: bool,
    replay: bool,
}

impl Gate {
    /// `opening`: fields for the handshake. `asks`: the client answers permission requests. `partial` and `replay`: it
    /// reads pieces of answers, and its own messages.
    pub(crate) fn new(
        rules: AttachRules,
        opening: Map<String, Value>,
        asks: bool,
        (partial, replay): (bool, bool),
    ) -> Self {
        Self { rules, opening, opened: false, asks, partial, replay }
    }

    /// Lets nothing be permitted: of a client that is gone.
    pub(crate) fn closed() -> Self {
        let rules = AttachRules {
            policy: PermissionPolicy::Deny,
            models: None,
            commands: SlashCommands::Refuse,
            prompt_limit: 0,
        };
        Self::new(rules, Map::new(), false, (false, false))
    }

    /// The policy for permission requests that the client does not answer.
    pub(crate) fn policy(&self) -> PermissionPolicy {
        self.rules.policy
    }

    /// Judges a line of the client, without its line end.
    pub(crate) fn judge_client(&mut self, text: &[u8]) -> FromClient {
        if text.trim_ascii().is_empty() {
            // The child would end at it.
            return FromClient::Drop;
        }
        if text.contains(&b'\r') {
            return FromClient::Broken("a line holds a carriage return");
        }
        let Ok(Value::Object(message)) = serde_json::from_slice(text) else {
            return FromClient::Broken("a line is no JSON object");
        };
        let text_of = |key: &str| message.get(key).and_then(Value::as_str);
        match text_of("type") {
            Some("user") => self.message(text, message),
            Some("control_request") => self.request(text, message),
            Some("control_response") => self.response(text, &message),
            Some("control_cancel_request" | "keep_alive") => pass(text),
            _ => FromClient::Drop,
        }
    }

    fn message(&mut self, text: &[u8], mut message: Map<String, Value>) -> FromClient {
        if text.len() > self.rules.prompt_limit {
            return FromClient::Broken("a message is longer than session.prompt_limit");
        }
        let body = message.get("message");
        let content = body.and_then(|body| body.get("content"));
        let is_user = body.and_then(|body| body.get("role")).and_then(Value::as_str) == Some("user");
        if !is_user || !content.is_some_and(|content| content.is_string() || content.is_array()) {
            return FromClient::Broken("a user message has no content of the role user");
        }
        let changed = match self.rules.commands {
            SlashCommands::Pass => false,
            SlashCommands::Text | SlashCommands::Refuse => as_plain_text(&mut message),
        };
        let mut lines = Vec::new();
        if !std::mem::replace(&mut self.opened, true) && !self.opening.is_empty() {
            let mut request = std::mem::take(&mut self.opening);
            request.insert("subtype".into(), "initialize".into());
            lines.push(control(&format!("{OWN}open"), &Value::Object(request)));
        }
        lines.push(if changed { line(&message).into() } else { ended(text) });
        FromClient::Pass { lines, is_message: true }
    }

    fn request(&mut self, text: &[u8], message: Map<String, Value>) -> FromClient {
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

    fn initialize(&mut self, id: &str, mut request: Map<String, Value>) -> FromClient {
        request.retain(|field, value| OPENING.contains(&field.as_str()) && !value.is_null());
        for (field, value) in &self.opening {
            request.entry(field.clone()).or_insert_with(|| value.clone());
        }
        // The default of 2.1.332 keeps the first system prompt of a conversation.
        request.entry("systemPromptSnapshot").or_insert(false.into());
        if let Some(agents) = request.get_mut("agents") {
            let Some(agents) = agents.as_object_mut() else { return refuse(id, "agents must be an object") };
            for agent in agents.values_mut() {
                let Some(agent) = agent.as_object_mut() else {
                    return refuse(id, "an agent must be an object");
                };
                agent.retain(|field, _| AGENT.contains(&field.as_str()));
                let model = agent.get("model").and_then(Value::as_str).filter(|model| *model != "inherit");
                if let Some(problem) = model.and_then(|model| self.rules.model_problem(model)) {
                    return refuse(id, problem);
                }
            }
        }
        self.opened = true;
        FromClient::Pass { lines: vec![control(id, &Value::Object(request))], is_message: false }
    }

    /// An answer to the child: of a permission request, a hook, a tool of the client's.
    fn response(&self, text: &[u8], message: &Map<String, Value>) -> FromClient {
        let Some(Value::Object(response)) = message.get("response") else {
            return FromClient::Broken("a control response has no response");
        };
        let forbidden = |key: &str, value: &Value| {
            let Some(value) = value.as_str() else { return false };
            let permits = self.rules.policy == PermissionPolicy::Deny && PERMITS.contains(&(key, value));
            permits || (key == "mode" && mode_problem(value, self.rules.policy).is_some())
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

    /// Judges a line of the child, without its line end.
    pub(crate) fn judge_child(&self, text: &[u8]) -> FromChild {
        if !self.partial && is_piece(text) {
            return FromChild::Drop;
        }
        match classify(text) {
            LineKind::Mirror | LineKind::Malformed => FromChild::Drop,
            LineKind::Echo if !self.replay => FromChild::Drop,
            LineKind::ControlResponse
                if control_response(text).is_some_and(|answer| answer.request_id.starts_with(OWN)) =>
            {
                FromChild::Drop
            }
            LineKind::HostRequest if !self.asks => match host_request(text) {
                Some(HostRequest::Permission(request)) => FromChild::Permission(request),
                _ => FromChild::Pass,
            },
            _ => FromChild::Pass,
        }
    }

    /// Id for a request of the server.
    pub(crate) fn own_id() -> String {
        format!("{OWN}stop")
    }
}

/// Lines that only a client gets that reads answers in pieces.
fn is_piece(text: &[u8]) -> bool {
    const OTHERS: [&[u8]; 2] = [
        br#"{"type":"system","subtype":"thinking_tokens","#,
        br#"{"type":"system","subtype":"status","status":"requesting","#,
    ];
    is_streamed(text) || OTHERS.iter().any(|start| text.starts_with(start))
}

/// Whether a field in `value` is forbidden. What a tool of the client has answered decides nothing.
fn has(value: &Value, forbidden: &impl Fn(&str, &Value) -> bool, depth: usize) -> bool {
    if depth > MAX_DEPTH {
        return true;
    }
    match value {
        Value::Object(fields) => fields.iter().any(|(key, value)| {
            !matches!(key.as_str(), "mcp_response" | "updatedInput")
                && (forbidden(key, value) || has(value, forbidden, depth + 1))
        }),
        Value::Array(values) => values.iter().any(|value| has(value, forbidden, depth + 1)),
        _ => false,
    }
}

/// Makes a command of the CLI plain text; whether there was one.
fn as_plain_text(message: &mut Map<String, Value>) -> bool {
    let Some(content) = message.get_mut("message").and_then(|body| body.get_mut("content")) else {
        return false;
    };
    let text = match content {
        Value::Array(blocks) => blocks.iter_mut().rev().find_map(|block| block.get_mut("text")),
        text => Some(text),
    };
    match text {
        Some(Value::String(text)) if text.starts_with('/') => {
            text.insert(0, ' ');
            true
        }
        _ => false,
    }
}

fn control(id: &str, request: &Value) -> Bytes {
    line(&json!({ "type": "control_request", "request_id": id, "request": request })).into()
}

fn refuse(id: &str, problem: &str) -> FromClient {
    let response = json!({ "subtype": "error", "request_id": id, "error": problem });
    FromClient::Reply(line(&json!({ "type": "control_response", "response": response })).into())
}

fn pass(text: &[u8]) -> FromClient {
    FromClient::Pass { lines: vec![ended(text)], is_message: false }
}

fn ended(text: &[u8]) -> Bytes {
    [text, b"\n"].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(policy: PermissionPolicy, asks: bool) -> Gate {
        let rules = AttachRules {
            policy,
            models: Some(["sonnet".to_owned()].into()),
            commands: SlashCommands::Text,
            prompt_limit: 1000,
        };
        Gate::new(rules, Map::new(), asks, (false, false))
    }

    fn request(request: &Value) -> String {
        json!({ "type": "control_request", "request_id": "r", "request": request }).to_string()
    }

    fn response(body: &Value) -> String {
        let response = json!({ "subtype": "success", "request_id": "r", "response": body });
        json!({ "type": "control_response", "response": response }).to_string()
    }

    #[test]
    fn lines_pass_unchanged() {
        let mut gate = gate(PermissionPolicy::Ask, true);
        for text in [
            r#"{ "type":"user", "message":{"role":"user","content":"a \u2028 b"}, "x":1.50 }"#.to_owned(),
            request(&json!({ "subtype": "interrupt" })),
            request(&json!({ "subtype": "set_permission_mode", "mode": "acceptEdits" })),
            request(&json!({ "subtype": "set_model", "model": "sonnet" })),
            response(&json!({ "behavior": "allow", "updatedInput": { "mode": "bypassPermissions" } })),
            response(&json!({ "mcp_response": { "decision": "approve" } })),
        ] {
            let FromClient::Pass { lines, is_message } = gate.judge_client(text.as_bytes()) else {
                panic!("{text}")
            };
            assert_eq!(lines, [Bytes::from(format!("{text}\n"))]);
            assert_eq!(is_message, text.contains(r#""user""#));
        }
    }

    #[test]
    fn requests_that_undo_a_policy_are_refused() {
        let mut gate = gate(PermissionPolicy::Deny, false);
        for asked in [
            json!({ "subtype": "set_permission_mode", "mode": "bypassPermissions" }),
            json!({ "subtype": "set_permission_mode", "mode": "acceptEdits" }),
            json!({ "subtype": "set_permission_mode" }),
            json!({ "subtype": "set_model", "model": "opus" }),
            json!({ "subtype": "set_model" }),
            json!({ "subtype": "mcp_set_servers", "servers": { "x": { "command": "sh" } } }),
            json!({ "subtype": "apply_flag_settings", "settings": {} }),
            json!({ "subtype": "claim_session" }),
            json!({ "subtype": "initialize", "agents": { "a": { "prompt": "x", "model": "opus" } } }),
            json!({}),
        ] {
            let FromClient::Reply(reply) = gate.judge_client(request(&asked).as_bytes()) else {
                panic!("{asked}")
            };
            let reply: Value = serde_json::from_slice(&reply).unwrap();
            assert_eq!(
                (&reply["response"]["subtype"], &reply["response"]["request_id"]),
                (&json!("error"), &json!("r"))
            );
        }
        // The last of two equal keys counts, as it does for the CLI.
        let twice = r#"{"type":"keep_alive","type":"control_request","request_id":"r","request":{"subtype":"interrupt","subtype":"bogus"}}"#;
        assert!(matches!(gate.judge_client(twice.as_bytes()), FromClient::Reply(_)));
        let variables = r#"{"type":"update_environment_variables","variables":{}}"#;
        assert_eq!(gate.judge_client(variables.as_bytes()), FromClient::Drop);
    }

    #[test]
    fn answers_that_undo_a_policy_become_errors() {
        let (deny, ask) = (PermissionPolicy::Deny, PermissionPolicy::Ask);
        let mode = json!({ "behavior": "allow", "updatedPermissions": [{ "type": "setMode", "mode": "bypassPermissions" }] });
        for (policy, body) in [
            (deny, json!({ "behavior": "allow" })),
            (deny, json!({ "hookSpecificOutput": { "permissionDecision": "allow" } })),
            (deny, json!({ "hookSpecificOutput": { "decision": { "behavior": "allow" } } })),
            (deny, json!({ "mcp_response": {}, "decision": "approve" })),
            (ask, mode),
        ] {
            let FromClient::Pass { lines, .. } =
                gate(policy, policy == ask).judge_client(response(&body).as_bytes())
            else {
                panic!("{body}")
            };
            let answer: Value = serde_json::from_slice(&lines[0]).unwrap();
            assert_eq!(answer["response"]["subtype"], "error", "{body}");
        }
    }

    #[test]
    fn handshake_has_the_flags_and_no_more_than_is_known() {
        let opening = json!({ "systemPrompt": "be brief", "jsonSchema": { "a": 1 } });
        let mut gate = gate(PermissionPolicy::Deny, false);
        gate.opening = opening.as_object().unwrap().clone();
        let asked = json!({
            "subtype": "initialize", "hooks": null, "jsonSchema": { "b": 1 }, "plugins": ["/x"],
            "agents": { "a": { "description": "d", "prompt": "p", "mcpServers": ["x"], "permissionMode": "bypassPermissions" } },
        });
        let FromClient::Pass { lines, .. } = gate.judge_client(request(&asked).as_bytes()) else { panic!() };
        let sent: Value = serde_json::from_slice(&lines[0]).unwrap();
        let expected = json!({
            "subtype": "initialize", "systemPrompt": "be brief", "jsonSchema": { "b": 1 }, "systemPromptSnapshot": false,
            "agents": { "a": { "description": "d", "prompt": "p" } },
        });
        assert_eq!(sent, json!({ "type": "control_request", "request_id": "r", "request": expected }));
    }

    #[test]
    fn first_message_without_handshake_brings_the_flags() {
        let mut gate = gate(PermissionPolicy::Deny, false);
        gate.opening.insert("systemPrompt".into(), "x".into());
        let text = r#"{"type":"user","message":{"role":"user","content":"/model opus"}}"#;
        let FromClient::Pass { lines, is_message: true } = gate.judge_client(text.as_bytes()) else {
            panic!()
        };
        assert_eq!(lines.len(), 2);
        let sent: Value = serde_json::from_slice(&lines[1]).unwrap();
        assert_eq!(sent["message"]["content"], " /model opus");
        let own =
            br#"{"type":"control_response","response":{"subtype":"success","request_id":"pilotlight-open"}}"#;
        assert_eq!(gate.judge_child(own), FromChild::Drop);
    }

    #[test]
    fn lines_that_end_the_child_are_not_sent() {
        let mut gate = gate(PermissionPolicy::Deny, false);
        for text in [
            "x",
            "null",
            "[]",
            r#"{"type":"user"}"#,
            r#"{"type":"user","message":{"role":"assistant","content":"x"}}"#,
            r#"{"type":"user","message":{"role":"user","content":5}}"#,
            r#"{"type":"control_request"}"#,
            "{\"type\":\"keep_alive\",\r\"a\":1}",
        ] {
            assert!(matches!(gate.judge_client(text.as_bytes()), FromClient::Broken(_)), "{text}");
        }
        let long =
            json!({ "type": "user", "message": { "role": "user", "content": "x".repeat(1000) } }).to_string();
        assert!(matches!(gate.judge_client(long.as_bytes()), FromClient::Broken(_)));
        assert_eq!(gate.judge_client(b" "), FromClient::Drop);
    }

    #[test]
    fn child_lines_are_for_the_client_that_asked_for_them() {
        let gate = gate(PermissionPolicy::Allow, false);
        let asks = r#"{"type":"control_request","request_id":"q","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{}}}"#;
        assert!(matches!(gate.judge_child(asks.as_bytes()), FromChild::Permission(_)));
        for (text, expected) in [
            (r#"{"type":"stream_event","event":{}}"#, FromChild::Drop),
            (r#"{"type":"transcript_mirror","filePath":"x","entries":[]}"#, FromChild::Drop),
            (r#"{"type":"result","subtype":"success"}"#, FromChild::Pass),
            (
                r#"{"type":"control_response","response":{"subtype":"success","request_id":"r"}}"#,
                FromChild::Pass,
            ),
        ] {
            assert_eq!(gate.judge_child(text.as_bytes()), expected, "{text}");
        }
    }
}
