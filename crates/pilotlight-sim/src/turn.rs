//! A turn: from the user's message (or a background task's end) to its one `result`.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::clock;
use super::conversation::new_id;
use super::engine::{Engine, Stop};
use super::events::{ApiMessage, Outcome, Usage, block};
use super::faults::{self, Kind};
use super::input::{Message, kinds_of};
use super::output::complain;
use super::permission::Denial;
use super::script::{self, Part, Script};
use super::tasks::Task;
use super::tools::rejected;
use super::transcript::INTERRUPTED;

/// The state of a running turn.
pub(crate) struct Turn {
    pub(crate) started: Instant,
    pub(crate) script: Script,
    /// What the message consists of.
    pub(crate) kinds: String,
    pub(crate) usage: Usage,
    pub(crate) denials: Vec<Denial>,
    pub(crate) first_output_ms: Option<u64>,
    pub(crate) unsolicited: bool,
    /// Messages of the API.
    pub(crate) rounds: u64,
    pub(crate) stop_reason: Option<&'static str>,
    /// Text that was streamed but is in no assistant line yet.
    pub(crate) partial_text: String,
    /// The tool calls without a result yet.
    pub(crate) open_calls: Vec<String>,
    /// The message to replay once the answer has begun.
    pub(crate) late_replay: Option<(Value, String)>,
    /// Ids of processes that were left behind.
    pub(crate) left_behind: Vec<u32>,
}

impl Turn {
    pub(crate) fn new() -> Self {
        Self {
            started: clock::now(),
            script: Script::default(),
            kinds: String::new(),
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

    pub(crate) fn ms(&self) -> u64 {
        clock::ms_since(self.started)
    }

    pub(crate) fn note_output(&mut self) {
        let now = self.ms();
        self.first_output_ms.get_or_insert(now);
    }
}

/// A normal end.
pub(crate) fn answered(text: String, num_turns: u64) -> Outcome {
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
pub(crate) fn local(text: &str) -> Outcome {
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
    pub(crate) fn user_turn(&mut self, messages: &[Message]) {
        let Some((last, earlier)) = messages.split_last() else { return };
        let texts: Vec<&str> = messages.iter().map(|message| message.text.as_str()).collect();
        let text = texts.join("\n");
        let content = if earlier.is_empty() { last.content.clone() } else { Value::String(text.clone()) };
        let mut turn = self.begin(&text);
        turn.kinds = kinds_of(&content);
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
        if self.args.partial {
            turn.late_replay = Some((content, uuid));
        } else {
            self.emit_replay(&content, &uuid, true);
        }
        let outcome = if last.query { self.answer_or_abort(&mut turn) } else { local("") };
        self.end(&turn, &outcome);
    }

    /// The turn that a background task's end starts by itself.
    pub(crate) fn unsolicited_turn(&mut self, task: &Task, code: i32) {
        let mut turn = self.begin("");
        turn.unsolicited = true;
        self.set_state("running");
        self.notice_task_end(task, code);
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
        // A stuck program hears no signal, from the first line on that a host may wait for.
        if self.fault(turn, Kind::Hang).or_else(|| self.fault(turn, Kind::Spin)).is_some() {
            self.deaf.set();
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

    /// Faults that strike after `init`.
    pub(crate) fn in_the_turn(&mut self, turn: &mut Turn) {
        if let Some(fault) = self.fault(turn, Kind::CrashInit) {
            faults::die(fault.argument.as_deref());
        }
        if self.fault(turn, Kind::Hang).is_some() {
            faults::hang();
        }
        if self.fault(turn, Kind::Spin).is_some() {
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

    /// The replay that waits until the answer has begun, as with partial messages.
    pub(crate) fn late_replay(&mut self, turn: &mut Turn) {
        if let Some((content, uuid)) = turn.late_replay.take() {
            self.emit_replay(&content, &uuid, true);
        }
    }

    /// Books the tokens of a message.
    pub(crate) fn book(&mut self, turn: &mut Turn, input: u64, output: u64) {
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
