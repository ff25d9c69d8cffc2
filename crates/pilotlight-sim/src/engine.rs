//! The main thread: decides which turn runs next. [`Engine::pump`] receives all input, also while a turn waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::catalogue::{DEFAULT_MODEL, api_model};
use crate::clock;
use crate::command::Message;
use crate::conversation::{Conversation, OpenError, new_id};
use crate::faults::{self, Fault, Kind};
use crate::host_request::PendingRequest;
use crate::input::{self, Batch, Input};
use crate::output::{Output, write_error};
use crate::result::{Outcome, Usage};
use crate::scenario::Scenario;
use crate::signals::{self, IgnoreSignals};
use crate::tasks::Task;
use crate::turn::Turn;
use crate::workspace::Workspace;

/// Maximum wait for background tasks after the end of input, as in claude.
const BACKGROUND_GRACE: Duration = Duration::from_secs(5);

/// Reason to stop a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// An interrupt from the host, or SIGINT.
    Interrupted,
    /// A message with priority `now`.
    Replaced,
}

/// Cost and usage since the start of the process.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) cost: f64,
    pub(crate) api_ms: u64,
    pub(crate) by_model: Vec<(String, Usage)>,
}

/// The state of the simulated CLI.
pub(crate) struct Engine {
    pub(crate) args: Args,
    pub(crate) out: Output,
    pub(crate) conversation: Conversation,
    pub(crate) model: String,
    pub(crate) system_prompt: Option<String>,
    pub(crate) mode: String,
    pub(crate) key_source: &'static str,
    pub(crate) state: &'static str,
    pub(crate) state_events: bool,
    pub(crate) totals: Totals,
    pub(crate) last_failed: bool,
    pub(crate) initialized: bool,
    pub(crate) over_budget: bool,
    pub(crate) queue: VecDeque<Message>,
    pub(crate) busy: bool,
    /// The queued messages arrived while a turn ran.
    pub(crate) queued_while_busy: bool,
    pub(crate) stop: Option<Stop>,
    pub(crate) pending_request: Option<PendingRequest>,
    /// MCP servers in the host, as the handshake names them.
    pub(crate) host_servers: Vec<String>,
    /// Answers are documents.
    pub(crate) has_schema: bool,
    pub(crate) tool_ended: Option<u32>,
    pub(crate) running_tasks: Vec<Task>,
    /// Task, exit code, and number of messages that precede its turn.
    pub(crate) ended_tasks: VecDeque<(Task, i32, usize)>,
    pub(crate) inputs: SyncSender<Batch>,
    pub(crate) workspace: Workspace,
    pub(crate) ignore_signals: IgnoreSignals,
    pub(crate) reading_stopped: Arc<AtomicBool>,
    pub(crate) eof: bool,
    /// Ignore further input, but run the queued messages.
    pub(crate) ending: bool,
    ignore_eof: bool,
    pub(crate) received: Receiver<Batch>,
    pub(crate) inbox: VecDeque<Input>,
}

/// Runs the simulated CLI; returns its exit code.
pub(crate) fn run(mut args: Args) -> u8 {
    match faults::from_environment() {
        Ok(more) => args.faults.extend(more),
        Err(error) => {
            write_error(&error);
            return 1;
        }
    }
    let fault = |kind| args.faults.iter().find(move |fault: &&Fault| fault.kind == kind);
    if let Some(fault) = fault(Kind::ExitAtStart) {
        write_error("the simulated CLI exits at its start, as a fault asks");
        return u8::try_from(fault.number(1)).unwrap_or(1);
    }
    if let Some(fault) = fault(Kind::CrashStarts)
        && faults::start_must_fail(fault.argument.as_deref())
    {
        write_error("the simulated CLI fails at this start, as a fault asks");
        return 1;
    }
    match args.scenario.as_ref().map(Scenario::start) {
        None | Some(Ok(None)) => {}
        Some(Ok(Some(text)) | Err(text)) => {
            write_error(&text);
            return 1;
        }
    }
    let (sender, received) = input::channel();
    let deny_resume = fault(Kind::RefuseResume).is_some();
    let opened = Conversation::open(&args, deny_resume);
    let (conversation, refused) = match opened {
        Ok(conversation) => (conversation, None),
        Err(OpenError::InUse(text)) => {
            write_error(&text);
            return 1;
        }
        Err(OpenError::NotFound { text, session_id }) => {
            // An empty conversation with that id, only for the `result`.
            args.resume = None;
            args.session_id = None;
            let Ok(mut conversation) = Conversation::open(&args, false) else { return 1 };
            conversation.session_id = session_id;
            (conversation, Some(text))
        }
    };
    let mut engine = Engine::new(args, conversation, sender, received);
    if let Some(text) = refused {
        write_error(&text);
        engine.emit_refusal(&text);
        return 1;
    }
    engine.start();
    engine.main_loop()
}

impl Engine {
    fn new(
        args: Args,
        conversation: Conversation,
        inputs: SyncSender<Batch>,
        received: Receiver<Batch>,
    ) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let resumed = conversation.resumed_model.as_deref();
        let resumed = resumed.filter(|model| *model != api_model(DEFAULT_MODEL));
        let model = args.model.as_deref().or(resumed).unwrap_or(DEFAULT_MODEL).to_owned();
        let mode = match &args.mode {
            Some(mode) => mode.clone(),
            None if args.skip_permissions => "bypassPermissions".to_owned(),
            None => "default".to_owned(),
        };
        Self {
            system_prompt: args.system_prompt.clone(),
            args,
            out: Output::new(),
            conversation,
            model,
            mode,
            key_source: if set("ANTHROPIC_API_KEY") { "ANTHROPIC_API_KEY" } else { "none" },
            state: "idle",
            state_events: std::env::var_os("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS").is_some_and(|v| v == "1"),
            totals: Totals::default(),
            last_failed: false,
            initialized: false,
            over_budget: false,
            queue: VecDeque::new(),
            busy: false,
            queued_while_busy: false,
            stop: None,
            pending_request: None,
            host_servers: Vec::new(),
            has_schema: false,
            tool_ended: None,
            running_tasks: Vec::new(),
            ended_tasks: VecDeque::new(),
            inputs,
            workspace: Workspace::default(),
            ignore_signals: IgnoreSignals::default(),
            reading_stopped: Arc::default(),
            eof: false,
            ending: false,
            ignore_eof: false,
            received,
            inbox: VecDeque::new(),
        }
    }

    pub(crate) fn emit_refusal(&mut self, text: &str) {
        let turn = Turn::new();
        self.emit_result(
            &turn,
            &Outcome {
                subtype: "error_during_execution",
                is_error: true,
                text: Err(text.to_owned()),
                api_status: None,
                num_turns: 0,
                stop_reason: None,
                terminal: None,
            },
        );
    }

    fn start(&mut self) {
        self.workspace = Workspace::load(&mut self.args);
        signals::listen(self.inputs.clone(), self.conversation.writer.clone(), self.ignore_signals.clone());
        for fault in self.args.faults.clone() {
            match fault.kind {
                Kind::SlowStart => {
                    self.sleep_without_input(Duration::from_millis(fault.number(2_000)));
                }
                Kind::IgnoreEof => self.ignore_eof = true,
                Kind::IgnoreTerm => self.ignore_signals.set(),
                Kind::StderrFlood => faults::flood_stderr(fault.number(10_000_000)),
                Kind::Outlive | Kind::OutliveHolding => {
                    self.spawn_survivors(&fault);
                }
                Kind::NoRead => self.reading_stopped.store(true, Ordering::SeqCst),
                _ => {}
            }
        }
        input::start_reader(self.inputs.clone(), Arc::clone(&self.reading_stopped));
    }

    /// Waits without reading input; signals still work.
    fn sleep_without_input(&self, time: Duration) {
        let until = clock::now() + time;
        loop {
            let left = until.saturating_duration_since(clock::now());
            if left.is_zero() {
                return;
            }
            std::thread::park_timeout(left);
        }
    }

    fn main_loop(&mut self) -> u8 {
        let mut grace: Option<Instant> = None;
        loop {
            // In order of arrival: later messages wait for the turn of the task.
            let is_first = self.ended_tasks.front().is_some_and(|(_, _, before)| *before == 0);
            if !is_first && let Some(messages) = self.next_messages() {
                for (_, _, before) in &mut self.ended_tasks {
                    *before = before.saturating_sub(messages.len());
                }
                self.user_turn(&messages);
                continue;
            }
            if let Some((task, code, _)) = self.ended_tasks.pop_front() {
                self.unsolicited_turn(&task, code);
                continue;
            }
            self.set_state("idle");
            if self.ending {
                return self.leave();
            }
            if self.eof && !self.ignore_eof {
                let until = *grace.get_or_insert_with(|| clock::now() + BACKGROUND_GRACE);
                if self.running_tasks.is_empty() || clock::now() >= until {
                    return self.leave();
                }
                // Without a running turn, nothing can stop it.
                self.pump(Some(until), |engine| !engine.ended_tasks.is_empty()).ok();
                continue;
            }
            self.pump(None, |engine| {
                !engine.queue.is_empty()
                    || !engine.ended_tasks.is_empty()
                    || engine.ending
                    || (engine.eof && !engine.ignore_eof)
            })
            .ok();
        }
    }

    /// Messages of the next turn: all queued messages that can be joined.
    fn next_messages(&mut self) -> Option<Vec<Message>> {
        let mut messages: Vec<Message> = Vec::new();
        while let Some(message) = self.queue.pop_front() {
            let uuid = message.uuid.as_deref();
            let repeated = self.conversation.was_seen(uuid)
                || (uuid.is_some() && messages.iter().any(|other| other.uuid.as_deref() == uuid));
            if repeated && messages.is_empty() {
                let uuid = uuid.unwrap_or_default().to_owned();
                self.emit_replay(&message.content, &uuid, false);
                continue;
            }
            let alone = repeated || !message.query || message.text.starts_with('/');
            if alone && !messages.is_empty() {
                self.queue.push_front(message);
                break;
            }
            messages.push(message);
            // A message to an idle process is a turn of its own; only queued messages are joined.
            if alone || !self.queued_while_busy {
                break;
            }
        }
        (!messages.is_empty()).then_some(messages)
    }

    /// Finds a fault of the running turn or of the command line.
    pub(crate) fn fault(&self, turn: &Turn, kind: Kind) -> Option<Fault> {
        let faults = turn.script.faults.iter().chain(&self.args.faults);
        faults.into_iter().find(|fault| fault.kind == kind).cloned()
    }

    pub(crate) fn ignore_eof(&mut self) {
        self.ignore_eof = true;
    }

    fn leave(&self) -> u8 {
        self.workspace.leave();
        self.conversation.writer.flush();
        u8::from(self.last_failed)
    }

    /// Random id in the format of the API.
    pub(crate) fn api_id(prefix: &str) -> String {
        let id: String = new_id().chars().filter(|c| *c != '-').take(24).collect();
        format!("{prefix}_{id}")
    }
}
