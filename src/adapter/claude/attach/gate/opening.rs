//! The handshake: fields of the client's and of its command line, and its MCP servers behind it.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{Gate, OWN, control, refuse};
use crate::adapter::FromClient;

/// Fields of the handshake that are passed on.
const OPENING: [&str; 13] = [
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
    "forwardSubagentText",
    "title",
];

/// Fields of a hook that are passed on: it is called in the client, and is no command.
const HOOK: [&str; 3] = ["matcher", "hookCallbackIds", "timeout"];

/// Fields of an agent that are passed on. Others name MCP servers, hooks and permission modes.
const AGENT: [&str; 6] = ["description", "prompt", "tools", "disallowedTools", "model", "maxTurns"];

impl Gate {
    pub(super) fn initialize(&mut self, id: &str, mut request: Map<String, Value>) -> FromClient {
        for (field, value) in &self.opening {
            if request.get(field).is_none_or(Value::is_null) {
                request.insert(field.clone(), value.clone());
            }
        }
        match self.judged(request) {
            Ok(request) => {
                self.opened = true;
                let mut lines = vec![control(id, &Value::Object(request))];
                lines.extend(self.server_line());
                FromClient::Pass { lines, is_message: false }
            }
            Err(problem) => refuse(id, problem),
        }
    }

    /// The handshake of a client that sends none: what its command line asks for.
    pub(super) fn open(&mut self) -> Result<Vec<Bytes>, &'static str> {
        self.opened = true;
        let mut lines = Vec::new();
        if !self.opening.is_empty() || !self.servers.is_empty() {
            let mut request = std::mem::take(&mut self.opening);
            request.insert("subtype".into(), "initialize".into());
            let request = self.judged(request)?;
            lines.push(control(&format!("{OWN}open"), &Value::Object(request)));
            lines.extend(self.server_line());
        }
        Ok(lines)
    }

    /// The known fields of a handshake, as far as the rules allow them.
    fn judged(&mut self, mut request: Map<String, Value>) -> Result<Map<String, Value>, &'static str> {
        request.retain(|field, value| OPENING.contains(&field.as_str()) && !value.is_null());
        // The default of 2.1.332 keeps the first system prompt of a conversation.
        request.entry("systemPromptSnapshot").or_insert(false.into());
        if let Some(hooks) = request.get_mut("hooks") {
            let Some(events) = hooks.as_object_mut() else { return Err("hooks must be an object") };
            let lists = events.values_mut().filter_map(Value::as_array_mut);
            for hook in lists.flatten().filter_map(Value::as_object_mut) {
                hook.retain(|field, _| HOOK.contains(&field.as_str()));
            }
        }
        if let Some(agents) = request.get_mut("agents") {
            let Some(agents) = agents.as_object_mut() else { return Err("agents must be an object") };
            for agent in agents.values_mut() {
                let Some(agent) = agent.as_object_mut() else { return Err("an agent must be an object") };
                agent.retain(|field, _| AGENT.contains(&field.as_str()));
                let model = agent.get("model").and_then(Value::as_str).filter(|model| *model != "inherit");
                if let Some(problem) = model.and_then(|model| self.rules.model_problem(model)) {
                    return Err(problem);
                }
            }
        }
        if !self.servers.is_empty() {
            let own = request.get("sdkMcpServers").and_then(Value::as_array);
            let own = own.into_iter().flatten().filter_map(Value::as_str);
            own.for_each(|name| add_own(&mut self.servers, name));
        }
        Ok(request)
    }

    /// The request that names all MCP servers; it replaces those that were named before.
    fn server_line(&mut self) -> Option<Bytes> {
        let servers = std::mem::take(&mut self.servers);
        let request = json!({ "subtype": "mcp_set_servers", "servers": servers });
        (!servers.is_empty()).then(|| control(&format!("{OWN}servers"), &request))
    }
}

/// Adds a server of the client's own process.
pub(super) fn add_own(servers: &mut Map<String, Value>, name: &str) {
    servers.entry(name.to_owned()).or_insert_with(|| json!({ "type": "sdk", "name": name }));
}
