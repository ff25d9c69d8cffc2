//! Output lines of a turn, with the fields of claude in its order.

use serde_json::Value;

use crate::catalogue::{self, VERSION};
use crate::clock;
use crate::conversation::new_id;
use crate::engine::Engine;
use crate::json::{Object, object};
use crate::result::Usage;

/// A message of the simulated API.
pub(crate) struct ApiMessage {
    pub(crate) id: String,
    pub(crate) request_id: String,
    pub(crate) input_tokens: u64,
}

pub(crate) fn server_tools(o: &mut Object<'_>) {
    o.object("server_tool_use", |o| {
        o.int("web_search_requests", 0).int("web_fetch_requests", 0);
    });
}

pub(crate) fn cache_creation(o: &mut Object<'_>) {
    o.object("cache_creation", |o| {
        o.int("ephemeral_1h_input_tokens", 0).int("ephemeral_5m_input_tokens", 0);
    });
}

/// A content block `{"type":KIND,KIND:text}`.
pub(crate) fn block(kind: &str, text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 64);
    object(&mut out, |o| {
        o.str("type", kind).str(kind, text);
        if kind == "thinking" {
            o.str("signature", "c2ln");
        }
    });
    out
}

fn array_of(block: &[u8]) -> Vec<u8> {
    [b"[", block, b"]"].concat()
}

impl ApiMessage {
    fn start_usage(&self, o: &mut Object<'_>) {
        o.object("usage", |o| {
            o.int("input_tokens", self.input_tokens).int("output_tokens", 1);
            o.int("cache_creation_input_tokens", 0).int("cache_read_input_tokens", 0);
        });
    }

    /// The message at its start.
    pub(crate) fn write(&self, o: &mut Object<'_>, model: &str, content: &[u8]) {
        o.str("id", &self.id).str("type", "message").str("role", "assistant");
        o.str("model", catalogue::api_model(model)).raw("content", content);
        o.null("stop_reason").null("stop_sequence");
        self.start_usage(o);
    }
}

impl Engine {
    /// Writes a line `{"type":"system","subtype":..}` with the fields of `fill`.
    pub(crate) fn system(&mut self, subtype: &str, fill: impl FnOnce(&mut Object<'_>)) {
        self.system_as(&new_id(), subtype, fill);
    }

    /// The same with this id.
    pub(crate) fn system_as(&mut self, uuid: &str, subtype: &str, fill: impl FnOnce(&mut Object<'_>)) {
        let session = &self.conversation.session_id;
        self.out.line(|o| {
            o.str("type", "system").str("subtype", subtype);
            fill(o);
            o.str("uuid", uuid).str("session_id", session);
        });
    }

    /// Writes a change of the session state, if the host asked for these lines.
    pub(crate) fn set_state(&mut self, state: &'static str) {
        if self.state_events && self.state != state {
            self.system("session_state_changed", |o| {
                o.str("state", state);
            });
        }
        self.state = state;
    }

    pub(crate) fn emit_init(&mut self) {
        let (args, talk) = (&self.args, &self.conversation);
        let all = catalogue::TOOLS.iter().copied().chain(args.ask_host.then_some(catalogue::ASKING_TOOL));
        let tools: Vec<&str> = match &args.tools {
            None => all.collect(),
            Some(wanted) => all.filter(|tool| wanted.iter().any(|w| w == tool || w == "default")).collect(),
        };
        let memory = format!("{}/memory/", talk.dir.to_string_lossy());
        let slash: &[&str] = if args.no_slash_commands { &[] } else { catalogue::SLASH_COMMANDS };
        let skills: &[&str] = if args.no_slash_commands { &[] } else { catalogue::SKILLS };
        self.out.line(|o| {
            o.str("type", "system").str("subtype", "init").str("cwd", &talk.cwd);
            o.str("session_id", &talk.session_id).strings("tools", &tools);
            o.array("mcp_servers", |a| {
                for server in &self.workspace.servers {
                    a.object(|o| {
                        o.str("name", &server.name).str("status", server.status());
                    });
                }
            });
            o.str("model", &self.model).str("permissionMode", &self.mode);
            o.strings("slash_commands", slash).str("apiKeySource", self.key_source);
            o.str("claude_code_version", VERSION).str("output_style", "default");
            o.strings("agents", catalogue::AGENTS).strings("skills", skills).raw("plugins", b"[]");
            o.bool("analytics_disabled", true).bool("product_feedback_disabled", true);
            o.str("uuid", &new_id()).object("memory_paths", |o| {
                o.str("auto", &memory);
            });
            o.str("fast_mode_state", "off");
        });
    }

    /// Writes one content block of the answer as a line.
    pub(crate) fn emit_assistant(&mut self, api: &ApiMessage, block: &[u8], stop_reason: &str) {
        let uuid = new_id();
        let content = array_of(block);
        let session = &self.conversation.session_id;
        self.out.line(|o| {
            o.str("type", "assistant").object("message", |o| {
                api.write(o, &self.model, &content);
                o.null("context_management");
            });
            o.null("parent_tool_use_id").str("session_id", session);
            o.str("uuid", &uuid).str("request_id", &api.request_id);
        });
        let model = &self.model;
        self.conversation.assistant(&uuid, |o| {
            o.str("id", &api.id).str("type", "message").str("role", "assistant");
            o.str("model", catalogue::api_model(model)).raw("content", &content);
            o.str("stop_reason", stop_reason).null("stop_sequence");
            o.object("usage", |o| Usage { input: api.input_tokens, output: 1 }.write(o));
        });
    }

    /// Writes an answer without a model: of a local command, or about an error.
    pub(crate) fn emit_synthetic(&mut self, text: &str, stop_reason: &str, error: Option<(&str, &str)>) {
        let uuid = new_id();
        let content = array_of(&block("text", text));
        let message_id = new_id();
        let message = |o: &mut Object<'_>| {
            o.str("id", &message_id).null("container").str("model", "<synthetic>");
            o.str("role", "assistant").null("stop_details").str("stop_reason", stop_reason);
            o.str("stop_sequence", "").str("type", "message").object("usage", |o| {
                o.int("input_tokens", 0).int("output_tokens", 0);
                o.int("cache_creation_input_tokens", 0).int("cache_read_input_tokens", 0);
                server_tools(o);
                o.null("service_tier");
                cache_creation(o);
                o.null("inference_geo").null("iterations").null("speed");
            });
            o.raw("content", &content).null("context_management");
        };
        let session = &self.conversation.session_id;
        self.out.line(|o| {
            o.str("type", "assistant").object("message", message);
            o.null("parent_tool_use_id").str("session_id", session).str("uuid", &uuid);
            if let Some((error, request_id)) = error {
                o.str("error", error).str("request_id", request_id);
            }
        });
        self.conversation.assistant(&uuid, message);
    }

    /// Writes the replay of a received message. Joined and dropped messages have no timestamp.
    pub(crate) fn emit_replay(&mut self, content: &Value, uuid: &str, with_time: bool) {
        if !self.args.replay {
            return;
        }
        self.emit_user(
            uuid,
            |o| {
                o.str("role", "user").value("content", content);
            },
            |o| {
                if with_time {
                    o.str("timestamp", &clock::timestamp());
                }
                o.bool("isReplay", true);
            },
        );
    }

    /// Writes the output of a local command as a user line.
    pub(crate) fn emit_command_output(&mut self, text: &str) {
        let text = format!("<local-command-stdout>{text}</local-command-stdout>");
        self.emit_user(
            &new_id(),
            |o| {
                o.str("role", "user").str("content", &text);
            },
            |o| {
                o.str("timestamp", &clock::timestamp()).bool("isReplay", true);
            },
        );
    }

    /// Writes the user line that replaces the compacted conversation.
    pub(crate) fn emit_summary(&mut self, uuid: &str, text: &str) {
        self.emit_user(
            uuid,
            |o| {
                o.str("role", "user").str("content", text);
            },
            |o| {
                o.str("timestamp", &clock::timestamp()).bool("isReplay", false).bool("isSynthetic", true);
            },
        );
    }

    fn emit_user(
        &mut self,
        uuid: &str,
        message: impl FnOnce(&mut Object<'_>),
        end: impl FnOnce(&mut Object<'_>),
    ) {
        let session = &self.conversation.session_id;
        self.out.line(|o| {
            o.str("type", "user").object("message", message).str("session_id", session);
            o.null("parent_tool_use_id").str("uuid", uuid);
            end(o);
        });
    }

    /// Writes a tool's result, or without `result` the note about an interrupt.
    pub(crate) fn emit_note(&mut self, block: &[u8], result: Option<&[u8]>) {
        let uuid = new_id();
        let mut message = Vec::new();
        object(&mut message, |o| {
            o.str("role", "user").raw("content", &array_of(block));
        });
        let session = &self.conversation.session_id;
        self.out.line(|o| {
            o.str("type", "user").raw("message", &message).null("parent_tool_use_id");
            o.str("session_id", session).str("uuid", &uuid).str("timestamp", &clock::timestamp());
            if let Some(result) = result {
                o.raw("tool_use_result", result);
            }
        });
        self.conversation.note(&uuid, &message, result);
    }
}
