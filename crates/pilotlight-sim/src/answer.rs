//! The answer of a turn, as its markers ask: retries, failures, tool calls and the text.

use std::time::Duration;

use crate::command::Priority;
use crate::conversation::new_id;
use crate::engine::{Engine, Stop};
use crate::events::ApiMessage;
use crate::result::Outcome;
use crate::script::{Failure, Part};
use crate::stream::Block;
use crate::tools::ToolOutcome;
use crate::turn::{Turn, answered};

/// Text of claude when the model refuses.
const REFUSAL: &str = "API Error: Claude Code is unable to respond to this request, which appears to violate our Usage Policy (https://www.anthropic.com/legal/aup). Try rephrasing the request in a new session or change your model.";
/// Text of claude 2.1.197 and 2.1.332 for an API error 400 `prompt is too long: 205000 tokens > 200000 maximum`.
const CONTEXT_FULL: &str = "Prompt is too long · the request is ~205000 tokens (limit 200000) but this conversation is only ~1537 tokens — the rest is system prompt, tool definitions, and attachment content. A single-exchange conversation cannot be compacted; reduce attached files/tools or start with less context.";
/// Maximum number of retries of claude.
const MAX_RETRIES: u64 = 10;

impl Engine {
    pub(crate) fn answer_turn(&mut self, turn: &mut Turn) -> Result<Outcome, Stop> {
        self.apply_faults_after_init(turn);
        self.workspace.before_first_request();
        // Receives an interrupt that was written together with the message.
        self.wait(Duration::ZERO)?;
        let latency = self.args.latency;
        self.wait(latency + turn.script.sleep)?;
        self.retry(turn)?;
        if let Some(failure) = turn.script.failure.clone() {
            return Ok(self.fail(turn, &failure));
        }
        if turn.script.refusal {
            return self.refuse(turn);
        }
        if !turn.script.recorded.is_empty() {
            return Ok(self.replay_recorded(turn));
        }
        let end = self.use_tools(turn)?;
        if let Some(limit) = turn.exceeded_rounds {
            return Ok(Outcome {
                subtype: "error_max_turns",
                is_error: true,
                text: Err(format!("Reached maximum number of turns ({limit})")),
                api_status: None,
                num_turns: limit + 1,
                stop_reason: Some("tool_use"),
                terminal: Some("max_turns"),
            });
        }
        if let Some(document) = turn.script.output.take().filter(|_| self.has_schema) {
            let text = document.to_string();
            let id = Self::api_id("toolu");
            let call =
                Block::Tool { id: id.clone(), name: "StructuredOutput".into(), input: document.clone() };
            self.stream_message(turn, &[call], "tool_use")?;
            self.tool_success(&id, "Structured output provided successfully", |_| {});
            turn.document = Some(document);
            return Ok(Outcome { stop_reason: Some("tool_use"), ..answered(text, turn.rounds + 1) });
        }
        let text = match turn.script.host_request.take() {
            Some(subtype) => self.ask_host(&subtype)?,
            None => self.answer_text(turn, end),
        };
        let mut blocks = Vec::new();
        blocks.extend(turn.script.think.clone().map(Block::Thinking));
        blocks.push(Block::Text(text));
        self.stream_message(turn, &blocks, "end_turn")?;
        let Some(Block::Text(text)) = blocks.pop() else { return Ok(answered(String::new(), turn.rounds)) };
        Ok(answered(text, turn.rounds))
    }

    fn retry(&mut self, turn: &Turn) -> Result<(), Stop> {
        let Some(retries) = turn.script.retries.clone() else { return Ok(()) };
        let error = match retries.status {
            529 => "overloaded",
            429 => "rate_limit",
            401 | 403 => "authentication_failed",
            _ => "server_error",
        };
        for attempt in 1..=retries.count {
            let usual = 500_u64 << (attempt - 1).min(6);
            let delay = retries.delay.unwrap_or(Duration::from_millis(usual.min(32_000)));
            self.system("api_retry", |o| {
                o.int("attempt", attempt).int("max_retries", MAX_RETRIES);
                o.num("retry_delay_ms", delay.as_secs_f64() * 1000.0);
                o.int("error_status", retries.status.into()).str("error", error);
            });
            self.wait(delay)?;
        }
        Ok(())
    }

    fn fail(&mut self, turn: &mut Turn, failure: &Failure) -> Outcome {
        turn.note_output();
        let status = failure.status;
        let (error, text) = match status {
            400 if failure.context_full => ("invalid_request", CONTEXT_FULL.into()),
            401 | 403 => ("authentication_failed", format!("Failed to authenticate. API Error: {status} simulated {status}")),
            404 => ("model_not_found", "There's an issue with the selected model (simulated). It may not exist or you may not have access to it.".into()),
            413 => ("invalid_request", "Request too large (max 32MB). Double press esc to go back and try with a smaller file.".into()),
            429 => ("rate_limit", "API Error: Request rejected (429) · simulated 429".into()),
            529 => ("server_error", "API Error: Repeated 529 Overloaded errors. The API is at capacity — this is usually temporary.".into()),
            400 => ("unknown", "API Error: 400 simulated 400".into()),
            _ => ("server_error", format!("API Error: {status} simulated {status}. This is a server-side issue, usually temporary — try again in a moment.")),
        };
        let request_id = Self::api_id("req");
        self.late_replay(turn);
        self.emit_synthetic(&text, "stop_sequence", Some((error, &request_id)));
        Outcome {
            is_error: true,
            // claude reports no status for 529.
            api_status: Some((status != 529).then_some(status)),
            stop_reason: Some("stop_sequence"),
            terminal: Some(match status {
                413 => "image_error",
                _ if failure.context_full => "prompt_too_long",
                _ => "completed",
            }),
            ..answered(text, 1)
        }
    }

    fn refuse(&mut self, turn: &mut Turn) -> Result<Outcome, Stop> {
        let text = self.answer_text(turn, None);
        let refused = self.conversation.leaf().to_owned();
        let ApiMessage { request_id, .. } = self.stream_message(turn, &[Block::Text(text)], "refusal")?;
        let model = self.model.clone();
        self.system("model_refusal_no_fallback", |o| {
            o.str("original_model", &model).str("request_id", &request_id);
            o.null("api_refusal_category").null("api_refusal_explanation");
            o.str("refused_user_message_uuid", &refused).str("content", "");
        });
        let text = format!("{REFUSAL}\n\nRequest ID: {request_id}");
        self.emit_synthetic(&text, "refusal", Some(("invalid_request", &request_id)));
        Ok(Outcome { is_error: true, stop_reason: Some("refusal"), ..answered(text, 1) })
    }

    /// Makes the tool calls of the script; returns the worst outcome.
    fn use_tools(&mut self, turn: &mut Turn) -> Result<Option<ToolOutcome>, Stop> {
        let mut calls = std::mem::take(&mut turn.script.calls);
        if let Some(seconds) = turn.script.background {
            calls.push(self.background_call(seconds));
        }
        let again = turn.script.call_loop.clone();
        calls.extend(again.clone());
        let mut worst = None;
        while !calls.is_empty() {
            let ids: Vec<String> = calls.iter().map(|_| Self::api_id("toolu")).collect();
            let blocks: Vec<Block> = calls
                .iter()
                .zip(&ids)
                .map(|(call, id)| Block::Tool {
                    id: id.clone(),
                    name: call.name.clone(),
                    input: call.input.clone(),
                })
                .collect();
            self.stream_message(turn, &blocks, "tool_use")?;
            turn.open_calls.clone_from(&ids);
            for (call, id) in calls.iter().zip(&ids) {
                worst = worst.max(Some(self.run_call(turn, call, id)?));
                turn.open_calls.retain(|open| open != id);
            }
            self.take_messages_into_turn();
            turn.exceeded_rounds = self.args.max_turns.filter(|limit| turn.rounds >= *limit);
            if turn.exceeded_rounds.is_some() {
                break;
            }
            self.wait(Duration::ZERO)?;
            calls = again.clone().into_iter().collect();
        }
        Ok(worst)
    }

    /// Adds messages that arrived during a tool call to the running turn. They have no result of their own.
    fn take_messages_into_turn(&mut self) {
        let waiting = std::mem::take(&mut self.queue);
        for message in waiting {
            let joins = message.priority == Priority::Next
                && message.query
                && !message.text.trim_start().starts_with('/');
            if !joins {
                self.queue.push_back(message);
                continue;
            }
            let uuid = message.uuid.clone().unwrap_or_else(new_id);
            let repeated = self.conversation.was_seen(Some(&uuid));
            self.emit_replay(&message.content, &uuid, !repeated);
            if !repeated {
                self.conversation.user_in_turn(&message.text, &uuid);
            }
        }
    }

    fn answer_text(&self, turn: &Turn, tools: Option<ToolOutcome>) -> String {
        let talk = &self.conversation;
        let mut texts: Vec<String> = Vec::new();
        for part in &turn.script.parts {
            texts.push(match part {
                Part::Say(text) => text.clone(),
                Part::Bytes(length) => "x".repeat(*length),
                Part::Recall => {
                    let before = talk.user_texts.len().saturating_sub(1);
                    let said: Vec<&str> =
                        talk.user_texts.iter().take(before).map(|user| user.text.as_str()).collect();
                    said.join(" | ")
                }
                Part::Env(name) => self.workspace.variable(name),
                Part::Pid => std::process::id().to_string(),
                Part::System => self.system_prompt.clone().unwrap_or_else(|| "none".into()),
                Part::Blocks => turn.kinds.clone(),
                Part::Context => talk.context().to_string(),
            });
        }
        if !turn.survivors.is_empty() {
            let pids: Vec<String> = turn.survivors.iter().map(u32::to_string).collect();
            texts.push(format!("left behind: {}", pids.join(" ")));
        }
        if !texts.is_empty() {
            return texts.join(" ");
        }
        match (tools, turn.script.deltas) {
            (Some(end), _) if !turn.tool_texts.is_empty() => {
                format!("TOOLS:{} {}", end.word(), turn.tool_texts.join(" "))
            }
            (Some(end), _) => format!("TOOLS:{}", end.word()),
            // Each delta is a word of four characters, which makes the number exact.
            (None, Some(deltas)) => (0..deltas).map(|n| format!("{:03} ", n % 1000)).collect(),
            (None, None) => format!("echo {}: {}", talk.turns(), turn.script.plain),
        }
    }
}
