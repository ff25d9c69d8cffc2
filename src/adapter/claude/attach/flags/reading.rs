//! What each flag means, and whether the policies allow it.

use serde_json::{Map, Value, json};

use super::words::{is_word, object, words};
use crate::adapter::claude::attach::{BYPASS, mode_problem};
use crate::adapter::{AttachRequest, AttachRules};
use crate::config::PermissionPolicy;

pub(super) struct Reading<'a> {
    pub(super) rules: &'a AttachRules,
    pub(super) request: AttachRequest,
    pub(super) allowed: Vec<String>,
    /// Permissions are not checked.
    pub(super) skips: bool,
}

impl Reading<'_> {
    pub(super) fn take(&mut self, name: &str, values: &[&str]) -> Result<(), String> {
        let value = values.first().copied().unwrap_or_default();
        let request = &mut self.request;
        match name {
            "--print"
            | "-p"
            | "--verbose"
            | "--continue"
            | "-c"
            | "--strict-mcp-config"
            | "--allow-dangerously-skip-permissions" => {}
            "--input-format" | "--output-format" if value == "stream-json" => {}
            "--input-format" | "--output-format" => return Err(format!("{name} must be stream-json")),
            "--model" => request.model = Some(self.rules.model(name, value)?),
            "--fallback-model" => request.fallback_model = Some(self.rules.model(name, value)?),
            "--system-prompt" => drop(request.opening.insert("systemPrompt".into(), value.into())),
            "--append-system-prompt" => {
                request.opening.insert("appendSystemPrompt".into(), value.into());
            }
            "--json-schema" => drop(request.opening.insert("jsonSchema".into(), object(name, value)?)),
            "--agents" => drop(request.opening.insert("agents".into(), object(name, value)?)),
            "--max-turns"
            | "--max-budget-usd"
            | "--max-thinking-tokens"
            | "--thinking"
            | "--thinking-display"
            | "--effort" => {
                if !is_word(value) {
                    return Err(format!("{name} has no usable value"));
                }
                request.flags.args.extend([name.to_owned(), value.to_owned()]);
            }
            "--betas" => {
                let betas = words(name, values)?;
                if !betas.iter().all(|beta| is_word(beta)) {
                    return Err(format!("{name} has no usable value"));
                }
                request.flags.args.extend([name.to_owned(), betas.join(",")]);
            }
            "--include-partial-messages" => request.flags.partial = true,
            "--replay-user-messages" => request.flags.replay = true,
            "--include-hook-events" | "--disable-slash-commands" => request.flags.args.push(name.to_owned()),
            "--tools" => {
                let tools = words(name, values)?;
                if !tools.iter().any(|tool| tool == "default") {
                    request.tools = Some(tools.into_iter().collect());
                }
            }
            "--disallowedTools" | "--disallowed-tools" => {
                request.flags.disallowed.extend(words(name, values)?)
            }
            "--allowedTools" | "--allowed-tools" => self.allowed.extend(words(name, values)?),
            "--resume" | "-r" if value.is_empty() => {}
            "--resume" | "-r" | "--session-id" => request.conversation = Some(value.to_owned()),
            "--permission-mode" => {
                if let Some(problem) = mode_problem(value, self.rules.policy) {
                    return Err(format!("{name}: {problem}"));
                }
                request.flags.args.extend([name.to_owned(), value.to_owned()]);
            }
            "--dangerously-skip-permissions" => self.skips = true,
            "--permission-prompt-tool" if value == "stdio" => request.asks = true,
            "--permission-prompt-tool" => return Err(format!("{name} must be stdio")),
            "--setting-sources" if value.is_empty() => {}
            "--setting-sources" => {
                request.notes.push(format!("{name} is left out: the server's cli.setting_sources holds"))
            }
            "--mcp-config" => self.servers(values)?,
            "--add-dir" => request.directories.extend(values.iter().map(|value| (*value).to_owned())),
            _ => return Err(format!("{name} is not taken from an attached client")),
        }
        Ok(())
    }

    /// MCP servers. Those of the client's own process are named on the command line; others are programs and addresses,
    /// which [`AttachRequest::servers`] has.
    fn servers(&mut self, values: &[&str]) -> Result<(), String> {
        let refused = "--mcp-config must be a JSON object with mcpServers by name: files are not read";
        let mut own = Map::new();
        for value in values {
            let config: Value = serde_json::from_str(value).map_err(|_| refused.to_owned())?;
            let Some(named) = config.get("mcpServers").and_then(Value::as_object) else {
                return Err(refused.to_owned());
            };
            for (name, server) in named {
                if server.get("type").and_then(Value::as_str) != Some("sdk") {
                    self.request.servers.insert(name.clone(), server.clone());
                } else if is_word(name) {
                    own.insert(name.clone(), json!({ "type": "sdk", "name": name }));
                } else {
                    return Err("--mcp-config: the name of a server is not usable".to_owned());
                }
            }
        }
        if !own.is_empty() {
            let config = json!({ "mcpServers": own }).to_string();
            self.request.flags.args.extend(["--mcp-config".to_owned(), config]);
            self.request.own_servers.extend(own.into_iter().map(|(name, _)| name));
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<AttachRequest, String> {
        let policy = self.rules.policy;
        if self.skips {
            if let Some(problem) = mode_problem(BYPASS, policy) {
                return Err(format!("--dangerously-skip-permissions: {problem}"));
            }
            self.request.flags.args.push("--dangerously-skip-permissions".to_owned());
        }
        if policy == PermissionPolicy::Deny {
            // Tools of the client's own process run there, where the server has nothing to permit.
            let (own, others): (Vec<_>, Vec<_>) =
                self.allowed.into_iter().partition(|tool| tool.starts_with("mcp__"));
            self.allowed = own;
            if !others.is_empty() {
                let note = "--allowedTools is left out but for tools of MCP servers: permissions.policy denies tools";
                self.request.notes.push(note.to_owned());
            }
            if std::mem::take(&mut self.request.asks) {
                let note = "--permission-prompt-tool is left out: permissions.policy denies tools";
                self.request.notes.push(note.to_owned());
            }
        }
        if !self.allowed.is_empty() {
            self.request.flags.args.extend(["--allowedTools".to_owned(), self.allowed.join(",")]);
        }
        Ok(self.request)
    }
}
