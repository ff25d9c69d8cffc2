//! A child that a client speaks to itself: lines go through unchanged, as far as the client's [`Gate`] lets them.
//!
//! The child is asked whether it answers before the client is taken; the client's own handshake comes later. What the
//! session needs (cost, journal, end of turns) is read from the lines on their way.
//!
//! ```text
//!  Open ──► Ended (the client has no more input) ──► Terminated ──► Killed
//!    │ stop requested, client gone, no line for too long
//!    └────► Interrupted (a turn runs) ──► InputClosed ──► Terminated ──► Killed
//! ```

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::ChildContext;
use super::pipes::{PipeIo, Read};
use super::protocol::Spending;
use crate::adapter::{self, FromChild, FromClient, Gate, LineKind};
use crate::child::event::ChildEvent;
use crate::child::exit::{ChildExit, Exit, ExitCause, KillReason, OomKills};
use crate::child::framing::Framed;
use crate::child::permissions::Permissions;
use crate::child::running_turn::TurnReport;
use crate::child::spawn::{Contained, ShimHandle};
use crate::child::stderr::Tail;
use crate::child::task::UNKILLABLE;
use crate::child::waiting::{Unfit, WaitingChild};
use crate::config::JournalMode;
use crate::journal::Lines;
use crate::telemetry::metrics::{HangDetector, ModelClass, ProtocolError, Stream};

/// Lines on the way from the client to the child, and back. Each is as long as a line may be.
pub(crate) const LINES_IN_FLIGHT: usize = 4;
/// Maximum time to read the rest of the output after the exit.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// Offset of a signal in the exit code of a process that it ended, as shells have it.
const SIGNAL_CODE: i32 = 128;

/// A client, connected by two bounded channels. Closing the second one is its end.
#[derive(Debug)]
pub(crate) struct RawClient {
    pub(crate) gate: Gate,
    pub(crate) input: mpsc::Receiver<RawInput>,
    pub(crate) output: mpsc::Sender<RawOutput>,
    /// Maximum time without a line of either side.
    pub(crate) idle_timeout: Duration,
}

/// Input of a client.
pub(crate) enum RawInput {
    /// A line without its line end.
    Line(Bytes),
    /// There is no more.
    End,
}

/// Output for a client.
pub(crate) enum RawOutput {
    /// A line with its line end.
    Line(Bytes),
    /// A note for people.
    Note(String),
    /// The child has ended. Always the last.
    Exit { code: i32, stderr: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Ended,
    Interrupted,
    InputClosed,
    Terminated,
    Killed,
}

/// Runs the child until nothing of it is left. `take` gives the client, once the child answers. Dropping the future kills
/// the tree.
pub(crate) async fn run(
    context: ChildContext,
    child: Box<Contained>,
    model: Option<String>,
    take: impl FnOnce() -> Option<RawClient> + Send,
    stop: CancellationToken,
) -> ChildExit {
    let child = match open(&context, child, &stop).await {
        Ok(child) => child,
        Err(exit) => return *exit,
    };
    context.events.on_child_event(ChildEvent::Greeted);
    context.events.on_child_event(ChildEvent::Ready);
    let Contained { input, output, stderr, shim, oom_kills } = *child;
    let session = &context.config.session;
    let pipes =
        PipeIo::new((input, output), session.line_limit, session.write_timeout, context.metrics.clone());
    let mut relay = Relay {
        pipes,
        journal: Lines::new(session.journal != JournalMode::Off),
        spending: Spending::new(model),
        checkpoint: None,
        busy: false,
        phase: Phase::Open,
        until: Instant::now(),
        stop_began: None,
        pending: VecDeque::new(),
        reason: None,
        context,
    };
    match take() {
        Some(client) => Box::pin(relay.relay(client, shim, stderr, &oom_kills, stop)).await,
        None => {
            // It is gone, and the child of no use.
            let (_input, input) = mpsc::channel(1);
            let (output, _) = mpsc::channel(1);
            let client = RawClient { gate: Gate::closed(), input, output, idle_timeout: Duration::ZERO };
            Box::pin(relay.relay(client, shim, stderr, &oom_kills, stop)).await
        }
    }
}

/// Waits until the child answers. The end of one that does not, or is to stop.
async fn open(
    context: &ChildContext,
    child: Box<Contained>,
    stop: &CancellationToken,
) -> Result<Box<Contained>, Box<ChildExit>> {
    let mut waiting = WaitingChild::new(child);
    let began = Instant::now();
    let answered = tokio::select! {
        answered = waiting.ping(context.config.session.spawn_timeout) => Some(answered),
        () = stop.cancelled() => None,
    };
    let mut exit = ChildExit { forced: true, ..ChildExit::default() };
    match answered {
        Some(Ok(())) => match waiting.into_child() {
            Ok(child) => return Ok(child),
            Err(unfit) => {
                waiting = *unfit;
                exit.cause = ExitCause::Killed(KillReason::Protocol("it writes lines without an end"));
            }
        },
        Some(Err(Unfit::Exited(_))) => (exit.cause, exit.forced) = (waiting.cause().await, false),
        Some(Err(Unfit::Silent(_))) => exit.cause = ExitCause::Killed(KillReason::NeverReady),
        Some(Err(Unfit::Protocol(what))) => exit.cause = ExitCause::Killed(KillReason::Protocol(what)),
        None => (exit.requested, exit.stop_began) = (true, Some(began)),
    }
    let (stderr, _) = waiting.end(context.config.session.stderr_tail, context.secrets.clone()).await;
    exit.refusal = adapter::launch_refusal(None, &stderr);
    Err(Box::new(ChildExit { stderr, ..exit }))
}

struct Relay {
    context: ChildContext,
    pipes: PipeIo,
    journal: Lines,
    spending: Spending,
    checkpoint: Option<String>,
    /// A turn runs.
    busy: bool,
    phase: Phase,
    /// The deadline of the phase.
    until: Instant,
    stop_began: Option<Instant>,
    /// For the client.
    pending: VecDeque<RawOutput>,
    /// Why the server ends the connection.
    reason: Option<&'static str>,
}

impl Relay {
    async fn relay(
        &mut self,
        client: RawClient,
        mut shim: ShimHandle,
        stderr: pipe::Receiver,
        oom_kills: &OomKills,
        stop: CancellationToken,
    ) -> ChildExit {
        let RawClient { mut gate, mut input, output, idle_timeout } = client;
        let mut tail = Tail::new(self.context.config.session.stderr_tail, self.context.secrets.clone());
        let mut stderr = Some(stderr);
        self.until = Instant::now() + idle_timeout;
        let exit = loop {
            let (is_gone, is_open) = (output.is_closed(), self.phase == Phase::Open);
            if is_gone {
                self.pending.clear();
            }
            let may_read = self.pending.is_empty();
            let takes_input = is_open && may_read && self.pipes.outbox.lines.is_empty();
            let stalls_at = self.pipes.outbox.deadline.unwrap_or(self.until);
            let wakes_at = if is_open { self.until.min(stalls_at) } else { self.until };
            tokio::select! {
                exit = shim.exited() => break Some(exit),
                permit = output.reserve(), if !may_read => {
                    if let (Ok(permit), Some(next)) = (permit, self.pending.pop_front()) {
                        permit.send(next);
                        self.moved(idle_timeout);
                    }
                }
                read = poll_fn(|context| poll_pipes(&mut self.pipes, may_read, context)) => {
                    if read == Some(Read::Bytes) {
                        self.take_lines(&gate);
                        self.moved(idle_timeout);
                    }
                    if read == Some(Read::End) {
                        self.pipes.end_output();
                    }
                }
                line = input.recv(), if takes_input => {
                    self.take_input(&mut gate, line);
                    self.moved(idle_timeout);
                }
                () = output.closed(), if matches!(self.phase, Phase::Open | Phase::Ended) => self.stop(None),
                () = stop.cancelled(), if self.stop_began.is_none() => {
                    self.stop(Some("the server ended the session's child"));
                }
                open = read_stderr(&mut tail, stderr.as_mut()), if stderr.is_some() => {
                    if !open {
                        stderr = None;
                    }
                }
                () = sleep_until(wakes_at) => {
                    if self.phase == Phase::Killed {
                        break None;
                    }
                    self.on_time(&shim);
                }
            }
        };
        if exit.is_some() {
            self.last_output(&gate).await;
        }
        if let Some(pipe) = &stderr {
            tail.drain(pipe);
        }
        self.context.metrics.stream_bytes.add(Stream::Stderr, tail.take_new());
        self.pipes.count();
        if self.journal.is_on() {
            self.context.events.on_child_event(ChildEvent::Journal(self.journal.take()));
        }
        let sweep = timeout(UNKILLABLE, shim.gone()).await.ok();
        let forced = self.phase == Phase::Killed;
        self.say_goodbye(&output, exit, tail.text()).await;
        ChildExit {
            cause: ExitCause::classify(exit.unwrap_or(Exit::Unknown), forced, oom_kills),
            ready: true,
            // Its end is that of the client's connection, and no reason for another start.
            requested: true,
            forced,
            stop_began: self.stop_began,
            stderr: tail.text(),
            sweep,
            ..ChildExit::default()
        }
    }

    /// Sends what is left, within the time for one write.
    async fn say_goodbye(&mut self, output: &mpsc::Sender<RawOutput>, exit: Option<Exit>, stderr: String) {
        self.pending.extend(self.reason.map(|reason| RawOutput::Note(reason.to_owned())));
        let code = match exit {
            _ if self.reason.is_some() => 1,
            Some(Exit::Code(code)) => code,
            Some(Exit::Signal(signal)) => SIGNAL_CODE + signal,
            Some(Exit::Unknown) | None => 1,
        };
        self.pending.push_back(RawOutput::Exit { code, stderr });
        let pending = std::mem::take(&mut self.pending);
        let sent = async {
            for next in pending {
                if output.send(next).await.is_err() {
                    return;
                }
            }
        };
        timeout(self.context.config.session.write_timeout, sent).await.ok();
    }

    async fn last_output(&mut self, gate: &Gate) {
        let deadline = Instant::now() + LAST_OUTPUT;
        while !self.pipes.ended && self.pending.len() <= LINES_IN_FLIGHT {
            let read = poll_fn(|context| self.pipes.poll_read(true, context));
            match tokio::time::timeout_at(deadline, read).await {
                Ok(Read::Bytes) => self.take_lines(gate),
                Ok(Read::End) | Err(_) => return,
            }
        }
    }

    /// A line has moved: the time without one begins again.
    fn moved(&mut self, idle_timeout: Duration) {
        if self.phase == Phase::Open {
            self.until = Instant::now() + idle_timeout;
        }
    }

    fn enter(&mut self, phase: Phase, within: Duration) {
        (self.phase, self.until) = (phase, Instant::now() + within);
    }

    fn write(&mut self, line: Bytes) {
        if !self.pipes.outbox.push(line, Instant::now()) {
            self.stop(Some("the child reads nothing"));
        }
    }

    // ---- The client ----

    fn take_input(&mut self, gate: &mut Gate, input: Option<RawInput>) {
        let line = match input {
            Some(RawInput::Line(line)) => line,
            Some(RawInput::End) => {
                // The child finishes what it is at, and exits by itself.
                self.pipes.close_input().ok();
                return self.enter(Phase::Ended, self.context.config.session.turn_timeout);
            }
            None => return self.stop(None),
        };
        match gate.judge_client(&line) {
            FromClient::Pass { lines, is_message } => {
                if is_message && let Some(message) = lines.last() {
                    self.busy = true;
                    self.journal.prompt(message);
                }
                lines.into_iter().for_each(|line| self.write(line));
            }
            FromClient::Reply(reply) => self.pending.push_back(RawOutput::Line(reply)),
            FromClient::Drop => {}
            FromClient::Broken(why) => self.stop(Some(why)),
        }
    }

    // ---- The child ----

    fn take_lines(&mut self, gate: &Gate) {
        let mut permissions = Vec::new();
        let mut is_too_long = false;
        while let Some(framed) = self.pipes.framer.next_line() {
            let Framed::Line(line) = framed else {
                is_too_long = true;
                continue;
            };
            match gate.judge_child(line) {
                FromChild::Pass => {
                    self.pending.push_back(RawOutput::Line([line, b"\n"].concat().into()));
                }
                FromChild::Drop => {}
                FromChild::Permission(request) => permissions.push(request),
            }
            let seen = Seen {
                context: &self.context,
                journal: &mut self.journal,
                spending: &mut self.spending,
                checkpoint: &mut self.checkpoint,
            };
            self.busy &= !seen.note(line);
        }
        self.pipes.settle_read(self.busy);
        for request in permissions {
            let decision = Permissions::standing(gate.policy());
            self.write(adapter::permission_response(&request, &decision).into());
        }
        if is_too_long {
            self.context.metrics.protocol_errors.increment(ProtocolError::LineTooLong);
            self.stop(Some("the child wrote a line that is longer than session.line_limit"));
        }
        if self.phase == Phase::Interrupted && !self.busy {
            self.close_input();
        }
    }

    // ---- The end ----

    /// Begins to stop the child, in steps. `reason`: of the server.
    fn stop(&mut self, reason: Option<&'static str>) {
        if self.stop_began.is_some() {
            return;
        }
        self.stop_began = Some(Instant::now());
        self.reason = self.reason.or(reason);
        match self.phase {
            Phase::Open if self.busy => {
                self.enter(Phase::Interrupted, self.context.config.session.stop_interrupt);
                self.write(adapter::interrupt(&Gate::own_id()).into());
            }
            Phase::Open => self.close_input(),
            // Its input is closed already.
            Phase::Ended => self.enter(Phase::InputClosed, self.context.config.session.stop_eof),
            Phase::Interrupted | Phase::InputClosed | Phase::Terminated | Phase::Killed => {}
        }
    }

    fn close_input(&mut self) {
        self.pipes.close_input().ok();
        self.enter(Phase::InputClosed, self.context.config.session.stop_eof);
    }

    fn on_time(&mut self, shim: &ShimHandle) {
        let now = Instant::now();
        if self.phase == Phase::Open && self.pipes.outbox.is_stalled(now) {
            self.context.metrics.hangs.increment(HangDetector::StdinStall);
            self.pipes.close_input().ok();
            self.stop(Some("the child reads nothing"));
        }
        if now < self.until {
            return;
        }
        let session = &self.context.config.session;
        match self.phase {
            Phase::Open => self.stop(Some("no line came for attach.idle_timeout")),
            Phase::Interrupted => self.close_input(),
            Phase::Ended | Phase::InputClosed => {
                self.stop_began.get_or_insert(now);
                self.enter(Phase::Terminated, session.stop_term);
                shim.terminate();
            }
            Phase::Terminated => {
                self.enter(Phase::Killed, UNKILLABLE);
                shim.kill_tree();
            }
            Phase::Killed => {}
        }
    }
}

/// What the session reads from the lines on their way.
struct Seen<'a> {
    context: &'a ChildContext,
    journal: &'a mut Lines,
    spending: &'a mut Spending,
    checkpoint: &'a mut Option<String>,
}

impl Seen<'_> {
    /// Notes a line of the child; whether it ends the client's turn.
    fn note(self, line: &[u8]) -> bool {
        match adapter::classify(line) {
            LineKind::Message { checkpoint: true, .. } => {
                if let Some(id) = adapter::checkpoint(line) {
                    self.journal.own(&id, line);
                    *self.checkpoint = Some(id);
                }
            }
            LineKind::Mirror if adapter::mirrors_conversation(line) => {
                self.context.metrics.mirrored_lines.increment(1);
                self.journal.mirrored(line);
            }
            LineKind::Announcement => {
                if !std::mem::replace(&mut self.spending.announced, true)
                    && let Some(model) = adapter::announced_model(line)
                {
                    self.context.events.on_child_event(ChildEvent::Model(model));
                }
            }
            LineKind::Terminal => return self.terminal(line),
            _ => return false,
        }
        if self.journal.are_many() {
            self.context.events.on_child_event(ChildEvent::Journal(self.journal.take()));
        }
        false
    }

    fn terminal(self, line: &[u8]) -> bool {
        let metrics = &self.context.metrics;
        let Some(terminal) = adapter::terminal(line) else {
            metrics.protocol_errors.increment(ProtocolError::BadJson);
            return true;
        };
        let (cost_usd, is_plausible) = self.spending.cost_of(&terminal);
        if !is_plausible {
            metrics.protocol_errors.increment(ProtocolError::ImplausibleUsage);
        }
        metrics.count_usage(ModelClass::of(self.spending.model.as_deref()), &terminal.usage, cost_usd);
        if terminal.unsolicited {
            self.context.events.on_child_event(ChildEvent::Journal(self.journal.take()));
            self.context.events.on_child_event(ChildEvent::OwnTurn { cost_usd });
            return false;
        }
        let report = TurnReport {
            // Of no turn of the session: for it, the connection as a whole is one.
            answered: terminal.failure.is_none(),
            cli_session_id: terminal.session_id,
            checkpoint: self.checkpoint.take(),
            cost_usd,
            usage: terminal.usage,
            journal: self.journal.take(),
            ..TurnReport::default()
        };
        drop(self.context.events.on_turn_ended(report, None));
        true
    }
}

/// Writes what waits, and reads if `may_read`. `None`: something was written.
fn poll_pipes(pipes: &mut PipeIo, may_read: bool, context: &mut Context<'_>) -> Poll<Option<Read>> {
    let written = pipes.poll_write(Instant::now(), context);
    if may_read
        && !pipes.ended
        && let Poll::Ready(read) = pipes.poll_read(true, context)
    {
        return Poll::Ready(Some(read));
    }
    written.map(|()| None)
}

async fn read_stderr(tail: &mut Tail, pipe: Option<&mut pipe::Receiver>) -> bool {
    match pipe {
        Some(pipe) => tail.read(pipe).await,
        None => std::future::pending().await,
    }
}
