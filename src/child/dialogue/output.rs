//! What the child says: read, judged line by line, given to the reader or acted upon.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::time::{Duration, Instant};
use tokio_util::io::poll_read_buf;

use super::{ChildEvent, Dialogue, LEASE, Phase};
use crate::adapter::{ControlAnswer, HostRequest, LineKind, Task, Terminal};
use crate::child::exit::KillReason;
use crate::child::framing::Framed;
use crate::child::permissions::Permissions;
use crate::child::running::TurnReport;
use crate::config::PermissionPolicy;
use crate::error::{Loss, TurnError};
use crate::model::ids::TurnId;
use crate::telemetry::metrics::{ModelClass, ProtocolError, Stream};
use crate::turn::Pulled;

/// The id of the handshake's request.
pub(super) const HANDSHAKE: &str = "handshake";
/// The id of the request that gives the child its MCP servers.
pub(super) const SERVERS: &str = "servers";
/// Pings' ids begin so.
pub(super) const PING: &str = "ping-";

/// What a pipe holds, in reads of [`IDLE_READ`]: more came after the question.
const READS_TO_CATCH_UP: usize = 16;

/// Read at once while no turn runs. On the stack of a function that does not wait.
const IDLE_READ: usize = 4096;

/// So many bytes of a turn are counted together: a counter that all children share is a far place to go for each line.
const COUNTED_AT_ONCE: u64 = 256 << 10;

/// The CLI tries some transports one after the other, each for the time that a server has to connect.
const CONNECT_TRIES: u32 = 2;

/// A child that closed its output without leaving gets so long to leave.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// What a line asks for, after the adapter has looked at it.
enum Step {
    Hand { substantial: bool, checkpoint: Option<String> },
    Announced(Option<String>),
    Terminal(Option<Box<Terminal>>),
    Answered(Option<ControlAnswer>),
    HostRequest(Option<HostRequest>),
    Withdrawn(Option<String>),
    Task(Option<Task>),
    Echo(Option<String>),
    Working,
    Waiting,
    Malformed,
    TooLong,
}

impl Dialogue {
    /// Reads for the reader of `turn`, if it is the one that runs.
    pub(in crate::child) fn poll_for_reader(
        &mut self,
        turn: TurnId,
        context: &mut Context<'_>,
    ) -> Poll<Pulled> {
        if self.over || !self.is_read_by(turn) {
            return Poll::Pending;
        }
        if std::mem::take(&mut self.has_put) {
            return Poll::Ready(Pulled::Channel);
        }
        let now = Instant::now();
        let lease = now + LEASE;
        // The driver may have read meanwhile; then its timer is set for much later.
        self.unsettled |= lease < self.armed;
        self.lease = Some(lease);
        self.reader_asks = true;
        let pulled = self.pull(turn, now, context);
        self.reader_asks = false;
        self.settle();
        pulled
    }

    fn pull(&mut self, turn: TurnId, now: Instant, context: &mut Context<'_>) -> Poll<Pulled> {
        // One read of what is not for the reader before others get their turn: it may hold thousands of lines.
        for has_read in [false, true] {
            if self.handed() > 0 {
                return Poll::Ready(Pulled::Lines(self.framer.take()));
            }
            if !self.is_read_by(turn) {
                // It has ended just now.
                return Poll::Ready(Pulled::Channel);
            }
            if self.silent {
                return Poll::Pending;
            }
            if !has_read {
                ready!(self.poll_read(now, context));
            }
        }
        // More is there. Not woken at once: a task that is always ready lets the runtime look for other input only every
        // so many turns of its, which of these are seconds.
        let later = pin!(tokio::task::yield_now());
        later.poll(context).map(|()| Pulled::Channel)
    }

    fn is_read_by(&self, turn: TurnId) -> bool {
        self.running.as_ref().is_some_and(|running| running.job.turn == turn && running.job.sender.is_some())
    }

    /// Reads for nobody in particular: what is the reader's goes into its channel. Ready if something was read; pending
    /// while the reader reads itself, or has no room.
    pub(in crate::child) fn poll_for_driver(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if self.lease.is_some_and(|lease| now < lease) {
            return Poll::Pending;
        }
        self.lease = None;
        if self.silent || self.handed() > 0 {
            return Poll::Pending;
        }
        ready!(self.poll_read(now, context));
        self.hand_over();
        Poll::Ready(())
    }

    /// One read of what is left after the exit; kept for the reader. Ready with false at the end, or when it is more
    /// than the pipe can have held: then somebody else writes there.
    pub(in crate::child) fn poll_last(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let session = &self.setup.config.session;
        if self.framer.kept() > session.event_buffer_bytes.saturating_add(session.line_limit) {
            return Poll::Ready(false);
        }
        if !self.silent {
            ready!(self.poll_read(Instant::now(), context));
        }
        Poll::Ready(!self.silent)
    }

    /// Half a line is no line.
    pub(in crate::child) fn close_output(&mut self) {
        self.silent = true;
        if self.framer.finish().is_some() {
            self.setup.metrics.protocol_errors.increment(ProtocolError::PartialEof);
        }
    }

    /// Takes in one read.
    fn poll_read(&mut self, now: Instant, context: &mut Context<'_>) -> Poll<()> {
        let read = if self.running.is_some() {
            poll_read_buf(Pin::new(&mut self.output), context, self.framer.buffer())
        } else {
            self.poll_read_idle(context)
        };
        match ready!(read) {
            Ok(length) if length > 0 => {
                self.uncounted += length as u64;
                self.process(now);
                if self.running.is_none() || self.uncounted >= COUNTED_AT_ONCE {
                    self.setup.metrics.stream_bytes.add(Stream::Stdout, std::mem::take(&mut self.uncounted));
                }
            }
            // An error says that the runtime is going away: nothing more will come.
            _ => self.output_ended(),
        }
        Poll::Ready(())
    }

    /// One read when nothing is expected: an idle session holds no buffer while it waits.
    fn poll_read_idle(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut block = [0; IDLE_READ];
        let mut read = ReadBuf::new(&mut block);
        ready!(Pin::new(&mut self.output).poll_read(context, &mut read))?;
        self.framer.buffer().extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Takes in what has come since the last turn, while nobody may have read: whether the child is at something of its
    /// own decides what happens to the next one. The pipe itself is asked, for the runtime may not have heard of it yet.
    pub(super) fn catch_up(&mut self) {
        let mut block = [0; IDLE_READ];
        for _ in 0..READS_TO_CATCH_UP {
            if self.silent {
                return;
            }
            match rustix::io::read(&self.output, &mut block) {
                Ok(0) => self.output_ended(),
                Ok(length) => {
                    self.uncounted += length as u64;
                    self.framer.buffer().extend_from_slice(block.get(..length).unwrap_or_default());
                    self.process(Instant::now());
                }
                // Nothing more. Whatever else there is shows itself to the next read.
                Err(_) => return,
            }
        }
    }

    /// Deals with every whole line that has come.
    fn process(&mut self, now: Instant) {
        if let Some(running) = &mut self.running {
            running.watch.sign_of_life(now);
        }
        while let Some(step) = self.next_step() {
            self.take_step(step);
        }
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
            LineKind::Announcement => {
                Step::Announced(if self.announced { None } else { adapter.announced_model(line) })
            }
            LineKind::Terminal => Step::Terminal(adapter.terminal(line).map(Box::new)),
            LineKind::ControlAnswer => Step::Answered(adapter.control_answer(line)),
            LineKind::HostRequest => Step::HostRequest(adapter.host_request(line)),
            LineKind::Withdrawn => Step::Withdrawn(adapter.withdrawn(line)),
            LineKind::Task => Step::Task(adapter.task(line)),
            LineKind::Echo => Step::Echo(adapter.echo(line)),
            LineKind::Working => Step::Working,
            LineKind::Waiting => Step::Waiting,
            LineKind::Malformed => Step::Malformed,
        })
    }

    fn take_step(&mut self, step: Step) {
        match step {
            Step::Hand { substantial, checkpoint } => {
                if let Some(running) = &mut self.running {
                    running.saw(substantial, checkpoint, &self.setup.metrics);
                }
                self.keep();
            }
            Step::Announced(model) => {
                self.announced = true;
                if let Some(model) = model {
                    self.report(ChildEvent::Model(model));
                }
                self.keep();
                // A turn that is not the CLI's own begins.
                if !self.tasks.owes()
                    && let Some(running) = &mut self.running
                {
                    running.begins();
                }
            }
            Step::Terminal(Some(terminal)) => self.terminal(terminal),
            Step::Answered(Some(answer)) => self.answered(&answer),
            Step::HostRequest(Some(request)) => self.host_request(request),
            Step::Withdrawn(Some(id)) => {
                self.keep();
                if self.permissions.withdraw(&id) {
                    self.report(ChildEvent::Permissions(self.permissions.pending()));
                }
            }
            Step::Task(task) => {
                if let Some(running) = &mut self.running {
                    running.saw(true, None, &self.setup.metrics);
                }
                self.keep();
                // Switched off, a task is a tool that takes long: its turn is what counts.
                if let Some(task) = task.filter(|_| self.setup.config.cli.background_tasks) {
                    self.tasks.note(task, Instant::now());
                    self.unsettled = true;
                    self.tell_activity();
                }
            }
            Step::Echo(id) => {
                let mark = self.running.as_ref().and_then(|running| running.mark.as_deref());
                if mark.is_some() && mark == id.as_deref() {
                    self.claim();
                } else {
                    self.keep();
                }
            }
            Step::Working => {
                self.tasks.works();
                match &mut self.running {
                    Some(running) => running.working = true,
                    None => {
                        self.active = true;
                        self.tell_activity();
                    }
                }
            }
            Step::Waiting => self.waiting(),
            Step::TooLong => {
                self.setup.metrics.protocol_errors.increment(ProtocolError::LineTooLong);
                self.setup.metrics.truncations.increment(Stream::Stdout);
                let limit = self.setup.config.session.line_limit;
                self.cancel_running(TurnError::LineTooLong { limit });
            }
            Step::Terminal(None)
            | Step::Answered(None)
            | Step::HostRequest(None)
            | Step::Withdrawn(None)
            | Step::Malformed => {
                self.setup.metrics.protocol_errors.increment(ProtocolError::BadJson);
            }
        }
    }

    /// The current line goes to the turn's reader. Without a turn it goes to nobody: never to the next one.
    fn keep(&mut self) {
        if self.running.as_ref().is_some_and(|running| running.job.sender.is_some()) {
            self.framer.keep();
        }
        let limit = self.setup.config.session.line_limit;
        if self.framer.kept() > limit && self.is_withheld() {
            let cause = format!(
                "the CLI wrote more than {limit} bytes (session.line_limit) that may belong to a turn of its own"
            );
            self.cancel_running(TurnError::SessionLost(Loss { cause, stderr: String::new() }));
        }
    }

    /// What is kept back may belong to a turn of the CLI's own.
    fn is_withheld(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.is_withheld())
    }

    /// The length of what is for the reader.
    pub(super) fn handed(&self) -> usize {
        if self.is_withheld() { 0 } else { self.framer.kept() }
    }

    /// The last lines of a turn; none if they may belong to a turn of the CLI's own.
    pub(super) fn take_tail(&mut self) -> Bytes {
        let tail = self.framer.take();
        if self.is_withheld() { Bytes::new() } else { tail }
    }

    /// What was kept back belongs to the turn.
    fn claim(&mut self) {
        if let Some(running) = &mut self.running {
            running.claim(&self.setup.metrics);
        }
    }

    /// What was kept back does not belong to the turn.
    fn disclaim(&mut self) {
        if self.is_withheld() {
            self.drop_kept();
        }
        if let Some(running) = self.running.as_mut().filter(|running| running.is_withheld()) {
            running.disclaim();
        }
    }

    /// Puts what was kept into the reader's channel, if there is room. Else nothing more is read before the reader asks.
    fn hand_over(&mut self) {
        let kept = self.handed();
        if kept == 0 {
            return;
        }
        match self.running.as_ref().and_then(|running| running.job.sender.as_ref()) {
            Some(sender) => {
                if sender.has_room(kept) {
                    let waiting = sender.put(self.framer.take());
                    self.wakes.extend(waiting);
                    self.has_put = true;
                }
            }
            None => self.drop_kept(),
        }
    }

    fn terminal(&mut self, terminal: Box<Terminal>) {
        if !self.ready {
            self.handshake_terminal = Some(terminal);
            return;
        }
        let family = ModelClass::of(self.model.as_deref());
        let cost_usd = self.cost_of(&terminal);
        self.setup.metrics.count_usage(family, &terminal.usage, cost_usd);
        if terminal.unsolicited {
            // What the CLI did of its own accord answers nobody.
            self.disclaim();
            self.tasks.served();
            self.unsettled = true;
            self.report(ChildEvent::OwnTurn { cost_usd });
            return self.tell_activity();
        }
        self.claim();
        let Some(running) = self.running.take() else { return };
        if running.job.sender.is_some() {
            self.framer.keep();
        }
        let tail = self.framer.take();
        self.turn_over(running.finish(tail, *terminal, cost_usd));
    }

    /// What was spent since the turn before: the CLI's own word for it, else what the process has spent more.
    fn cost_of(&mut self, terminal: &Terminal) -> f64 {
        // A turn that could not even begin says 0.
        let cumulative = terminal.cumulative_cost_usd.max(self.cumulative_cost);
        let more = cumulative - std::mem::replace(&mut self.cumulative_cost, cumulative);
        terminal.cost_usd.unwrap_or(more)
    }

    /// The session hears of the end first, its reader then: whoever looks after the turn finds the session as the turn
    /// left it, and its next turn comes after.
    pub(super) fn turn_over(&mut self, mut ended: TurnReport) {
        let last = ended.last.take();
        if self.permissions.clear() {
            self.report(ChildEvent::Permissions(Vec::new()));
        }
        self.report(ChildEvent::TurnEnded(ended));
        if let Some(last) = last {
            // A reader that asks looks at the end itself.
            self.wakes.extend(last.send().filter(|_| !self.reader_asks));
        }
        if matches!(self.phase, Phase::Interrupted { .. }) {
            self.close_input();
        }
    }

    /// The CLI waits for input. If it had begun our turn and not ended it, the turn has no end of its own.
    fn waiting(&mut self) {
        self.active = false;
        self.tasks.waits(Instant::now());
        self.unsettled = true;
        self.tell_activity();
        if self.running.as_ref().is_some_and(|running| running.working) {
            let tail = self.take_tail();
            let Some(running) = self.running.take() else { return };
            self.setup.metrics.protocol_errors.increment(ProtocolError::UnknownId);
            let loss =
                Loss { cause: "the CLI ended the turn without a result".to_owned(), stderr: String::new() };
            self.turn_over(running.lose(tail, TurnError::SessionLost(loss)));
        }
        // One that is to go is given nothing more: the next child is.
        if !self.asked
            && let Some((job, _)) = self.held.take()
        {
            self.begin(*job);
        }
    }

    /// Says whether the child does something of its own accord, if that has changed.
    pub(super) fn tell_activity(&mut self) {
        let active = self.active || self.tasks.any();
        if std::mem::replace(&mut self.told_active, active) != active {
            self.report(ChildEvent::Active(active));
        }
    }

    fn answered(&mut self, answer: &ControlAnswer) {
        let id = answer.request_id.as_str();
        if matches!(self.phase, Phase::Opening { .. }) {
            match id {
                HANDSHAKE => {
                    self.greeted = true;
                    self.report(ChildEvent::Greeted);
                }
                SERVERS if answer.error.is_some() => {
                    return self.declare_dead(KillReason::Protocol("it did not take its MCP servers"));
                }
                SERVERS => self.connecting = false,
                _ => {}
            }
            self.opened();
        } else if id.starts_with(PING)
            && let Some(sent) = self.running.as_mut().and_then(|running| running.pinged.take())
        {
            self.setup.metrics.ping.record(sent.elapsed());
        }
    }

    /// The child is ready, or may take its time to connect to its MCP servers.
    fn opened(&mut self) {
        if !self.greeted {
            return;
        }
        if self.connecting {
            let config = &self.setup.config;
            let until =
                Instant::now() + CONNECT_TRIES * config.mcp.connect_timeout + config.session.spawn_timeout;
            self.phase = Phase::Opening { until };
            self.unsettled = true;
        } else {
            self.ready = true;
            self.phase = Phase::Serving;
            self.report(ChildEvent::Ready);
        }
    }

    fn host_request(&mut self, request: HostRequest) {
        let adapter = self.setup.adapter;
        match request {
            HostRequest::Unsupported { request_id, what } => {
                let answer = adapter.unsupported_answer(&request_id, &what);
                self.write(answer.into());
            }
            HostRequest::Permission(request) => match self.setup.config.permissions.policy {
                PermissionPolicy::Ask
                    if self.permissions.have_room()
                        && self.running.as_ref().is_some_and(|running| {
                            running.job.sender.is_some() && !running.is_withheld()
                        }) =>
                {
                    self.keep();
                    self.permissions.ask(request, Instant::now());
                    self.unsettled = true;
                    self.report(ChildEvent::Permissions(self.permissions.pending()));
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
        self.close_output();
        if matches!(self.phase, Phase::Opening { .. } | Phase::Serving | Phase::Interrupted { .. }) {
            self.phase = Phase::Closed { until: Instant::now() + CLOSE_GRACE };
            self.unsettled = true;
        }
    }

    /// Forgets what was kept for a reader that has heard the end.
    pub(super) fn drop_kept(&mut self) {
        drop(self.framer.take());
    }
}
