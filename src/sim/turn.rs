//! A turn: from the user's message (or a background task's end) to its one `result`.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::clock;
use super::conversation::new_id;
use super::engine::{Engine, Stop};
use super::events::{ApiMessage, Outcome, Usage, block};
use super::faults::{self, Kind};
use super::input::{Message, Priority};
use super::output::complain;
use super::permission::Denial;
use super::script::{self, Call, Part, Script};
use super::stream::Block;
use super::tools::{CallEnd, Task, rejected};
use super::transcript::INTERRUPTED;

/// What the real one says when the model refuses.
const REFUSAL: &str = "API Error: Claude Code is unable to respond to this request, which appears to violate our Usage Policy (https://www.anthropic.com/legal/aup). Try rephrasing the request in a new session or change your model.";
/// Retries that the real one would make.
const MAX_RETRIES: u64 = 10;

/// The state of a running turn.
pub(super) struct Turn {
    pub(super) started: Instant,
    pub(super) script: Script,
    pub(super) usage: Usage,
    pub(super) denials: Vec<Denial>,
    pub(super) first_output_ms: Option<u64>,
    pub(super) unsolicited: bool,
    /// Messages of the API.
    pub(super) rounds: u64,
    pub(super) stop_reason: Option<&'static str>,
    /// Text that was streamed but is in no assistant line yet.
    pub(super) partial_text: String,
    /// The tool calls without a result yet.
    pub(super) open_calls: Vec<String>,
    /// The message to replay once the answer has begun.
    late_replay: Option<(Value, String)>,
    /// Ids of processes that were left behind.
    left_behind: Vec<u32>,
}

impl Turn {
    pub(super) fn new() -> Self {
        Self {
            started: clock::now(),
            script: Script::default(),
            usage: Usage::default(),
            denials: Vec::new(),
            first_output_ms: None,
            unsolicited: false,
            rounds: 0,
            stop_reason: None,
            partial_text: String::new(),
            open_calls: Vec::new(),
            late_replay: None,
            left_behind: Vec::new(),
        }
    }

    pub(super) fn ms(&self) -> u64 {
        clock::ms_since(self.started)
    }

    pub(super) fn note_output(&mut self) {
        let now = self.ms();
        self.first_output_ms.get_or_insert(now);
    }
}

/// A normal end.
fn answered(text: String, num_turns: u64) -> Outcome {
    Outcome {
        subtype: "success",
        is_error: false,
        text: Ok(text),
        api_status: Some(None),
        num_turns,
        stop_reason: Some("end_turn"),
        terminal: Some("completed"),
    }
}

/// The end of what needed no model.
pub(super) fn local(text: &str) -> Outcome {
    Outcome {
        num_turns: 0,
        api_status: None,
        stop_reason: None,
        terminal: None,
        ..answered(text.to_owned(), 0)
    }
}

impl Engine {
    /// Runs the turn of these messages, joined.
    pub(super) fn user_turn(&mut self, messages: &[Message]) {
        let Some((last, earlier)) = messages.split_last() else { return };
        let texts: Vec<&str> = messages.iter().map(|message| message.text.as_str()).collect();
        let text = texts.join("\n");
        let content = if earlier.is_empty() { last.content.clone() } else { Value::String(text.clone()) };
        let mut turn = self.begin(&text);
        if self.before_anything(&turn).is_err() {
            // Interrupted before its first line: the turn still has its lines.
            self.stop = Some(Stop::Interrupted);
        }
        self.set_state("running");
        for message in earlier {
            self.emit_replay(&message.content, message.uuid.as_deref().unwrap_or_default(), false);
        }
        let ids: Vec<String> = messages.iter().filter_map(|message| message.uuid.clone()).collect();
        let uuid = last.uuid.clone().unwrap_or_else(new_id);
        if let Some(command) = text.strip_prefix('/').filter(|_| last.query)
            && let Some(outcome) = self.local_command(&mut turn, command)
        {
            self.end(&turn, &outcome);
            return;
        }
        let ids = if ids.is_empty() { vec![uuid.clone()] } else { ids };
        self.conversation.user(&text, &content, &ids, &self.mode);
        self.emit_init();
        if self.args.partial && !self.had_turn {
            turn.late_replay = Some((content, uuid));
        } else {
            self.emit_replay(&content, &uuid, true);
        }
        let outcome = if last.query { self.answer_or_abort(&mut turn) } else { local("") };
        self.end(&turn, &outcome);
    }

    /// The turn that a background task's end starts by itself.
    pub(super) fn unsolicited_turn(&mut self, task: &Task, code: i32) {
        let mut turn = self.begin("");
        turn.unsolicited = true;
        self.announce_task_end(task, code);
        self.set_state("running");
        self.emit_init();
        turn.script.parts.push(Part::Say(format!("noticed: {} exited with {code}", task.description)));
        let outcome = self.answer_or_abort(&mut turn);
        self.end(&turn, &outcome);
    }

    fn begin(&mut self, text: &str) -> Turn {
        self.busy = true;
        self.stop = None;
        let mut turn = Turn::new();
        match script::parse(text) {
            Ok(script) => turn.script = script,
            Err(error) => {
                complain(&error);
                self.conversation.writer.flush();
                std::process::exit(1);
            }
        }
        turn
    }

    fn end(&mut self, turn: &Turn, outcome: &Outcome) {
        let over = self.args.max_budget.filter(|budget| self.totals.cost >= *budget);
        if let Some(budget) = over {
            self.over_budget = true;
            let error = Outcome {
                subtype: "error_max_budget_usd",
                is_error: true,
                text: Err(format!("Reached maximum budget (${budget})")),
                num_turns: 1,
                terminal: None,
                stop_reason: outcome.stop_reason,
                api_status: None,
            };
            self.emit_result(turn, &error);
        } else {
            self.emit_result(turn, outcome);
        }
        if let Some(fault) = self.fault(turn, Kind::CrashAfter) {
            faults::die(fault.argument.as_deref());
        }
        self.busy = false;
        self.stop = None;
        self.asking = None;
        self.had_turn = true;
    }

    /// Faults that strike before the turn's first line.
    fn before_anything(&mut self, turn: &Turn) -> Result<(), Stop> {
        if let Some(fault) = self.fault(turn, Kind::DieOnce)
            && faults::first_time(fault.argument.as_deref().unwrap_or("die-once"))
        {
            faults::die(None);
        }
        if let Some(fault) = self.fault(turn, Kind::CrashBefore) {
            faults::die(fault.argument.as_deref());
        }
        if let Some(fault) = self.fault(turn, Kind::Mute) {
            self.wait(Duration::from_millis(fault.number(60_000)))?;
        }
        Ok(())
    }

    fn answer_or_abort(&mut self, turn: &mut Turn) -> Outcome {
        if self.over_budget {
            return Outcome { stop_reason: None, ..local("") };
        }
        match self.answer_turn(turn) {
            Ok(outcome) => outcome,
            Err(stop) => self.abort(turn, stop),
        }
    }

    fn answer_turn(&mut self, turn: &mut Turn) -> Result<Outcome, Stop> {
        // Hears an interrupt that was written together with the message.
        self.wait(Duration::ZERO)?;
        self.in_the_turn(turn);
        let latency = self.args.latency;
        self.wait(latency + turn.script.sleep)?;
        self.retry(turn)?;
        if let Some(failure) = turn.script.failure.clone() {
            return Ok(self.fail(turn, failure.status));
        }
        if turn.script.refusal {
            return self.refuse(turn);
        }
        let end = self.use_tools(turn)?;
        if let Some(limit) = turn.script.max_turns.then(|| self.turn_limit()).filter(|l| turn.rounds >= *l) {
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
        let text = self.answer_text(turn, end);
        let mut blocks = Vec::new();
        blocks.extend(turn.script.think.clone().map(Block::Thinking));
        blocks.push(Block::Text(text));
        self.stream_message(turn, &blocks, "end_turn")?;
        let Some(Block::Text(text)) = blocks.pop() else { return Ok(answered(String::new(), turn.rounds)) };
        Ok(answered(text, turn.rounds))
    }

    /// Faults that strike after `init`.
    fn in_the_turn(&mut self, turn: &mut Turn) {
        if let Some(fault) = self.fault(turn, Kind::CrashInit) {
            faults::die(fault.argument.as_deref());
        }
        if self.fault(turn, Kind::Hang).is_some() {
            self.deaf.set();
            faults::hang();
        }
        if self.fault(turn, Kind::Spin).is_some() {
            self.deaf.set();
            faults::spin();
        }
        if self.fault(turn, Kind::StopSelf).is_some() {
            faults::stop_self();
        }
        if self.fault(turn, Kind::GarbageLine).is_some() {
            self.out.bytes(b"this line is no JSON {\"type\":\n");
        }
        if self.fault(turn, Kind::InvalidUtf8).is_some() {
            self.out.bytes(b"{\"type\":\"system\",\"subtype\":\"broken\",\"text\":\"\xff\xfe\xc3\"}\n");
        }
        if let Some(fault) = self.fault(turn, Kind::LongLine) {
            self.long_line(fault.number(100_000_000));
        }
        if self.fault(turn, Kind::CloseStdout).is_some() {
            self.out.close();
        }
        // The rest is done at the start already when the command line asks for it.
        for fault in turn.script.faults.clone() {
            match fault.kind {
                Kind::IgnoreTerm => self.deaf.set(),
                Kind::IgnoreEof => self.ignore_eof(),
                Kind::NoRead => self.reading_stopped.store(true, Ordering::SeqCst),
                Kind::Memory => self.ballast.extend(faults::ballast(fault.number(256))),
                Kind::StderrFlood => faults::flood_stderr(fault.number(10_000_000)),
                Kind::Outlive | Kind::OutliveHolding => turn.left_behind = self.leave_behind(&fault),
                _ => {}
            }
        }
    }

    fn long_line(&mut self, bytes: u64) {
        const CHUNK: &[u8] = &[b'x'; 64 * 1024];
        let start: &[u8] = br#"{"type":"system","subtype":"long","text":""#;
        let end: &[u8] = b"\"}\n";
        self.out.bytes(start);
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_sub(start.len() + end.len());
        while left > 0 {
            let chunk = CHUNK.get(..left.min(CHUNK.len())).unwrap_or(CHUNK);
            self.out.bytes(chunk);
            left -= chunk.len();
        }
        self.out.bytes(end);
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

    fn fail(&mut self, turn: &mut Turn, status: u16) -> Outcome {
        turn.note_output();
        let (error, text) = match status {
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
            // 529 is the exception of the real one, too.
            api_status: Some((status != 529).then_some(status)),
            stop_reason: Some("stop_sequence"),
            terminal: Some(if status == 413 { "image_error" } else { "completed" }),
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

    fn turn_limit(&self) -> u64 {
        self.args.max_turns.unwrap_or(2)
    }

    /// Makes the tool calls of the script; tells how the last of them ended.
    fn use_tools(&mut self, turn: &mut Turn) -> Result<Option<CallEnd>, Stop> {
        let mut calls = std::mem::take(&mut turn.script.calls);
        if let Some(seconds) = turn.script.background {
            calls.push(self.background_call(seconds));
        }
        let mut again = turn.script.call_loop.clone();
        if turn.script.max_turns {
            again.get_or_insert(Call { name: "Bash".into(), input: json!({"command": "true"}) });
        }
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
            if self.args.max_turns.is_some_and(|limit| turn.rounds >= limit)
                || (turn.script.max_turns && turn.rounds >= self.turn_limit())
            {
                turn.script.max_turns = true;
                break;
            }
            self.wait(Duration::ZERO)?;
            calls = again.clone().into_iter().collect();
        }
        Ok(worst)
    }

    /// What the host said during a tool call becomes part of the running turn and has no result of its own.
    fn take_messages_into_turn(&mut self) {
        let waiting = std::mem::take(&mut self.queue);
        for message in waiting {
            let joins = message.priority == Priority::Next && message.query && !message.text.starts_with('/');
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

    fn answer_text(&self, turn: &Turn, tools: Option<CallEnd>) -> String {
        let talk = &self.conversation;
        let mut texts: Vec<String> = Vec::new();
        for part in &turn.script.parts {
            texts.push(match part {
                Part::Say(text) => text.clone(),
                Part::Bytes(length) => "x".repeat(*length),
                Part::Recall => {
                    let before = talk.said.len().saturating_sub(1);
                    let said: Vec<&str> =
                        talk.said.iter().take(before).map(|said| said.text.as_str()).collect();
                    said.join(" | ")
                }
                Part::Env(name) => std::env::var(name).unwrap_or_default(),
                Part::Pid => std::process::id().to_string(),
                Part::Cwd => talk.cwd.clone(),
            });
        }
        if !turn.left_behind.is_empty() {
            let pids: Vec<String> = turn.left_behind.iter().map(u32::to_string).collect();
            texts.push(format!("left behind: {}", pids.join(" ")));
        }
        if !texts.is_empty() {
            return texts.join(" ");
        }
        match (tools, turn.script.deltas) {
            (Some(end), _) => format!("TOOLS:{}", end.word()),
            // Each delta is a word of four characters, so that the number is exact.
            (None, Some(deltas)) => (0..deltas).map(|n| format!("{:03} ", n % 1000)).collect(),
            (None, None) => format!("echo {}: {}", talk.turns(), turn.script.plain),
        }
    }

    /// The replay that waits until the answer has begun, as in the first turn with partial messages.
    pub(super) fn late_replay(&mut self, turn: &mut Turn) {
        if let Some((content, uuid)) = turn.late_replay.take() {
            self.emit_replay(&content, &uuid, true);
        }
    }

    /// Books the tokens of a message.
    pub(super) fn book(&mut self, turn: &mut Turn, input: u64, output: u64) {
        turn.usage.input += input;
        turn.usage.output += output;
        let usage = Usage { input, output };
        self.totals.cost += usage.cost();
        self.totals.api_ms += turn.ms();
        match self.totals.by_model.iter_mut().find(|(model, _)| *model == self.model) {
            Some((_, total)) => {
                total.input += input;
                total.output += output;
            }
            None => self.totals.by_model.push((self.model.clone(), usage)),
        }
    }

    fn abort(&mut self, turn: &mut Turn, stop: Stop) -> Outcome {
        self.late_replay(turn);
        if stop == Stop::Replaced {
            let reason = turn.stop_reason;
            return Outcome {
                stop_reason: reason,
                terminal: Some("aborted_tools"),
                ..answered(String::new(), turn.rounds.max(1))
            };
        }
        let with_tools = turn.stop_reason == Some("tool_use");
        for id in std::mem::take(&mut turn.open_calls) {
            let (block, result) = rejected(&id);
            self.emit_note(&block, Some(&result));
        }
        if !turn.partial_text.is_empty() {
            let text = block("text", &turn.partial_text);
            let api =
                ApiMessage { id: Self::api_id("msg"), request_id: Self::api_id("req"), input_tokens: 0 };
            self.emit_assistant(&api, &text, "end_turn");
        }
        let note =
            if with_tools { format!("{INTERRUPTED} for tool use]") } else { format!("{INTERRUPTED}]") };
        self.emit_note(&block("text", &note), None);
        let reason = if with_tools { "tool_use" } else { "null" };
        Outcome {
            subtype: "error_during_execution",
            is_error: true,
            text: Err(format!(
                "[ede_diagnostic] result_type=user last_content_type=n/a stop_reason={reason}"
            )),
            api_status: None,
            num_turns: turn.rounds.max(1) + 1 + u64::from(with_tools),
            stop_reason: turn.stop_reason,
            terminal: Some(if with_tools { "aborted_tools" } else { "aborted_streaming" }),
        }
    }
}
