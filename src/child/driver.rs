//! The driver of one child: a task that owns its pipes from the handshake to the last byte.
//!
//! It is the only one that reads the child's output or writes to its input. Each round waits for whatever comes first
//! (output, room in the reader's channel, an order, the exit, a deadline) and deals with it; the child is stopped by
//! the same loop in later [`Phase`]s, so that output is read and deadlines are kept to the very end. It knows turns and
//! lines; it knows no actors, and of the CLI only what the [`Adapter`] says.
//!
//! Every wait is bounded: the handshake by `spawn_timeout`, a turn by `turn_timeout`, silence by the [`Watch`], a write
//! by `write_timeout`, each step of the stop by its own limit.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{ReadHalf, pipe};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, Sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::framing::{Framed, Framer};
use super::permissions::{Answer, Permissions};
use super::running::{Running, TurnJob, TurnReport};
use super::spawn::{Contained, Ended, ShimHandle};
use super::stderr::Tail;
use super::tasks::Tasks;
use super::vitals;
use super::watch::{Advice, Finding};
use crate::cli::{Adapter, Bound, HostRequest, LineKind, Refusal, TaskNews, Terminal};
use crate::config::{Config, PermissionPolicy};
use crate::error::{Loss, TurnError};
use crate::ids::TurnId;
use crate::metrics::{HangDetector, Metrics, ProtocolError, StopStep, Stream};
use crate::session::PendingPermission;
use crate::shim::report::Exit;

/// A child that closed its output without leaving gets so long to leave.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// After the exit the rest of the output is read for at most so long: whoever else held the pipe is being killed.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// A tree that survives SIGKILL for so long waits for its hardware; nobody can help it.
pub(crate) const UNKILLABLE: Duration = Duration::from_secs(30);

/// A shim that was told to kill tells of the end at once. One that does not is itself in trouble (stopped, say) and is
/// dealt with by its handle.
const KILL_TOLD: Duration = Duration::from_secs(1);

/// So often a turn is interrupted, `stop_interrupt` apart, before its child is stopped.
const MOST_INTERRUPTS: u32 = 5;

/// Lines that may wait to be written: a turn, pings, answers. A child that asks its host for so much and reads so
/// little breaks the protocol.
const MOST_UNWRITTEN: usize = 256;

/// What a driver needs beside the child.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) adapter: &'static dyn Adapter,
    pub(crate) config: Arc<Config>,
    pub(crate) metrics: Arc<Metrics>,
}

/// What the driver is told. Each channel is bounded by what can be outstanding: one turn, and a few requests.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) turns: mpsc::Receiver<Box<TurnJob>>,
    pub(crate) requests: mpsc::Receiver<Request>,
    /// Stop in order.
    pub(crate) stop: CancellationToken,
}

/// Something a running turn is to be told.
#[derive(Debug)]
pub(crate) enum Request {
    /// End the turn, if it is still this one; its reader hears the end.
    Interrupt(TurnId),
    /// End the turn; its reader is gone.
    Cancel(TurnId),
    /// A tool may run, or not.
    Answer(Answer),
}

/// What the driver tells while the child lives.
#[derive(Debug)]
pub(crate) enum Report {
    /// Turns can be taken.
    Ready,
    /// A turn is over.
    TurnEnded(TurnReport),
    /// The child works of its own accord, or no longer.
    Active(bool),
    /// The tools that wait for permission have changed.
    Permissions(Vec<PendingPermission>),
}

/// What the driver tells at the end.
#[derive(Debug)]
pub(crate) struct Departed {
    /// It had become ready.
    pub(crate) ready: bool,
    /// It was told to go.
    pub(crate) asked: bool,
    /// How the CLI ended; `None`: it could not be killed.
    pub(crate) exit: Option<Exit>,
    /// What became of its tree.
    pub(crate) ended: Option<Ended>,
    /// We killed its tree.
    pub(crate) forced: bool,
    /// When it was told to go.
    pub(crate) stop_began: Option<Instant>,
    /// Why we killed it, if it was not told to go.
    pub(crate) verdict: Option<Verdict>,
    /// Why it refused to begin.
    pub(crate) refusal: Option<Refusal>,
    /// The end of its standard error.
    pub(crate) stderr: String,
    /// The turn that was not answered.
    pub(crate) unfinished: Option<Running>,
}

/// Why a child had to be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was not ready in time.
    NeverReady,
    /// It no longer answered.
    Hung,
    /// It broke the protocol.
    Protocol(&'static str),
}

/// How far the child's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The handshake is out.
    Opening { until: Instant },
    /// Turns are taken.
    Serving,
    /// It closed its output unasked. Normally its exit follows at once.
    Closed { until: Instant },
    /// It is to go; the running turn was interrupted.
    Interrupted { until: Instant },
    /// Its input was closed.
    InputClosed { until: Instant },
    /// It got SIGTERM.
    Terminated { until: Instant },
    /// Its tree is being killed.
    Killed { until: Instant },
}

/// One child, driven.
pub(crate) struct Driver {
    setup: Setup,
    io: tokio::net::UnixStream,
    stderr: Option<pipe::Receiver>,
    shim: ShimHandle,
    framer: Framer,
    tail: Tail,
    outbox: VecDeque<Bytes>,
    write_deadline: Option<Instant>,
    phase: Phase,
    /// Somebody wanted it to go.
    asked: bool,
    stop_began: Option<Instant>,
    verdict: Option<Verdict>,
    ready: bool,
    /// The child's output has ended.
    silent: bool,
    running: Option<Running>,
    /// Waits until the child has finished what it does of its own accord.
    held: Option<Box<TurnJob>>,
    active: bool,
    tasks: Tasks,
    /// Whether the session was told that the child is not idle between turns.
    told_active: bool,
    permissions: Permissions,
    model: Option<String>,
    cumulative_cost: f64,
    handshake_terminal: Option<Terminal>,
    requests_sent: u64,
    timer: Pin<Box<Sleep>>,
}

enum Wake {
    Turn(Option<Box<TurnJob>>),
    Request(Option<Request>),
    Stop,
    Output(io::Result<usize>),
    Written(io::Result<usize>),
    Stderr { open: bool },
    Room,
    Exited(Exit),
    Timer,
}

/// What a line asks the driver to do, after the adapter has looked at it.
enum Step {
    Hand { substantial: bool, checkpoint: Option<String> },
    Terminal(Option<Box<Terminal>>),
    Answered(Option<String>),
    HostRequest(Option<HostRequest>),
    Withdrawn(Option<String>),
    Task(Option<TaskNews>),
    Working,
    Waiting,
    Malformed,
    TooLong,
}

impl Driver {
    /// Takes over a started child. `model` is what it was started with.
    pub(crate) fn new(setup: Setup, child: Contained, model: Option<String>, started: Instant) -> Self {
        let session = &setup.config.session;
        let until = started + session.spawn_timeout;
        Self {
            io: child.io,
            stderr: Some(child.stderr),
            shim: child.shim,
            framer: Framer::new(session.line_limit),
            tail: Tail::new(session.stderr_tail),
            outbox: VecDeque::new(),
            write_deadline: None,
            phase: Phase::Opening { until },
            asked: false,
            stop_began: None,
            verdict: None,
            ready: false,
            silent: false,
            running: None,
            held: None,
            active: false,
            tasks: Tasks::new(session.turn_timeout),
            told_active: false,
            permissions: Permissions::new(session.permission_timeout),
            model,
            cumulative_cost: 0.0,
            handshake_terminal: None,
            requests_sent: 0,
            timer: Box::pin(sleep_until(until)),
            setup,
        }
    }

    /// Drives the child until nothing of it is left. Dropping the future kills the tree.
    pub(crate) async fn run(
        mut self,
        bound: &Bound,
        inbox: &mut Inbox,
        report: &(dyn Fn(Report) + Send + Sync),
    ) -> Departed {
        let handshake = self.setup.adapter.handshake(HANDSHAKE, bound);
        self.write(handshake.into());
        let mut stop = Box::pin(inbox.stop.clone().cancelled_owned());
        loop {
            match self.wait(inbox, stop.as_mut()).await {
                Wake::Output(Ok(length)) if length > 0 => {
                    self.setup.metrics.stream_bytes(Stream::Stdout, length as u64);
                    self.process(report);
                }
                Wake::Output(_) => self.output_ended(),
                Wake::Room => self.process(report),
                Wake::Written(Ok(length)) => self.written(length),
                // The exit, or the end of its output, tells more.
                Wake::Written(Err(_)) => {
                    self.outbox.clear();
                    self.write_deadline = None;
                }
                Wake::Turn(Some(job)) => self.take_turn(job),
                Wake::Request(Some(request)) => self.take_request(request, report),
                // Nobody is left to give orders.
                Wake::Stop | Wake::Turn(None) | Wake::Request(None) => self.stop(),
                Wake::Stderr { open } => self.stderr_read(open),
                Wake::Timer => self.on_time(report),
                Wake::Exited(exit) => return self.depart(Some(exit), report).await,
            }
            if matches!(self.phase, Phase::Killed { until } if until <= Instant::now()) {
                return self.depart(None, report).await;
            }
        }
    }

    async fn wait(&mut self, inbox: &mut Inbox, mut stop: Pin<&mut impl Future<Output = ()>>) -> Wake {
        self.arm();
        let takes_orders = !self.asked;
        let has_turn = self.running.is_some();
        let waits_for_room = self.framer.kept() > 0;
        let writes = !self.outbox.is_empty();
        let Self { io, framer, outbox, stderr, tail, shim, running, timer, silent, .. } = self;
        let (mut reader, mut writer) = io.split();
        let sender = running.as_ref().and_then(|running| running.job.sender.as_ref());
        let room = framer.kept();
        tokio::select! {
            output = read(&mut reader, framer, has_turn), if !*silent && !waits_for_room => Wake::Output(output),
            slot = async { match sender { Some(sender) => sender.reserve(room).await, None => None } }, if waits_for_room => {
                if let Some(slot) = slot { slot.put(framer.take()) } else { drop(framer.take()) }
                Wake::Room
            }
            written = async { match outbox.front_mut() { Some(front) => writer.write_buf(front).await, None => Ok(0) } }, if writes => Wake::Written(written),
            turn = inbox.turns.recv(), if takes_orders => Wake::Turn(turn),
            request = inbox.requests.recv(), if takes_orders => Wake::Request(request),
            () = stop.as_mut(), if takes_orders => Wake::Stop,
            open = read_stderr(tail, stderr.as_mut()), if stderr.is_some() => Wake::Stderr { open },
            exit = shim.exited() => Wake::Exited(exit),
            () = timer.as_mut() => Wake::Timer,
        }
    }

    // ---- Output ----

    /// Deals with every whole line that has come, until the reader's channel is full.
    fn process(&mut self, report: &(dyn Fn(Report) + Send + Sync)) {
        if let Some(running) = &mut self.running {
            running.watch.sign_of_life(Instant::now());
        }
        while let Some(step) = self.next_step() {
            self.take_step(step, report);
        }
        self.hand_over();
        if self.running.is_none() && self.framer.kept() == 0 {
            self.framer.release();
        }
    }

    fn next_step(&mut self) -> Option<Step> {
        let adapter = self.setup.adapter;
        let line = match self.framer.next_line()? {
            Framed::Line(line) => line,
            Framed::TooLong { .. } => return Some(Step::TooLong),
        };
        Some(match adapter.classify(line) {
            LineKind::Event { substantial, checkpoint } => Step::Hand {
                substantial,
                checkpoint: if checkpoint { adapter.checkpoint(line) } else { None },
            },
            LineKind::Terminal => Step::Terminal(adapter.terminal(line).map(Box::new)),
            LineKind::ControlAnswer => {
                Step::Answered(adapter.control_answer(line).map(|answer| answer.request_id))
            }
            LineKind::HostRequest => Step::HostRequest(adapter.host_request(line)),
            LineKind::Withdrawn => Step::Withdrawn(adapter.withdrawn(line)),
            LineKind::Task => Step::Task(adapter.task(line)),
            LineKind::Working => Step::Working,
            LineKind::Waiting => Step::Waiting,
            LineKind::Malformed => Step::Malformed,
        })
    }

    fn take_step(&mut self, step: Step, report: &(dyn Fn(Report) + Send + Sync)) {
        match step {
            Step::Hand { substantial, checkpoint } => {
                if let Some(running) = &mut self.running {
                    running.saw(substantial, checkpoint, &self.setup.metrics);
                }
                self.keep();
            }
            Step::Terminal(Some(terminal)) => self.terminal(*terminal, report),
            Step::Answered(Some(id)) => self.answered(&id, report),
            Step::HostRequest(Some(request)) => self.host_request(request, report),
            Step::Withdrawn(Some(id)) => {
                self.keep();
                if self.permissions.withdraw(&id) {
                    report(Report::Permissions(self.permissions.pending()));
                }
            }
            Step::Task(news) => {
                if let Some(running) = &mut self.running {
                    running.saw(true, None, &self.setup.metrics);
                }
                self.keep();
                if let Some(news) = news.filter(|_| self.setup.config.cli.background_tasks) {
                    self.tasks.heard(news, Instant::now());
                    self.tell_active(report);
                }
            }
            Step::Working => match &mut self.running {
                Some(running) => running.working = true,
                None => {
                    self.active = true;
                    self.tell_active(report);
                }
            },
            Step::Waiting => self.waiting(report),
            Step::TooLong => {
                self.setup.metrics.protocol_error(ProtocolError::LineTooLong);
                let limit = self.setup.config.session.line_limit;
                self.cancel(TurnError::LineTooLong { limit });
            }
            Step::Terminal(None)
            | Step::Answered(None)
            | Step::HostRequest(None)
            | Step::Withdrawn(None)
            | Step::Malformed => {
                self.setup.metrics.protocol_error(ProtocolError::BadJson);
            }
        }
    }

    /// The current line goes to the turn's reader. Without a turn it goes to nobody: never to the next one.
    fn keep(&mut self) {
        if self.running.as_ref().is_some_and(|running| running.job.sender.is_some()) {
            self.framer.keep();
        }
    }

    /// Hands what was kept to the reader, if there is room; else the loop waits for room and reads nothing more.
    fn hand_over(&mut self) {
        let kept = self.framer.kept();
        if kept == 0 {
            return;
        }
        match self.running.as_ref().and_then(|running| running.job.sender.as_ref()) {
            Some(sender) => {
                if let Some(slot) = sender.try_reserve(kept) {
                    slot.put(self.framer.take());
                }
            }
            None => drop(self.framer.take()),
        }
    }

    fn terminal(&mut self, terminal: Terminal, report: &(dyn Fn(Report) + Send + Sync)) {
        if !self.ready {
            self.handshake_terminal = Some(terminal);
            return;
        }
        if terminal.unsolicited {
            // What the CLI did of its own accord answers nobody; its cost is the next turn's.
            return;
        }
        let Some(running) = self.running.take() else { return };
        if running.job.sender.is_some() {
            self.framer.keep();
        }
        // A turn that could not even begin says 0.
        let cumulative = terminal.cumulative_cost_usd.max(self.cumulative_cost);
        let cost = cumulative - self.cumulative_cost;
        self.cumulative_cost = cumulative;
        let tail = self.framer.take();
        let ended = running.finish(tail, terminal, cost);
        self.turn_over(ended, report);
    }

    fn turn_over(&mut self, ended: TurnReport, report: &(dyn Fn(Report) + Send + Sync)) {
        if self.permissions.clear() {
            report(Report::Permissions(Vec::new()));
        }
        report(Report::TurnEnded(ended));
        if matches!(self.phase, Phase::Interrupted { .. }) {
            self.close_input();
        }
    }

    /// The CLI waits for input. If it had begun our turn and not ended it, the turn has no end of its own.
    fn waiting(&mut self, report: &(dyn Fn(Report) + Send + Sync)) {
        self.active = false;
        self.tell_active(report);
        if self.running.as_ref().is_some_and(|running| running.working)
            && let Some(running) = self.running.take()
        {
            self.setup.metrics.protocol_error(ProtocolError::UnknownId);
            let tail = self.framer.take();
            let loss =
                Loss { cause: "the CLI ended the turn without a result".to_owned(), stderr: String::new() };
            let ended = running.lose(tail, TurnError::SessionLost(loss));
            self.turn_over(ended, report);
        }
        if let Some(job) = self.held.take() {
            self.begin(*job);
        }
    }

    /// Tells the session whether the child does something of its own accord, or has tasks in the background.
    fn tell_active(&mut self, report: &(dyn Fn(Report) + Send + Sync)) {
        let active = self.active || self.tasks.are_running();
        if std::mem::replace(&mut self.told_active, active) != active {
            report(Report::Active(active));
        }
    }

    fn answered(&mut self, id: &str, report: &(dyn Fn(Report) + Send + Sync)) {
        if id == HANDSHAKE && matches!(self.phase, Phase::Opening { .. }) {
            self.ready = true;
            self.phase = Phase::Serving;
            report(Report::Ready);
        } else if id.starts_with(PING)
            && let Some(sent) = self.running.as_mut().and_then(|running| running.pinged.take())
        {
            self.setup.metrics.ping(sent.elapsed());
        }
    }

    fn host_request(&mut self, request: HostRequest, report: &(dyn Fn(Report) + Send + Sync)) {
        let adapter = self.setup.adapter;
        match request {
            HostRequest::Unsupported { request_id, what } => {
                let answer = adapter.unsupported_answer(&request_id, &what);
                self.write(answer.into());
            }
            HostRequest::Permission(request) => match self.setup.config.permissions.policy {
                PermissionPolicy::Ask
                    if self.permissions.have_room()
                        && self.running.as_ref().is_some_and(|running| running.job.sender.is_some()) =>
                {
                    self.keep();
                    self.permissions.ask(request, Instant::now());
                    report(Report::Permissions(self.permissions.pending()));
                }
                policy => {
                    let decision = Permissions::standing(policy);
                    let answer = adapter.permission_answer(&request, &decision);
                    self.write(answer.into());
                }
            },
        }
    }

    fn output_ended(&mut self) {
        self.silent = true;
        if self.framer.finish().is_some() {
            self.setup.metrics.protocol_error(ProtocolError::PartialEof);
        }
        if matches!(self.phase, Phase::Opening { .. } | Phase::Serving | Phase::Interrupted { .. }) {
            self.phase = Phase::Closed { until: Instant::now() + CLOSE_GRACE };
        }
    }

    fn stderr_read(&mut self, open: bool) {
        if !open {
            self.stderr = None;
        }
        self.setup.metrics.stream_bytes(Stream::Stderr, self.tail.take_new());
    }

    fn drain_stderr(&mut self) {
        let open = self.stderr.as_ref().is_some_and(|pipe| self.tail.drain(pipe));
        self.stderr_read(open);
    }

    // ---- Input ----

    fn write(&mut self, line: Bytes) {
        if self.outbox.is_empty() {
            self.write_deadline = Some(Instant::now() + self.setup.config.session.write_timeout);
        }
        if self.outbox.len() >= MOST_UNWRITTEN {
            return self.condemn(Verdict::Protocol("it asked much and read nothing"));
        }
        self.outbox.push_back(line);
    }

    fn written(&mut self, length: usize) {
        self.setup.metrics.stream_bytes(Stream::Stdin, length as u64);
        while self.outbox.front().is_some_and(|front| !front.has_remaining()) {
            self.outbox.pop_front();
        }
        self.write_deadline =
            (!self.outbox.is_empty()).then(|| Instant::now() + self.setup.config.session.write_timeout);
    }

    fn request_id(&mut self, what: &str) -> String {
        self.requests_sent += 1;
        format!("{what}{}", self.requests_sent)
    }

    fn take_turn(&mut self, job: Box<TurnJob>) {
        if self.active {
            // A message sent into a running turn would get no answer of its own.
            self.held = Some(job);
        } else {
            self.begin(*job);
        }
    }

    fn begin(&mut self, mut job: TurnJob) {
        if let Some(model) = job.model.take().filter(|model| self.model.as_ref() != Some(model)) {
            let id = self.request_id("model-");
            let line = self.setup.adapter.set_model(&id, &model);
            self.write(line.into());
            self.model = Some(model);
        }
        self.write(job.line.clone());
        self.running = Some(Running::new(job, Instant::now(), &self.setup.config.session));
    }

    fn take_request(&mut self, request: Request, report: &(dyn Fn(Report) + Send + Sync)) {
        match request {
            Request::Interrupt(turn) | Request::Cancel(turn) if self.holds(turn) => {
                self.end_held(TurnError::Cancelled, report);
            }
            Request::Interrupt(turn) if self.runs(turn) => self.interrupt(),
            Request::Cancel(turn) if self.runs(turn) => self.cancel(TurnError::Cancelled),
            // It has ended meanwhile.
            Request::Interrupt(_) | Request::Cancel(_) => {}
            Request::Answer(answer) => {
                if let Some((request, decision)) = self.permissions.answer(answer) {
                    let line = self.setup.adapter.permission_answer(&request, &decision);
                    self.write(line.into());
                    report(Report::Permissions(self.permissions.pending()));
                }
            }
        }
    }

    fn runs(&self, turn: TurnId) -> bool {
        self.running.as_ref().is_some_and(|running| running.job.turn == turn)
    }

    fn holds(&self, turn: TurnId) -> bool {
        self.held.as_ref().is_some_and(|job| job.turn == turn)
    }

    /// Ends the turn that waits for the child to finish something of its own.
    fn end_held(&mut self, error: TurnError, report: &(dyn Fn(Report) + Send + Sync)) {
        if let Some(job) = self.held.take() {
            let held = Running::new(*job, Instant::now(), &self.setup.config.session);
            report(Report::TurnEnded(held.lose(Bytes::new(), error)));
        }
    }

    /// Asks the CLI to end the running turn, once.
    fn interrupt(&mut self) {
        let id = self.request_id("interrupt-");
        let line = self.setup.adapter.interrupt(&id);
        let limit = self.setup.config.session.stop_interrupt;
        let Some(running) = &mut self.running else { return };
        if running.interrupted_until.is_none() {
            running.interrupted_until = Some(Instant::now() + limit);
            self.write(line.into());
        }
    }

    /// Ends the turn for its reader now; the child has to finish or be interrupted before it gets another one.
    fn cancel(&mut self, error: TurnError) {
        let Some(running) = &mut self.running else { return };
        running.abandon(error);
        drop(self.framer.take());
        self.interrupt();
    }

    // ---- Stopping ----

    fn stop(&mut self) {
        if std::mem::replace(&mut self.asked, true) {
            return;
        }
        self.stop_began = Some(Instant::now());
        if let Some(job) = self.held.take() {
            job.abort(TurnError::Cancelled);
        }
        match self.phase {
            Phase::Serving if self.running.is_some() => {
                self.setup.metrics.stop_step(StopStep::Interrupt);
                self.phase =
                    Phase::Interrupted { until: Instant::now() + self.setup.config.session.stop_interrupt };
                self.interrupt();
            }
            Phase::Opening { .. } | Phase::Serving => self.close_input(),
            _ => {}
        }
    }

    fn close_input(&mut self) {
        self.setup.metrics.stop_step(StopStep::StdinClose);
        self.outbox.clear();
        self.write_deadline = None;
        self.phase = Phase::InputClosed { until: Instant::now() + self.setup.config.session.stop_eof };
        if rustix::net::shutdown(&self.io, rustix::net::Shutdown::Write).is_err() {
            self.terminate();
        }
    }

    fn terminate(&mut self) {
        self.setup.metrics.stop_step(StopStep::Term);
        self.shim.terminate();
        self.phase = Phase::Terminated { until: Instant::now() + self.setup.config.session.stop_term };
    }

    fn kill(&mut self) {
        self.setup.metrics.stop_step(StopStep::TreeKill);
        self.shim.kill_tree();
        self.phase = Phase::Killed { until: Instant::now() + KILL_TOLD };
    }

    fn condemn(&mut self, verdict: Verdict) {
        self.verdict.get_or_insert(verdict);
        self.kill();
    }

    // ---- Time ----

    fn on_time(&mut self, report: &(dyn Fn(Report) + Send + Sync)) {
        let now = Instant::now();
        match self.phase {
            Phase::Opening { until } if until <= now => return self.condemn(Verdict::NeverReady),
            Phase::Closed { until } if until <= now => {
                // One that lives on without an output is of no use.
                return self.condemn(Verdict::Protocol("it closed its output"));
            }
            Phase::Interrupted { until } if until <= now => self.close_input(),
            Phase::InputClosed { until } if until <= now => self.terminate(),
            Phase::Terminated { until } if until <= now => self.kill(),
            _ => {}
        }
        if self.write_deadline.is_some_and(|deadline| deadline <= now) && !self.is_ending() {
            self.setup.metrics.hang(HangDetector::StdinStall);
            return self.condemn(Verdict::Hung);
        }
        self.tasks.expire(now);
        self.tell_active(report);
        let adapter = self.setup.adapter;
        let overdue = self.permissions.overdue(now);
        if !overdue.is_empty() {
            for (request, decision) in overdue {
                self.write(adapter.permission_answer(&request, &decision).into());
            }
            report(Report::Permissions(self.permissions.pending()));
        }
        if self.held.as_ref().is_some_and(|job| job.accepted + self.setup.config.session.turn_timeout <= now)
        {
            let limit = self.setup.config.session.turn_timeout;
            self.end_held(TurnError::TimedOut { limit }, report);
        }
        self.watch_turn(now);
    }

    fn watch_turn(&mut self, now: Instant) {
        let pid = self.shim.pid();
        let waits_for_room = self.framer.kept() > 0;
        let Some(running) = &mut self.running else { return };
        if running.deadline <= now && running.job.sender.is_some() {
            let limit = self.setup.config.session.turn_timeout;
            return self.cancel(TurnError::TimedOut { limit });
        }
        if matches!(self.phase, Phase::Killed { .. }) {
            return;
        }
        if running.interrupted_until.is_some_and(|until| until <= now) && self.phase == Phase::Serving {
            return self.interrupt_again(now, waits_for_room);
        }
        if waits_for_room {
            // The silence is ours.
            return running.watch.sign_of_life(now);
        }
        let before = running.vitals;
        let vitals = if running.watch.deadline() <= now { pid.and_then(vitals::read) } else { None };
        match running.watch.advice(now, before, vitals) {
            Advice::Wait => {}
            Advice::Ping => {
                running.vitals = vitals;
                running.pinged = Some(now);
                let id = self.request_id(PING);
                let line = self.setup.adapter.ping(&id);
                self.write(line.into());
            }
            Advice::Condemn(finding) => {
                self.setup.metrics.hang(match finding {
                    Finding::Stopped => HangDetector::Stopped,
                    Finding::Ping => HangDetector::Ping,
                    Finding::NoProgress => HangDetector::NoProgress,
                });
                self.condemn(Verdict::Hung);
            }
        }
    }

    /// The turn did not end within the time that an interrupt normally takes. On a starved machine it may need longer:
    /// the child is asked again, and only one that still does not obey is of no use.
    fn interrupt_again(&mut self, now: Instant, waits_for_room: bool) {
        let Some(running) = &mut self.running else { return };
        running.interrupts += 1;
        if waits_for_room {
            // Its end may have come already, behind what the reader does not take.
            running.abandon(TurnError::Cancelled);
            drop(self.framer.take());
        } else if running.interrupts >= MOST_INTERRUPTS {
            self.setup.metrics.hang(HangDetector::NoProgress);
            self.verdict.get_or_insert(Verdict::Hung);
            return self.terminate();
        }
        running.interrupted_until = Some(now + self.setup.config.session.stop_interrupt);
        let id = self.request_id("interrupt-");
        let line = self.setup.adapter.interrupt(&id);
        self.write(line.into());
    }

    fn is_ending(&self) -> bool {
        let ending =
            |phase| !matches!(phase, Phase::Opening { .. } | Phase::Serving | Phase::Interrupted { .. });
        ending(self.phase)
    }

    /// Sets the timer for the next thing that is due. Moving it is not free, and most deadlines only move away: it is
    /// moved when it would ring too late, or has rung.
    fn arm(&mut self) {
        let phase = match self.phase {
            Phase::Serving => None,
            Phase::Opening { until }
            | Phase::Closed { until }
            | Phase::Interrupted { until }
            | Phase::InputClosed { until }
            | Phase::Terminated { until }
            | Phase::Killed { until } => Some(until),
        };
        let turn = self.running.as_ref().and_then(|running| {
            let watch = (!matches!(self.phase, Phase::Killed { .. })).then(|| running.watch.deadline());
            let turn = running.job.sender.is_some().then_some(running.deadline);
            let interrupt = running.interrupted_until.filter(|_| self.phase == Phase::Serving);
            [watch, turn, interrupt].into_iter().flatten().min()
        });
        let write = self.write_deadline.filter(|_| !self.is_ending());
        let held = self.held.as_ref().map(|job| job.accepted + self.setup.config.session.turn_timeout);
        let next = [phase, turn, write, held, self.permissions.deadline(), self.tasks.deadline()];
        let next = next.into_iter().flatten().min();
        // With nothing due the timer may ring once for nothing; after that it rests.
        let next = next.unwrap_or_else(|| Instant::now() + REST);
        if next < self.timer.deadline() || self.timer.is_elapsed() {
            self.timer.as_mut().reset(next);
        }
    }

    // ---- The end ----

    async fn depart(mut self, exit: Option<Exit>, report: &(dyn Fn(Report) + Send + Sync)) -> Departed {
        let deadline = Instant::now() + LAST_OUTPUT;
        while exit.is_some() && !self.silent {
            let has_turn = self.running.is_some();
            let (mut reader, _writer) = self.io.split();
            match tokio::time::timeout_at(deadline, read(&mut reader, &mut self.framer, has_turn)).await {
                Ok(Ok(length)) if length > 0 => {
                    self.setup.metrics.stream_bytes(Stream::Stdout, length as u64);
                    // Lines are kept, not handed over one by one: what is left goes out with the end of the turn.
                    while let Some(step) = self.next_step() {
                        self.take_step(step, report);
                    }
                }
                _ => break,
            }
        }
        if !self.silent && self.framer.finish().is_some() {
            self.setup.metrics.protocol_error(ProtocolError::PartialEof);
        }
        self.drain_stderr();
        let ended = timeout(UNKILLABLE, self.shim.gone()).await.ok();
        self.drain_stderr();
        if self.tail.is_cut() {
            self.setup.metrics.truncated(Stream::Stderr);
        }
        if let Some(job) = self.held.take() {
            job.abort(TurnError::Cancelled);
        }
        let stderr = self.tail.text();
        let refusal = if self.ready {
            None
        } else {
            self.setup.adapter.refusal(self.handshake_terminal.as_ref(), &stderr)
        };
        let rest = self.framer.take();
        let unfinished = self.running.take().map(|mut running| {
            running.rest = rest;
            running
        });
        Departed {
            ready: self.ready,
            asked: self.asked,
            exit,
            ended,
            forced: matches!(self.phase, Phase::Killed { .. }),
            stop_began: self.stop_began,
            verdict: self.verdict,
            refusal,
            stderr,
            unfinished,
        }
    }
}

/// The id of the handshake's request.
const HANDSHAKE: &str = "handshake";
/// Pings' ids begin so.
const PING: &str = "ping-";
/// How far the timer is set when nothing is due.
const REST: Duration = Duration::from_secs(3600);

/// Reads what has come. Between turns no buffer is held while waiting: an idle session costs no memory for it.
async fn read(reader: &mut ReadHalf<'_>, framer: &mut Framer, has_turn: bool) -> io::Result<usize> {
    if !has_turn {
        reader.readable().await?;
    }
    reader.read_buf(framer.buffer()).await
}

async fn read_stderr(tail: &mut Tail, pipe: Option<&mut pipe::Receiver>) -> bool {
    match pipe {
        Some(pipe) => tail.read(pipe).await,
        None => std::future::pending().await,
    }
}
