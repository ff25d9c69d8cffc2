//! Slash commands: local answers without the model.

use crate::conversation::new_id;
use crate::engine::Engine;
use crate::result::Outcome;
use crate::turn::{Turn, local};

/// Known commands that are not available to a host.
const ELSEWHERE: &[&str] = &[
    "add-dir",
    "agents",
    "config",
    "exit",
    "help",
    "login",
    "logout",
    "memory",
    "model",
    "permissions",
    "resume",
];

impl Engine {
    /// Runs `/command` (without the slash). Returns `None` for commands that the model answers.
    pub(crate) fn local_command(&mut self, turn: &mut Turn, command: &str) -> Option<Outcome> {
        let name = command.split_whitespace().next().unwrap_or_default();
        let known = matches!(name, "clear" | "compact" | "context" | "cost") || ELSEWHERE.contains(&name);
        let inert = self.args.no_slash_commands || ELSEWHERE.contains(&name);
        if crate::catalogue::SKILLS.contains(&name) && !inert {
            return None;
        }
        let text = match name {
            _ if known && inert => format!("/{name} isn't available in this environment."),
            "clear" => {
                self.conversation.clear();
                self.emit_init();
                self.emit_synthetic("(no content)", "stop_sequence", None);
                return Some(local(""));
            }
            "compact" if self.conversation.user_texts.is_empty() => {
                "Not enough messages to compact.".to_owned()
            }
            "compact" => return Some(self.compact(turn)),
            "context" => {
                let turns = self.conversation.turns();
                format!("## Context Usage\n\n**Model:** {}  \n**Messages:** {turns}\n", self.model)
            }
            "cost" => format!(
                "Total cost:            ${:.4}\nTotal duration (API):  {}s",
                self.totals.cost,
                self.totals.api_ms / 1000
            ),
            _ => format!("Unknown command: /{name}"),
        };
        self.emit_init();
        self.emit_synthetic(&text, "stop_sequence", None);
        Some(local(&text))
    }

    /// Replaces the conversation by a summary.
    fn compact(&mut self, turn: &mut Turn) -> Outcome {
        self.system("status", |o| {
            o.str("status", "compacting");
        });
        self.system("status", |o| {
            o.null("status").str("compact_result", "success");
        });
        self.emit_init();
        let (anchor, kept) = (new_id(), self.conversation.leaf().to_owned());
        let turns = self.conversation.turns();
        let ms = turn.ms();
        let boundary = new_id();
        self.system_as(&boundary, "compact_boundary", |o| {
            o.object("compact_metadata", |o| {
                o.str("trigger", "manual").int("pre_tokens", 12).int("post_tokens", 12);
                o.int("cumulative_dropped_tokens", 0).int("duration_ms", ms);
                o.object("preserved_segment", |o| {
                    o.str("head_uuid", &kept).str("anchor_uuid", &anchor).str("tail_uuid", &kept);
                });
                o.object("preserved_messages", |o| {
                    o.str("anchor_uuid", &anchor).strings("uuids", &[&kept]).strings("all_uuids", &[&kept]);
                });
            });
        });
        let summary = format!(
            "This session is being continued from a previous conversation that ran out of context. The summary below covers the earlier portion of the conversation.\n\n{turns} turns (simulated summary).\n\nThe full transcript is at: {}",
            self.conversation.file_name()
        );
        self.emit_summary(&anchor, &summary);
        self.conversation.compact(&boundary, &anchor, &summary);
        self.emit_command_output("Compacted ");
        // The summary costs an API call, which is not part of the turn's own usage.
        self.book(&mut Turn::new(), 10, 2);
        local("")
    }
}
