//! Requests to the host, such as the permission for a tool call, and the meaning of its answers.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::conversation::new_id;
use crate::engine::{Engine, Stop};
use crate::permission::Denial;
use crate::script::Call;
use crate::turn::Turn;

/// Name of the host's own MCP server.
pub(crate) const CALLER: &str = "caller";

/// A request that waits for the host's answer.
#[derive(Debug)]
pub(crate) struct PendingRequest {
    pub(crate) request_id: String,
    pub(crate) answer: Option<Value>,
}

/// The host's decision.
pub(crate) enum Permission {
    Granted(Value),
    Denied(String),
}

impl Engine {
    /// Asks the host for permission, without a time limit.
    pub(crate) fn ask(&mut self, turn: &mut Turn, call: &Call, id: &str) -> Result<Permission, Stop> {
        let denial = Denial { name: call.name.clone(), id: id.to_owned(), input: call.input.clone() };
        let request_id = new_id();
        self.pending_request = Some(PendingRequest { request_id: request_id.clone(), answer: None });
        self.set_state("requires_action");
        self.emit_question(call, id, &request_id);
        let heard = self.pump(None, |engine| {
            engine.eof
                || engine
                    .pending_request
                    .as_ref()
                    .is_none_or(|pending_request| pending_request.answer.is_some())
        });
        self.set_state("running");
        let answer = self.pending_request.take().and_then(|pending_request| pending_request.answer);
        if let Err(stop) = heard {
            if stop == Stop::Replaced {
                self.out.line(|o| {
                    o.str("type", "control_cancel_request").str("request_id", &request_id);
                });
            }
            turn.denials.push(denial);
            return Err(stop);
        }
        let Some(answer) = answer else {
            let text = "Tool permission request failed: Error: Tool permission stream closed before response received";
            return Ok(Permission::Denied(text.into()));
        };
        let body = answer.get("response").unwrap_or(&Value::Null);
        let behaviour = body.get("behavior").and_then(Value::as_str);
        match (answer.get("subtype").and_then(Value::as_str), behaviour, body.get("updatedInput")) {
            (Some("success"), Some("allow"), Some(input @ Value::Object(_))) => Ok(Permission::Granted(input.clone())),
            (Some("success"), Some("deny"), _) => {
                if body.get("interrupt").and_then(Value::as_bool) == Some(true) {
                    turn.denials.push(denial);
                    return Err(Stop::Interrupted);
                }
                let message = body.get("message").and_then(Value::as_str).unwrap_or_default();
                Ok(Permission::Denied(message.to_owned()))
            }
            (Some("error"), ..) => {
                let error = answer.get("error").and_then(Value::as_str).unwrap_or_default();
                Ok(Permission::Denied(format!("Tool permission request failed: Error: {error}")))
            }
            _ => Ok(Permission::Denied(
                "Tool permission request failed: ZodError: Invalid input: expected record, received undefined".into(),
            )),
        }
    }

    /// Sends another request to the host and returns its answer as text. Like claude, it waits without a time limit.
    pub(crate) fn ask_host(&mut self, subtype: &str) -> Result<String, Stop> {
        let request_id = new_id();
        self.pending_request = Some(PendingRequest { request_id: request_id.clone(), answer: None });
        self.out.line(|o| {
            o.str("type", "control_request").str("request_id", &request_id).object("request", |o| {
                o.str("subtype", subtype);
            });
        });
        let answer = self.wait_for_answer()?;
        Ok(answer.map_or_else(|| "no answer".to_owned(), |answer| answer.to_string()))
    }

    /// The host's answer to the pending request; `None` at the end of the input.
    fn wait_for_answer(&mut self) -> Result<Option<Value>, Stop> {
        self.pump(None, |engine| {
            engine.eof
                || engine
                    .pending_request
                    .as_ref()
                    .is_none_or(|pending_request| pending_request.answer.is_some())
        })?;
        let answer = self.pending_request.take().and_then(|pending_request| pending_request.answer);
        Ok(answer)
    }

    /// The server in the host that a tool belongs to.
    pub(crate) fn host_server_of(&self, tool: &str) -> Option<String> {
        let (server, _) = tool.strip_prefix("mcp__")?.split_once("__")?;
        let given = self.workspace.servers.iter().filter(|given| given.is_in_host()).map(|given| &given.name);
        let mut all = self.host_servers.iter().chain(given);
        all.any(|name| name == server).then(|| server.to_owned())
    }

    /// Introduces itself to the servers in the host that the handshake names. The simulation offers every tool to its model.
    pub(crate) fn greet_host_servers(&mut self) {
        let version = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "sim", "version": "1"}});
        for message in [
            json!({"method": "initialize", "params": version, "jsonrpc": "2.0", "id": 0}),
            json!({"method": "notifications/initialized", "jsonrpc": "2.0"}),
            json!({"method": "tools/list", "jsonrpc": "2.0", "id": 1}),
        ] {
            for server in self.host_servers.clone() {
                self.emit_mcp(&new_id(), &server, &message);
            }
        }
    }

    /// Asks a server in the host for the result of a call, without a time limit. The text of the result, and
    /// whether the tool has failed.
    pub(crate) fn ask_server(&mut self, server: &str, call: &Call, id: &str) -> Result<(String, bool), Stop> {
        let request_id = new_id();
        self.pending_request = Some(PendingRequest { request_id: request_id.clone(), answer: None });
        let name = call.name.rsplit("__").next().unwrap_or_default();
        let params = json!({"name": name, "arguments": call.input, "_meta": {"claudecode/toolUseId": id}});
        self.emit_mcp(
            &request_id,
            server,
            &json!({"method": "tools/call", "params": params, "jsonrpc": "2.0", "id": 2}),
        );
        let answer = self.wait_for_answer()?;
        let result = answer.as_ref().and_then(|answer| answer.pointer("/response/mcp_response/result"));
        let Some(result) = result else { return Ok(("the server of the tool did not answer".into(), true)) };
        let texts = result.get("content").and_then(Value::as_array).into_iter().flatten();
        let texts: Vec<&str> = texts.filter_map(|block| block.get("text")?.as_str()).collect();
        Ok((texts.join("\n"), result.get("isError").and_then(Value::as_bool) == Some(true)))
    }

    fn emit_mcp(&mut self, request_id: &str, server: &str, message: &Value) {
        self.out.line(|o| {
            o.str("type", "control_request").str("request_id", request_id).object("request", |o| {
                o.str("subtype", "mcp_message").str("server_name", server).value("message", message);
            });
        });
    }

    fn emit_question(&mut self, call: &Call, id: &str, request_id: &str) {
        let text = |key: &str| call.input.get(key).and_then(Value::as_str);
        let cwd = self.conversation.cwd.clone();
        let command = text("command").unwrap_or_default();
        let description = text("description").or(text("command")).unwrap_or(&call.name);
        // The last word that is no option is probably the path that a command touches.
        let touched = command.split_whitespace().rev().find(|word| !word.starts_with('-'));
        let blocked = match text("file_path") {
            Some(path) => path.to_owned(),
            None => PathBuf::from(&cwd).join(touched.unwrap_or_default()).to_string_lossy().into_owned(),
        };
        let suggestions = json!([
            {"type": "addRules", "rules": [{"toolName": call.name, "ruleContent": command}],
             "behavior": "allow", "destination": "localSettings"},
            {"type": "addDirectories", "directories": [cwd], "destination": "session"},
            {"type": "setMode", "mode": "acceptEdits", "destination": "session"},
        ]);
        self.out.line(|o| {
            o.str("type", "control_request").str("request_id", request_id).object("request", |o| {
                o.str("subtype", "can_use_tool").str("tool_name", &call.name);
                o.str("display_name", &call.name).value("input", &call.input);
                o.str("description", description).value("permission_suggestions", &suggestions);
                o.str("blocked_path", &blocked).str("tool_use_id", id);
            });
        });
    }
}
