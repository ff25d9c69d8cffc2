//! The `result` line that ends each turn, and its usage.

use crate::clock;
use crate::conversation::new_id;
use crate::engine::Engine;
use crate::events::{cache_creation, server_tools};
use crate::json::Object;
use crate::turn::Turn;

/// The end of a turn.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) subtype: &'static str,
    pub(crate) is_error: bool,
    /// The field `result`, or `errors` on failure.
    pub(crate) text: Result<String, String>,
    /// `Some(None)` is null; `None` omits the field, as in local answers.
    pub(crate) api_status: Option<Option<u16>>,
    pub(crate) num_turns: u64,
    pub(crate) stop_reason: Option<&'static str>,
    pub(crate) terminal: Option<&'static str>,
}

/// Tokens of a turn or of the process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) input: u64,
    pub(crate) output: u64,
}

impl Usage {
    /// $5 and $25 for a million tokens.
    pub(crate) fn cost(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
        let (input, output) = (self.input as f64, self.output as f64);
        input * 5e-6 + output * 25e-6
    }

    pub(crate) fn write(self, o: &mut Object<'_>) {
        o.int("input_tokens", self.input).int("cache_creation_input_tokens", 0);
        o.int("cache_read_input_tokens", 0).int("output_tokens", self.output);
        server_tools(o);
        o.str("service_tier", "standard");
        cache_creation(o);
        o.str("inference_geo", "").raw("iterations", b"[]").str("speed", "standard");
    }
}

impl Engine {
    /// Repeats the transcript entries of the turn, as claude does before the end of a turn. Its file has them by then;
    /// here they are written later, so that a host cannot rely on the file.
    pub(crate) fn emit_mirrored(&mut self) {
        if let Some(entries) = self.conversation.take_mirrored() {
            let file = self.conversation.file_name();
            self.out.line(|o| {
                o.str("type", "transcript_mirror").str("filePath", &file).raw("entries", &entries);
            });
        }
    }

    /// Writes the last line of a turn.
    pub(crate) fn emit_result(&mut self, turn: &Turn, outcome: &Outcome) {
        self.last_failed = outcome.is_error;
        self.emit_mirrored();
        let ms = clock::ms_since(turn.started);
        let success = outcome.text.is_ok();
        let api_ms = self.totals.api_ms;
        self.out.line(|o| {
            o.str("type", "result").str("subtype", outcome.subtype);
            if success {
                o.bool("is_error", outcome.is_error);
                if let Some(status) = outcome.api_status {
                    match status {
                        Some(status) => o.int("api_error_status", status.into()),
                        None => o.null("api_error_status"),
                    };
                }
            }
            o.int("duration_ms", ms).int("duration_api_ms", api_ms);
            if let (Some(first), false) = (turn.first_output_ms, outcome.is_error) {
                o.int("ttft_ms", first).int("ttft_stream_ms", first).int("time_to_request_ms", 0);
            }
            if !success {
                o.bool("is_error", outcome.is_error);
            }
            o.int("num_turns", outcome.num_turns);
            if let Ok(text) = &outcome.text {
                o.str("result", text);
            }
            o.opt("stop_reason", outcome.stop_reason).str("session_id", &self.conversation.session_id);
            o.num("total_cost_usd", self.totals.cost).object("usage", |o| turn.usage.write(o));
            o.object("modelUsage", |o| {
                for (model, usage) in &self.totals.by_model {
                    o.object(model, |o| model_usage(o, model, *usage));
                }
            });
            o.array("permission_denials", |a| {
                for denial in &turn.denials {
                    a.object(|o| {
                        o.str("tool_name", &denial.name).str("tool_use_id", &denial.id);
                        o.value("tool_input", &denial.input);
                    });
                }
            });
            if let Some(document) = &turn.document {
                o.value("structured_output", document);
            }
            if let Some(reason) = outcome.terminal {
                o.str("terminal_reason", reason);
            }
            o.str("fast_mode_state", "off");
            if turn.unsolicited {
                o.object("origin", |o| {
                    o.str("kind", "task-notification");
                });
            }
            o.str("uuid", &new_id());
            if let Err(error) = &outcome.text {
                o.strings("errors", &[error]);
            }
        });
    }
}

fn model_usage(o: &mut Object<'_>, model: &str, usage: Usage) {
    o.int("inputTokens", usage.input).int("outputTokens", usage.output);
    o.int("cacheReadInputTokens", 0).int("cacheCreationInputTokens", 0).int("webSearchRequests", 0);
    o.num("costUSD", usage.cost());
    o.int("contextWindow", if model.ends_with("[1m]") { 1_000_000 } else { 200_000 });
    o.int("maxOutputTokens", 64_000);
}
