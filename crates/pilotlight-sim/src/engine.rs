//! The main thread: takes inputs, decides what runs next, and waits in a way that always hears the host.
//!
//! Only this file waits. Whatever a turn waits for (a tool, a permission, time), it calls [`Engine::pump`], which
//! answers control requests meanwhile and tells when the turn must stop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::args::Args;
use super::asking::Asking;
use super::catalogue::{DEFAULT_MODEL, api_model};
use super::clock;
use super::conversation::{Conversation, Refused, new_id};
use super::events::{Outcome, Usage};
use super::faults::{self, Fault, Kind};
use super::input::{self, Batch, Command, Input, Message, Priority};
use super::output::{Output, complain};
use super::signals::{self, Deaf};
use super::tasks::Task;
use super::turn::Turn;
use super::workspace::Surroundings;

/// How long the end of input waits for background tasks, as the real one does.
const BACKGROUND_GRACE: Duration = Duration::from_secs(5);
/// Messages that may wait for the end of a turn. The real one has no limit; this one ends loudly instead of growing.
const MAX_WAITING: usize = 4096;

/// Why a turn must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The host, or SIGINT, interrupts it.
    Interrupted,
    /// A message of priority `now` wants to be next.
    Replaced,
}

/// What this process has spent since its start.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) cost: f64,
    pub(crate) api_ms: u64,
    pub(crate) by_model: Vec<(String, Usage)>,
}

/// See the module.
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
    /// The waiting messages came while a turn ran.
    had_to_wait: bool,
    pub(crate) stop: Option<Stop>,
    pub(crate) asking: Option<Asking>,
    pub(crate) tool_ended: Option<u32>,
    pub(crate) running_tasks: Vec<Task>,
    /// With the exit code, and how many messages wait before it.
    pub(crate) ended_tasks: VecDeque<(Task, i32, usize)>,
    pub(crate) inputs: SyncSender<Batch>,
    pub(crate) ballast: Vec<Vec<u8>>,
    pub(crate) surroundings: Surroundings,
    pub(crate) deaf: Deaf,
    pub(crate) reading_stopped: Arc<AtomicBool>,
    pub(crate) eof: bool,
    /// No further input counts; what waits still runs.
    pub(crate) ending: bool,
    ignore_eof: bool,
    never_ready: bool,
    received: Receiver<Batch>,
    inbox: VecDeque<Input>,
}

/// Runs until the end of the process and returns its exit code.
pub(crate) fn run(mut args: Args) -> u8 {
    match faults::from_environment() {
        Ok(more) => args.faults.extend(more),
        Err(error) => {
            complain(&error);
            return 1;
        }
    }
    let fault = |kind| args.faults.iter().find(move |fault: &&Fault| fault.kind == kind);
    if let Some(fault) = fault(Kind::ExitAtStart) {
        complain("the simulated CLI was told to exit at its start");
        return u8::try_from(fault.number(1)).unwrap_or(1);
    }
    if let Some(fault) = fault(Kind::CrashStarts)
        && faults::start_must_fail(fault.argument.as_deref())
    {
        complain("the simulated CLI was told to fail at this start");
        return 1;
    }
    let (sender, received) = input::channel();
    let deny_resume = fault(Kind::RefuseResume).is_some();
    let opened = Conversation::open(&args, deny_resume);
    let (conversation, refused) = match opened {
        Ok(conversation) => (conversation, None),
        Err(Refused::InUse(text)) => {
            complain(&text);
            return 1;
        }
        Err(Refused::NotFound { text, session_id }) => {
            // An empty conversation under that id, only to say so.
            args.resume = None;
            args.continue_newest = false;
            args.fork = false;
            args.session_id = None;
            args.persist = false;
            let Ok(mut conversation) = Conversation::open(&args, false) else { return 1 };
            conversation.session_id = session_id;
            (conversation, Some(text))
        }
    };
    let mut engine = Engine::new(args, conversation, sender, received);
    if let Some(text) = refused {
        complain(&text);
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
            had_to_wait: false,
            stop: None,
            asking: None,
            tool_ended: None,
            running_tasks: Vec::new(),
            ended_tasks: VecDeque::new(),
            inputs,
            ballast: Vec::new(),
            surroundings: Surroundings::default(),
            deaf: Deaf::default(),
            reading_stopped: Arc::default(),
            eof: false,
            ending: false,
            ignore_eof: false,
            never_ready: false,
            received,
            inbox: VecDeque::new(),
        }
    }

    fn emit_refusal(&mut self, text: &str) {
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
        self.surroundings = Surroundings::enter(&mut self.args);
        signals::listen(self.inputs.clone(), self.conversation.writer.clone(), self.deaf.clone());
        for fault in self.args.faults.clone() {
            match fault.kind {
                Kind::SlowStart => {
                    self.never_hear(Duration::from_millis(fault.number(2_000)));
                }
                Kind::NeverReady => self.never_ready = true,
                Kind::IgnoreEof => self.ignore_eof = true,
                Kind::IgnoreTerm => self.deaf.set(),
                Kind::Memory => self.ballast.extend(faults::ballast(fault.number(256))),
                Kind::StderrFlood => faults::flood_stderr(fault.number(10_000_000)),
                Kind::Outlive | Kind::OutliveHolding => {
                    self.leave_behind(&fault);
                }
                Kind::NoRead => self.reading_stopped.store(true, Ordering::SeqCst),
                _ => {}
            }
        }
        input::start_reader(self.inputs.clone(), Arc::clone(&self.reading_stopped));
    }

    /// Time passes and nothing is heard; only signals are.
    fn never_hear(&self, time: Duration) {
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
            // In the order in which they came: a message that is there later waits for the turn of the task.
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
                // Nothing can stop a turn that does not run.
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

    /// The messages of the next turn: all that wait and can be joined.
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
            // What arrived while nothing ran is a turn of its own; only what had to wait is joined.
            if alone || !self.had_to_wait {
                break;
            }
        }
        (!messages.is_empty()).then_some(messages)
    }

    /// Handles inputs until `wake` or the deadline; without a deadline until `wake`. Errs if the running turn must stop.
    pub(crate) fn pump(
        &mut self,
        deadline: Option<Instant>,
        wake: impl Fn(&Self) -> bool,
    ) -> Result<(), Stop> {
        loop {
            while !(self.inbox.is_empty() || !self.busy && wake(self)) {
                if let Some(input) = self.inbox.pop_front() {
                    self.handle(input);
                }
            }
            if let Some(stop) = self.stop.filter(|_| self.busy) {
                return Err(stop);
            }
            if wake(self) {
                return Ok(());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(clock::now()));
            let received = match left {
                None => self.received.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(Duration::ZERO) => match self.received.try_recv() {
                    Ok(batch) => Ok(batch),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Ok(()),
                },
                Some(left) => self.received.recv_timeout(left),
            };
            match received {
                Ok(batch) => self.inbox.extend(batch),
                Err(RecvTimeoutError::Timeout) => {}
                // Cannot be: this engine holds a sender.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Waits for a time, hearing everything.
    pub(crate) fn wait(&mut self, time: Duration) -> Result<(), Stop> {
        self.pump(Some(clock::now() + time), |_| false)
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Line(line) if !self.ending && !self.never_ready => self.line(&line),
            Input::Line(_) => {}
            Input::Eof => self.eof = true,
            Input::Interrupt => {
                self.ending = true;
                self.interrupt();
            }
            Input::ToolEnded(pid) => self.tool_ended = Some(pid),
            Input::TaskEnded(id, code) => {
                if let Some(at) = self.running_tasks.iter().position(|task| task.id == id) {
                    let task = self.running_tasks.remove(at);
                    self.announce_task_end(&task, code);
                    self.ended_tasks.push_back((task, code, self.queue.len()));
                }
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        match input::judge(line) {
            Command::Ignore => {}
            Command::User(message) => self.message(*message),
            Command::Control { request_id, request } => self.control(request_id.as_deref(), &request),
            Command::Answer { request_id, response } => self.answer(&request_id, response),
            Command::Fatal(text) => {
                complain(&text);
                self.quit(1);
            }
            Command::FatalResult(text) => {
                self.emit_refusal(&text);
                self.quit(1);
            }
        }
    }

    fn message(&mut self, message: Message) {
        if self.queue.len() >= MAX_WAITING {
            complain("Error: too many messages wait for the end of the turn");
            self.quit(1);
        }
        if !self.busy && self.queue.is_empty() {
            self.had_to_wait = false;
        }
        if self.busy {
            self.had_to_wait = true;
        }
        if message.priority == Priority::Now {
            if self.busy && self.stop.is_none() {
                self.stop = Some(Stop::Replaced);
            }
            self.queue.push_front(message);
        } else {
            self.queue.push_back(message);
        }
    }

    /// Stops the running turn, if one runs. What waits to be asked is withdrawn first.
    pub(crate) fn interrupt(&mut self) {
        if !self.busy {
            return;
        }
        self.stop = Some(Stop::Interrupted);
        if let Some(asking) = self.asking.take() {
            self.out.line(|o| {
                o.str("type", "control_cancel_request").str("request_id", &asking.request_id);
            });
        }
    }

    fn answer(&mut self, request_id: &str, response: Value) {
        if let Some(asking) = self.asking.as_mut().filter(|asking| asking.request_id == request_id) {
            asking.answer.get_or_insert(response);
        }
    }

    /// The faults of the running turn and those of the command line.
    pub(crate) fn fault(&self, turn: &Turn, kind: Kind) -> Option<Fault> {
        let faults = turn.script.faults.iter().chain(&self.args.faults);
        faults.into_iter().find(|fault| fault.kind == kind).cloned()
    }

    pub(crate) fn ignore_eof(&mut self) {
        self.ignore_eof = true;
    }

    fn leave(&self) -> u8 {
        self.surroundings.leave();
        self.conversation.writer.flush();
        u8::from(self.last_failed)
    }

    /// Ends the process in the midst of whatever it does.
    fn quit(&self, code: u8) -> ! {
        self.conversation.writer.flush();
        std::process::exit(i32::from(code))
    }

    /// An id of the kind that the API gives.
    pub(crate) fn api_id(prefix: &str) -> String {
        let id: String = new_id().chars().filter(|c| *c != '-').take(24).collect();
        format!("{prefix}_{id}")
    }
}
