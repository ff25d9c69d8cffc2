//! Control requests of the host. They are answered at any time, also during a turn.

use serde_json::Value;

use crate::catalogue::{self, VERSION};
use crate::engine::Engine;
use crate::faults::Kind;
use crate::json::{Object, object};

/// A reply: success, success with a body, or an error.
enum Reply {
    Done,
    With(Vec<u8>),
    Error(String),
}

fn with(fill: impl FnOnce(&mut Object<'_>)) -> Reply {
    let mut out = Vec::new();
    object(&mut out, fill);
    Reply::With(out)
}

impl Engine {
    /// Answers one request.
    pub(crate) fn control(&mut self, request_id: Option<&str>, request: &Value) {
        let text = |key: &str| request.get(key).and_then(Value::as_str);
        let subtype = text("subtype").unwrap_or("undefined");
        let reply = match subtype {
            "initialize" => {
                if let Some(prompt) = text("systemPrompt") {
                    self.system_prompt = Some(prompt.to_owned());
                }
                let servers = request.get("sdkMcpServers").and_then(Value::as_array);
                let names = servers.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
                self.host_servers.extend(names);
                self.has_schema |= request.get("jsonSchema").is_some_and(Value::is_object);
                self.initialize()
            }
            "interrupt" => {
                self.interrupt();
                Reply::Done
            }
            "set_model" => {
                self.set_model(text("model"));
                Reply::Done
            }
            "set_permission_mode" => {
                self.set_permission_mode(request_id, text("mode"));
                return;
            }
            "mcp_status" => self.mcp_status(),
            "mcp_set_servers" if self.args.faults.iter().any(|it| it.kind == Kind::SilentServers) => return,
            "mcp_set_servers" => self.set_servers(request.get("servers")),
            "get_settings" => with(|o| {
                o.raw("effective", b"{}").raw("sources", b"[]").object("applied", |o| {
                    o.str("model", &self.model).null("effort").bool("ultracode", false);
                });
            }),
            "get_context_usage" => self.context_usage(),
            "get_binary_version" => with(|o| {
                o.str("version", VERSION).str("buildTime", "2026-06-29T19:08:42Z");
            }),
            "end_session" => {
                self.ending = true;
                self.interrupt();
                Reply::Done
            }
            "mcp_reconnect" => {
                let name = text("serverName").unwrap_or_default();
                match self.workspace.servers.iter().find(|server| server.name == name) {
                    Some(server) if server.status() != "failed" => Reply::Done,
                    Some(_) => Reply::Error("Connection failed".into()),
                    None => Reply::Error(format!("Server not found: {name}")),
                }
            }
            "set_max_thinking_tokens" => Reply::Done,
            "cancel_async_message" => {
                let (id, before) = (text("message_uuid"), self.queue.len());
                self.queue.retain(|message| message.uuid.as_deref() != id);
                let cancelled = self.queue.len() < before;
                with(|o| {
                    o.bool("cancelled", cancelled);
                })
            }
            other => Reply::Error(format!("Unsupported control request subtype: {other}")),
        };
        self.reply(request_id, reply, subtype == "initialize" && self.initialized);
        if subtype == "initialize" {
            self.greet_host_servers();
        }
        self.initialized |= subtype == "initialize";
    }

    fn reply(&mut self, request_id: Option<&str>, reply: Reply, again: bool) {
        self.out.line(|o| {
            o.str("type", "control_response").object("response", |o| {
                o.str("subtype", if matches!(reply, Reply::Error(_)) { "error" } else { "success" });
                if let Some(id) = request_id {
                    o.str("request_id", id);
                }
                match &reply {
                    Reply::Done => {}
                    Reply::With(body) => {
                        o.raw("response", body);
                    }
                    Reply::Error(error) => {
                        o.str("error", error);
                    }
                }
                if again {
                    o.raw("pending_permission_requests", b"[]").raw("pending_user_dialog_requests", b"[]");
                }
            });
        });
    }

    /// A token for each message.
    fn context_usage(&self) -> Reply {
        let messages = self.conversation.turns() as u64;
        with(|o| {
            o.array("categories", |a| {
                for (name, tokens) in [("System prompt", 10), ("Messages", messages)] {
                    a.object(|o| {
                        o.str("name", name).int("tokens", tokens);
                    });
                }
            });
            o.int("totalTokens", 10 + messages).int("maxTokens", 200_000).str("model", &self.model);
            o.int("autoCompactThreshold", 167_000).bool("isAutoCompactEnabled", true);
        })
    }

    fn initialize(&self) -> Reply {
        let commands = if self.args.no_slash_commands { "[]" } else { catalogue::COMMANDS };
        with(|o| {
            o.raw("commands", commands.as_bytes()).raw("agents", catalogue::AGENT_LIST.as_bytes());
            o.str("output_style", "default").strings("available_output_styles", catalogue::OUTPUT_STYLES);
            o.raw("models", catalogue::MODELS.as_bytes()).object("account", |o| {
                o.str("tokenSource", "none");
                if self.key_source != "none" {
                    o.str("apiKeySource", self.key_source);
                }
                o.str("apiProvider", "firstParty");
            });
            o.int("pid", std::process::id().into());
        })
    }

    /// Accepts any model; only the default is set without a note.
    fn set_model(&mut self, model: Option<&str>) {
        match model {
            Some(model) => {
                model.clone_into(&mut self.model);
                self.emit_command_output(&format!("Set model to {model}"));
            }
            None => {
                self.model = self.args.model.clone().unwrap_or_else(|| catalogue::DEFAULT_MODEL.to_owned())
            }
        }
    }

    /// Accepts any mode but `bypassPermissions`, which needs its flag.
    fn set_permission_mode(&mut self, request_id: Option<&str>, mode: Option<&str>) {
        let Some(mode) = mode else {
            self.reply(request_id, with(|_| {}), false);
            return;
        };
        if mode == "bypassPermissions" && !self.args.skip_permissions {
            let error = "Cannot set permission mode to bypassPermissions because the session was not launched with --dangerously-skip-permissions";
            self.reply(request_id, Reply::Error(error.into()), false);
            return;
        }
        mode.clone_into(&mut self.mode);
        let body = with(|o| {
            o.str("mode", mode);
        });
        self.reply(request_id, body, false);
        self.system("status", |o| {
            o.null("status").str("permissionMode", mode);
        });
    }

    fn mcp_status(&self) -> Reply {
        with(|o| {
            o.array("mcpServers", |a| {
                for server in &self.workspace.servers {
                    a.object(|o| {
                        o.str("name", &server.name).str("status", server.status());
                        if server.status() == "failed" {
                            o.str("error", "the simulated CLI starts only commands");
                        }
                        o.raw("config", b"{}").str("scope", "dynamic").raw("tools", b"[]");
                    });
                }
            });
        })
    }

    /// Replies after the servers were started. The simulation does not connect to them.
    fn set_servers(&mut self, servers: Option<&Value>) -> Reply {
        let Some(servers) = servers.and_then(Value::as_object) else {
            return Reply::Error("mcp_set_servers: servers must be an object".into());
        };
        let removed = self.workspace.set_servers(servers);
        let added = Vec::from_iter(servers.keys());
        let failed = |name: &&String| {
            self.workspace.servers.iter().any(|server| server.name == **name && server.status() == "failed")
        };
        with(|o| {
            o.strings("added", &added).strings("removed", &removed).object("errors", |o| {
                for name in added.iter().copied().filter(failed) {
                    o.str(name, "Connection failed");
                }
            });
        })
    }
}
