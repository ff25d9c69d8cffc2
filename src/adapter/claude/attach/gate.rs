//! The lines between an attached client and its child: passed on unchanged, unless a policy says otherwise.
//!
//! `opening` is the handshake, `requests` are the client's other control requests, `answers` its answers to the child.

use bytes::Bytes;
use serde_json::{Map, Value, json};

mod answers;
mod opening;
mod requests;

use crate::adapter::claude::control::{line, request_with};
use crate::adapter::claude::{classify, control_response, host_request, is_streamed};
use crate::adapter::{AttachRules, FromChild, FromClient, HostRequest, LineKind};
use crate::config::{PermissionPolicy, SlashCommands};
use crate::model::RequestKind;

/// Prefix of the ids of the server's own requests.
const OWN: &str = "pilotlight-";

/// See the module.
#[derive(Debug)]
pub(crate) struct Gate {
    rules: AttachRules,
    /// Fields for the handshake, from the client's command line.
    opening: Map<String, Value>,
    /// MCP servers of the client that run beside the child or elsewhere, judged: sent behind the handshake.
    servers: Map<String, Value>,
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
        Self { rules, opening, servers: Map::new(), opened: false, asks, partial, replay }
    }

    /// With MCP servers: definitions that were judged, and names of those in the client's own process.
    #[must_use]
    pub(crate) fn with_servers(self, mut servers: Map<String, Value>, own: &[String]) -> Self {
        if !servers.is_empty() {
            own.iter().for_each(|name| opening::add_own(&mut servers, name));
        }
        Self { servers, ..self }
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
        if !self.opened {
            match self.open() {
                Ok(opening) => lines.extend(opening),
                Err(problem) => return FromClient::Broken(problem),
            }
        }
        lines.push(if changed { line(&message).into() } else { ended(text) });
        FromClient::Pass { lines, is_message: true }
    }

    /// Judges a line of the child, without its line end.
    pub(crate) fn judge_child(&self, text: &[u8]) -> FromChild {
        if !self.partial && is_piece(text) {
            return FromChild::Drop;
        }
        match classify(text) {
            // The server has its children report their state; a CLI of the client's own would not.
            LineKind::Mirror | LineKind::Malformed | LineKind::Working | LineKind::Waiting => FromChild::Drop,
            LineKind::Echo if !self.replay => FromChild::Drop,
            LineKind::ControlResponse
                if control_response(text).is_some_and(|answer| answer.request_id.starts_with(OWN)) =>
            {
                FromChild::Drop
            }
            LineKind::HostRequest if !self.asks => match host_request(text) {
                Some(HostRequest::Permission(request)) if request.kind != RequestKind::Elicitation => {
                    FromChild::Permission(request)
                }
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
    request_with(id, request).into()
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
mod tests;
