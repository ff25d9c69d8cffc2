//! A turn: from a user message, or the exit of a background task, to its `result`.

use std::time::Instant;

use serde_json::Value;

use crate::clock;
use crate::command::{Message, kinds_of};
use crate::conversation::new_id;
use crate::engine::{Engine, Stop};
use crate::events::{ApiMessage, block};
use crate::faults::{self, Kind};
use crate::output::write_error;
use crate::permission::Denial;
use crate::result::{Outcome, Usage};
use crate::scenario::Received;
use crate::script::{self, Part, Script};
use crate::tasks::Task;
use crate::tools::rejected;
use crate::transcript::INTERRUPTED;

/// The state of a running turn.
pub(crate) struct Turn {
    pub(crate) started: Instant,
    pub(crate) script: Script,
    /// Summary of the message's content.
    pub(crate) kinds: String,
    pub(crate) usage: Usage,
    pub(crate) denials: Vec<Denial>,
    pub(crate) first_output_ms: Option<u64>,
    pub(crate) unsolicited: bool,
    /// Number of API messages.
    pub(crate) rounds: u64,
    /// The reached limit of `rounds`.
    pub(crate) exceeded_rounds: Option<u64>,
    pub(crate) stop_reason: Option<&'static str>,
    /// Streamed text that is not in an assistant line yet.
    pub(crate) partial_text: String,
    /// Tool calls without a result yet.
    pub(crate) open_calls: Vec<String>,
    /// The document with which the model has answered.
    pub(crate) document: Option<Value>,
    /// Results of the caller's tools.
    pub(crate) tool_texts: Vec<String>,
    /// The replay to write when the answer begins.
    pub(crate) late_replay: Option<(Value, String)>,
    /// Pids of processes that outlive this one.
    pub(crate) survivors: Vec<u32>,
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
            exceeded_rounds: None,
            stop_reason: None,
            partial_text: String::new(),
            open_calls: Vec::new(),
            document: None,
            tool_texts: Vec::new(),
            late_replay: None,
            survivors: Vec::new(),
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

/// A successful outcome.
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

/// The outcome of a local answer.
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
        let mut turn = self.begin(&text, &content);
        turn.kinds = kinds_of(&content);
        if self.apply_faults_before_turn(&turn).is_err() {
            // Interrupted before its first line; the turn still writes its lines.
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

    /// Runs the turn that the exit of a background task starts.
    pub(crate) fn unsolicited_turn(&mut self, task: &Task, code: i32) {
        let mut turn = self.begin("", &Value::Null);
        turn.unsolicited = true;
        self.set_state("running");
        self.notice_task_end(task, code);
        self.emit_init();
        turn.script.parts.push(Part::Say(format!("noticed: {} exited with {code}", task.description)));
        let outcome = self.answer_or_abort(&mut turn);
        self.end(&turn, &outcome);
    }

    /// A turn of this text; a turn of the CLI's own has none, and is no part of a scenario.
    fn begin(&mut self, text: &str, content: &Value) -> Turn {
        self.busy = true;
        self.stop = None;
        let mut turn = Turn::new();
        let parsed = match &self.args.scenario {
            Some(scenario) if !content.is_null() => scenario.script(&Received {
                text,
                content,
                session_id: &self.conversation.session_id,
                model: &self.model,
                system_prompt: self.system_prompt.as_deref(),
                resumed: self.args.resume.is_some(),
            }),
            _ => script::parse(text),
        };
        match parsed {
            Ok(script) => turn.script = script,
            Err(error) => {
                write_error(&error);
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
        self.pending_request = None;
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

    /// Writes the postponed replay, as claude does with partial messages.
    pub(crate) fn late_replay(&mut self, turn: &mut Turn) {
        if let Some((content, uuid)) = turn.late_replay.take() {
            self.emit_replay(&content, &uuid, true);
        }
    }

    /// Adds the tokens of a message to the usage.
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
