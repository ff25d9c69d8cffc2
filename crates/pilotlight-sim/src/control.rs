//! Control requests: what the host asks beside the conversation. They are answered at any time, also in mid-turn.

use serde_json::Value;

use super::catalogue::{self, VERSION};
use super::engine::Engine;
use super::faults::Kind;
use super::json::{Object, object};

/// An answer: a body, none, or an error.
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
            "mcp_reconnect" => {
                Reply::Error(format!("Server not found: {}", text("serverName").unwrap_or_default()))
            }
            "mcp_set_servers" if self.args.faults.iter().any(|it| it.kind == Kind::SilentServers) => return,
            "mcp_set_servers" => self.set_servers(request.get("servers")),
            "cancel_async_message" => {
                let wanted = text("message_uuid");
                let before = self.queue.len();
                self.queue.retain(|message| message.uuid.is_none() || message.uuid.as_deref() != wanted);
                with(|o| {
                    o.bool("cancelled", self.queue.len() < before);
                })
            }
            "get_settings" => with(|o| {
                o.raw("effective", b"{}").raw("sources", b"[]").object("applied", |o| {
                    o.str("model", &self.model).null("effort").bool("ultracode", false);
                });
            }),
            "get_binary_version" => with(|o| {
                o.str("version", VERSION).str("buildTime", "2026-06-29T19:08:42Z");
            }),
            "get_context_usage" => self.context_usage(),
            "side_question" => with(|o| {
                o.str("response", &format!("aside: {}", text("question").unwrap_or_default()));
                o.bool("synthetic", false);
            }),
            "generate_session_title" => with(|o| {
                o.null("title");
            }),
            "rewind_files" => Reply::Error("File rewinding is not enabled.".into()),
            "apply_flag_settings" => with(|_| {}),
            "end_session" => {
                self.ending = true;
                self.interrupt();
                Reply::Done
            }
            "set_max_thinking_tokens"
            | "mcp_message"
            | "stop_task"
            | "seed_read_state"
            | "reload_plugins" => Reply::Done,
            other => Reply::Error(format!("Unsupported control request subtype: {other}")),
        };
        self.reply(request_id, reply, subtype == "initialize" && self.initialized);
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

    /// Any name is taken; the default without a note.
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

    /// Any mode is taken, too, but for the one that skips all questions.
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
                for server in &self.surroundings.servers {
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

    /// Answered once they run: none of them is spoken with.
    fn set_servers(&mut self, servers: Option<&Value>) -> Reply {
        let Some(servers) = servers.and_then(Value::as_object) else {
            return Reply::Error("mcp_set_servers: servers must be an object".into());
        };
        let removed = self.surroundings.set_servers(servers);
        let added = Vec::from_iter(servers.keys());
        let failed = |name: &&String| {
            self.surroundings
                .servers
                .iter()
                .any(|server| server.name == **name && server.status() == "failed")
        };
        with(|o| {
            o.strings("added", &added).strings("removed", &removed).object("errors", |o| {
                for name in added.iter().copied().filter(failed) {
                    o.str(name, "Connection failed");
                }
            });
        })
    }

    fn context_usage(&self) -> Reply {
        let bytes: usize = self.conversation.said.iter().map(|said| said.text.len()).sum();
        let tokens = u64::try_from(bytes / 4).unwrap_or(0);
        let limit = if self.model.ends_with("[1m]") { 1_000_000 } else { 200_000 };
        with(|o| {
            o.array("categories", |a| {
                a.object(|o| {
                    o.str("name", "Messages").int("tokens", tokens).str("color", "purple");
                });
            });
            o.int("totalTokens", tokens).int("maxTokens", limit).int("rawMaxTokens", limit);
            o.int("percentage", tokens * 100 / limit).str("model", &self.model);
        })
    }
}
