//! The connection to one child: the pure [`Protocol`], the pipes ([`PipeIo`]) and who reads them ([`Handoff`]), put
//! together. Nothing in it waits.
//!
//! Shared behind a [`ConnectionHandle`] by the child's task, the session's actor and the reader of the running turn.
//! The holder of the lock does what is due. It handles turns and lines, and no actors.
//!
//! ```text
//!            handshake and MCP servers answered
//!  Opening ────────────────────────────────────► Serving ◄──► a turn runs; an own turn of the CLI holds the next
//!     │ │ output ends                         │   │    │ output ends
//!     │ └─────────────────► Closed ◄──────────┼───┼────┘
//!     │ not ready in time     │ does not exit │   │ stop requested, a turn runs
//!     │                       │               │   └──────► Interrupted ──► (output ends: Closed)
//!     │ stop requested        │ stop, no turn │                 │ the turn is over, or `stop_interrupt`
//!     └────────────────┐      │               └────────────┐    │
//!                      ▼      │                            ▼    ▼
//!  hang, memory limit, └──────┼──────────────────────► InputClosed
//!  broken protocol            │                            │ `stop_eof`
//!     │                       │                            ▼
//!     │                       │                        Terminated   (SIGTERM)
//!     ▼                       ▼                            │ `stop_term`
//!     └───────────────────────┴──────► Killed ◄────────────┘        (the whole tree)
//!
//!  From every phase the exit of the child ends the connection.
//! ```

mod handle;
mod handoff;
mod pipes;
mod protocol;
#[cfg_attr(not(feature = "server"), expect(dead_code, reason = "only the server attaches clients"))]
mod raw;
mod reading;
mod sync;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use tokio::net::{UnixStream, unix::pipe};
use tokio::time::{Duration, Instant};

pub(crate) use handle::ConnectionHandle;
use handoff::{Handoff, HandsOff};
use pipes::PipeIo;
pub(in crate::child) use protocol::Signal;
use protocol::{Action, Ending, Measurement, Observation, Protocol};
#[cfg(feature = "server")]
pub(crate) use raw::{LINES_IN_FLIGHT, RawInput, RawOutput};
pub(crate) use raw::{RawClient, RawStops, run as run_raw};

use super::event::OnChildEvent;
use super::exit::{ChildExit, Exit, ExitCause, KillReason, OomKills};
use super::running_turn::{Job, RunningTurn};
use super::secrets::Secrets;
use super::vitals;
use crate::adapter::{self, LaunchSettings, Notice};
use crate::child::event::ChildEvent;
use crate::config::Config;
use crate::telemetry::metrics::{CliNotice, Metrics};
use crate::turn::Lines;

/// The task's timer when nothing is due.
const REST: Duration = Duration::from_secs(3600);

#[derive(Clone)]
pub(crate) struct ChildContext {
    pub(crate) config: Arc<Config>,
    pub(crate) metrics: Arc<Metrics>,
    /// Never to be shown, whatever the child writes.
    pub(crate) secrets: Secrets,
    pub(crate) events: Arc<dyn OnChildEvent>,
}

pub(crate) struct Connection {
    context: ChildContext,
    protocol: Protocol,
    pipes: PipeIo,
    handoff: Handoff,
    /// For the child's task to send.
    signal: Option<Signal>,
    pid: Option<u32>,
}

impl HandsOff for Connection {
    fn handoff(&mut self) -> &mut Handoff {
        &mut self.handoff
    }
}

impl Connection {
    /// Connects to a child that was started at `started`, with `model`.
    pub(super) fn open(
        context: ChildContext,
        pipes: (UnixStream, pipe::Receiver),
        pid: Option<u32>,
        model: Option<String>,
        started: Instant,
        settings: &LaunchSettings,
    ) -> Self {
        let session = &context.config.session;
        let config = context.config.clone();
        let mut connection = Self {
            protocol: Protocol::new(config, SystemTime::now, model, started, settings),
            pipes: PipeIo::new(pipes, session.line_limit, session.write_timeout, context.metrics.clone()),
            handoff: Handoff::new(started + session.spawn_timeout),
            context,
            signal: None,
            pid,
        };
        connection.carry_out_all(Instant::now());
        connection
    }

    // ---- Orders ----

    fn order<T>(&mut self, now: Instant, order: impl FnOnce(&mut Protocol, Instant) -> T) -> T {
        let result = order(&mut self.protocol, now);
        self.carry_out_all(now);
        result
    }

    /// Gives the child a turn. What came since the last one is read first: whether the child is at a turn of its own
    /// decides what happens to this one.
    fn take_turn(&mut self, job: Box<Job>, now: Instant) -> Result<(), Box<Job>> {
        if !self.protocol.over && !self.protocol.is_stopping() {
            self.catch_up(now);
        }
        // The CLI drops a message whose id it has seen, also in a process before this one: each attempt has its own.
        let is_shared = self.context.config.cli.background_tasks;
        let mark = is_shared.then(|| uuid::Uuid::new_v4().to_string());
        self.order(now, |protocol, now| protocol.take_turn(job, mark, now))
    }

    pub(super) fn stop(&mut self) {
        self.order(Instant::now(), Protocol::stop);
    }

    /// The child has exited: no order is taken any more, and only the task reads.
    pub(super) fn set_over(&mut self) {
        self.protocol.over = true;
    }

    fn carry_out_all(&mut self, now: Instant) {
        // An action may lead to others.
        while let Some(action) = self.protocol.actions.pop_front() {
            self.handoff.changed = true;
            self.carry_out(action, now);
        }
    }

    fn carry_out(&mut self, action: Action, now: Instant) {
        match action {
            Action::Write(line) => {
                if !self.pipes.outbox.push(line, now) {
                    let reason = KillReason::Protocol("it asked much and read nothing");
                    self.protocol.declare_dead(reason, now);
                }
            }
            Action::Emit(event) => self.context.events.on_child_event(event),
            Action::GrantReader => {
                self.handoff.grant(now);
                let sender = self.protocol.running.as_ref().and_then(|running| running.job.sender.as_ref());
                let waiting = sender.and_then(|sender| sender.waiting());
                self.handoff.wake(waiting);
            }
            Action::RevokeReader => self.handoff.revoke(),
            Action::Discard => drop(self.pipes.framer.take()),
            Action::EndTurn(turn, ending) => self.end_turn(turn, ending, now),
            Action::EndReader(last) => self.handoff.wake(last.send()),
            Action::CloseInput => {
                if self.pipes.close_input().is_err() {
                    self.protocol.terminate(now);
                }
            }
            Action::Send(signal) => self.signal = self.signal.max(Some(signal)),
            Action::Measure(measurement) => self.measure(measurement),
            Action::Rearm => {}
        }
    }

    fn end_turn(&mut self, turn: Box<RunningTurn>, ending: Ending, now: Instant) {
        let kept = self.pipes.framer.take();
        // Withheld lines may belong to a turn of the CLI's own.
        let tail = if turn.is_withheld() { Lines::default() } else { kept };
        let mut report = match ending {
            Ending::Answered(terminal, cost_usd) => turn.finish(tail, *terminal, cost_usd, now),
            Ending::Called(called) => turn.called(tail, called, now),
            Ending::Lost(error) => turn.lose(tail, error, now),
        };
        report.journal = self.protocol.journal.take();
        let last = report.last.take();
        // The events may send the end later: once the journal is on the disk.
        let last = self.context.events.on_turn_ended(report, last);
        self.handoff.wake(last.and_then(|last| last.send()));
    }

    fn measure(&self, measurement: Measurement) {
        let metrics = &self.context.metrics;
        match measurement {
            Measurement::FirstOutput(start, after, trace) => {
                metrics.first_output.record(start, after);
                trace.first_output();
            }
            Measurement::Spent(model, usage, cost_usd) => metrics.count_usage(model, &usage, cost_usd),
            Measurement::ProtocolError(kind) => metrics.protocol_errors.increment(kind),
            Measurement::Truncated(stream) => metrics.truncations.increment(stream),
            Measurement::Hang(detector) => metrics.hangs.increment(detector),
            Measurement::Ping(took) => metrics.ping.record(took),
            Measurement::Mirrored => metrics.mirrored_lines.increment(1),
            Measurement::Notice(notice) => metrics.cli_notices.increment(label(notice)),
            Measurement::StopStep(step) => metrics.stop_steps.increment(step),
            Measurement::ToolWait(end) => metrics.tool_waits.increment(end),
            Measurement::Hibernated => metrics.hibernations.increment(1),
        }
    }

    // ---- The child's task ----

    /// Does what is left for the task: writes what the pipe did not take, and reads while no reader does. Ready if
    /// something was done, or the task was called.
    pub(super) fn poll_for_task(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let written = self.pipes.poll_write(now, context);
        let read = self.poll_read_for_task(now, context);
        if self.handoff.poll_called(context) || written.is_ready() || read.is_ready() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    pub(super) fn on_time(&mut self) {
        let now = Instant::now();
        let reader_is_slow = self.for_reader() > 0;
        let mut seen = Observation { reader_is_slow, ..Observation::default() };
        if !reader_is_slow && self.protocol.watchdog_is_due(now) {
            seen.unread = self.pipes.has_unread();
            seen.vitals = if seen.unread { None } else { self.pid.and_then(vitals::read) };
        }
        let stalled = self.pipes.outbox.is_stalled(now);
        self.order(now, |protocol, now| protocol.on_time(now, stalled, seen));
    }

    /// When the task's timer has to ring, if it has to be moved.
    pub(super) fn arm(&mut self, has_rung: bool) -> Option<Instant> {
        // With nothing due the timer may ring once for nothing; after that it rests.
        let next = self.next_deadline().unwrap_or_else(|| Instant::now() + REST);
        self.handoff.arm(next, has_rung)
    }

    pub(super) fn armed(&self) -> Instant {
        self.handoff.armed
    }

    pub(super) fn take_signal(&mut self) -> Option<Signal> {
        self.signal.take()
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.protocol.is_given_up(Instant::now())
    }

    /// After a change by a reader or the session: calls the task if there is something that only a task can do.
    fn settle(&mut self, now: Instant) {
        if !std::mem::take(&mut self.handoff.changed) {
            return;
        }
        self.pipes.flush(now);
        let is_due_earlier = self.next_deadline().is_some_and(|next| next < self.handoff.armed);
        if self.signal.is_some() || !self.pipes.outbox.lines.is_empty() || is_due_earlier {
            self.handoff.call_task();
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let write = self.pipes.outbox.deadline.filter(|_| !self.protocol.is_ending());
        [self.protocol.next_deadline(), write, self.handoff.lease].into_iter().flatten().min()
    }

    /// The end of the child, apart from the end of its tree.
    pub(super) fn into_exit(mut self, exit: Option<Exit>, oom_kills: &OomKills, stderr: String) -> ChildExit {
        self.pipes.count();
        let kept = self.pipes.framer.take();
        let tail = if self.protocol.is_withheld() { Lines::default() } else { kept };
        let mut protocol = self.protocol;
        if protocol.journal.is_on() {
            self.context.events.on_child_event(ChildEvent::Journal(protocol.journal.take()));
        }
        let (ready, forced) = (protocol.handshake.complete, protocol.is_killed());
        let cause = protocol.kill_reason.map_or_else(
            || ExitCause::classify(exit.unwrap_or(Exit::Unknown), forced, oom_kills),
            ExitCause::Killed,
        );
        let refusal = match ready {
            true => None,
            false => adapter::launch_refusal(protocol.handshake.terminal.as_deref(), &stderr),
        };
        ChildExit {
            cause,
            ready,
            requested: protocol.stop_began.is_some(),
            forced,
            stop_began: protocol.stop_began,
            refusal,
            stderr,
            unfinished: protocol.running.map(|mut turn| {
                turn.rest = tail;
                turn
            }),
            unseen: protocol.held.map(|held| held.job),
            sweep: None,
        }
    }
}

fn label(notice: Notice) -> CliNotice {
    match notice {
        Notice::WritesLost => CliNotice::WritesLost,
        Notice::ShuttingDown => CliNotice::ShuttingDown,
        Notice::TurnPreempted => CliNotice::TurnPreempted,
        Notice::LateAllow => CliNotice::LateAllow,
        Notice::RequestProgress => CliNotice::RequestProgress,
    }
}
