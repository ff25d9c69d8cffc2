//! The protocol of one child as a pure state machine: a line, an order of the session or a time goes in, actions come
//! out.
//!
//! It has no pipes, no locks and no clock. [`Connection`](super::Connection) carries its [`Action`]s out. Of the CLI it
//! knows what the [`Adapter`] says.

mod deadlines;
mod lines;
mod stop;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

pub(super) use deadlines::{ABSENT, Observation};
pub(super) use lines::Fate;
pub(super) use turns::Ending;

use crate::adapter::{Adapter, LaunchSettings, Terminal};
use crate::child::event::ChildEvent;
use crate::child::exit::KillReason;
use crate::child::permissions::Permissions;
use crate::child::running_turn::{Job, RunningTurn, TurnEnd};
use crate::child::tasks::Tasks;
use crate::config::Config;
use crate::model::Usage;
use crate::telemetry::metrics::{FirstOutput, HangDetector, ModelClass, ProtocolError, StopStep, Stream};
use crate::turn::TurnTrace;

/// The id of the handshake's request.
pub(super) const HANDSHAKE: &str = "handshake";
/// The id of the request that gives the child its MCP servers.
pub(super) const SERVERS: &str = "servers";
/// The prefix of a ping's id.
pub(super) const PING: &str = "ping-";

/// The phase of a child's life. See the diagram in [`super`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The handshake is out.
    Opening { until: Instant },
    /// Turns are taken.
    Serving,
    /// The child closed its output unasked. Normally its exit follows at once.
    Closed { until: Instant },
    /// A stop was requested; the running turn was interrupted.
    Interrupted { until: Instant },
    /// Its input was closed.
    InputClosed { until: Instant },
    /// SIGTERM was sent.
    Terminated { until: Instant },
    /// Its tree is being killed.
    Killed { until: Instant },
}

/// A signal for the child's task to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::child) enum Signal {
    Terminate,
    KillTree,
}

/// An effect that the protocol asks for.
#[derive(Debug)]
pub(super) enum Action {
    /// Write a line to the child.
    Write(Bytes),
    /// Report to the session.
    Emit(ChildEvent),
    /// A turn begins: its reader reads first.
    GrantReader,
    /// The turn's reader is gone: the child's task reads from now on.
    RevokeReader,
    /// Discard the lines that were kept for a reader.
    Discard,
    /// The turn is over for the child and its reader. The kept lines are its last.
    EndTurn(Box<RunningTurn>, Ending),
    /// The turn is over for its reader alone.
    EndReader(Box<TurnEnd>),
    /// Close the child's input; what was not written is dropped.
    CloseInput,
    Send(Signal),
    Measure(Measurement),
    /// A deadline may have moved closer.
    Rearm,
}

/// An entry for the metrics.
#[derive(Debug)]
pub(super) enum Measurement {
    /// The first output of a turn, and its age then.
    FirstOutput(FirstOutput, Duration, TurnTrace),
    Spent(ModelClass, Usage, f64),
    ProtocolError(ProtocolError),
    Truncated(Stream),
    Hang(HangDetector),
    Ping(Duration),
    StopStep(StopStep),
}

/// The state of the protocol.
pub(super) struct Protocol {
    adapter: &'static dyn Adapter,
    config: Arc<Config>,
    wall_clock: fn() -> SystemTime,
    pub(super) actions: VecDeque<Action>,
    phase: Phase,
    handshake: Handshake,
    /// Start of the requested stop.
    stop_began: Option<Instant>,
    kill_reason: Option<KillReason>,
    running: Option<Box<RunningTurn>>,
    held: Option<HeldTurn>,
    own_work: OwnWork,
    permissions: Permissions,
    spending: Spending,
    requests_sent: u64,
    /// The child is gone; nothing is taken any more.
    over: bool,
}

/// The progress of the handshake.
#[derive(Debug, Default)]
struct Handshake {
    answered: bool,
    /// The MCP servers are being connected: the child answers nothing else before.
    connecting: bool,
    /// Its deadline was extended, because we had not kept it ourselves.
    extended: bool,
    /// The child had become ready.
    complete: bool,
    /// The end of a turn before that: the reason of a refusal.
    terminal: Option<Box<Terminal>>,
}

/// A turn that waits until the child has finished work of its own accord.
#[derive(Debug)]
struct HeldTurn {
    job: Box<Job>,
    mark: Option<String>,
    since: Instant,
}

/// Work of the child's own accord.
#[derive(Debug)]
struct OwnWork {
    /// A turn of its own runs.
    active: bool,
    tasks: Tasks,
    /// The last reported activity.
    reported: bool,
}

/// The cost of the child so far.
#[derive(Debug)]
struct Spending {
    model: Option<String>,
    /// The first announcement was read.
    announced: bool,
    cumulative_usd: f64,
}

/// The end of the protocol, for the child's exit.
pub(super) struct Remains {
    pub(super) ready: bool,
    pub(super) forced: bool,
    pub(super) stop_began: Option<Instant>,
    pub(super) kill_reason: Option<KillReason>,
    pub(super) handshake_terminal: Option<Box<Terminal>>,
    pub(super) unfinished: Option<Box<RunningTurn>>,
    pub(super) unseen: Option<Box<Job>>,
}

impl Protocol {
    /// The protocol of a child that was started at `started` with `model`.
    pub(super) fn new(
        adapter: &'static dyn Adapter,
        config: Arc<Config>,
        wall_clock: fn() -> SystemTime,
        model: Option<String>,
        started: Instant,
        settings: &LaunchSettings,
    ) -> Self {
        let session = &config.session;
        let connecting = !settings.mcp_servers.is_empty();
        let mut protocol = Self {
            adapter,
            wall_clock,
            actions: VecDeque::new(),
            phase: Phase::Opening { until: started + session.spawn_timeout },
            handshake: Handshake { connecting, ..Handshake::default() },
            stop_began: None,
            kill_reason: None,
            running: None,
            held: None,
            own_work: OwnWork { active: false, tasks: Tasks::new(session.turn_timeout), reported: false },
            permissions: Permissions::new(session.permission_timeout),
            spending: Spending { model, announced: false, cumulative_usd: 0.0 },
            requests_sent: 0,
            over: false,
            config,
        };
        protocol.write(adapter.handshake(HANDSHAKE, settings));
        if connecting {
            protocol.write(adapter.mcp_servers(SERVERS, settings));
        }
        protocol
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn emit(&mut self, event: ChildEvent) {
        self.act(Action::Emit(event));
    }

    fn write(&mut self, line: impl Into<Bytes>) {
        self.act(Action::Write(line.into()));
    }

    fn measure(&mut self, measurement: Measurement) {
        self.act(Action::Measure(measurement));
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.act(Action::Rearm);
    }

    fn emit_permissions(&mut self) {
        self.emit(ChildEvent::Permissions(self.permissions.pending()));
    }

    fn request_id(&mut self, prefix: &str) -> String {
        self.requests_sent += 1;
        format!("{prefix}{}", self.requests_sent)
    }

    /// Whether the session has requested a stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.stop_began.is_some()
    }

    /// When a kill of the tree has failed, if one was ordered.
    pub(super) fn kill_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Killed { until } => Some(until),
            _ => None,
        }
    }

    /// The child has exited: no order is taken any more.
    pub(super) fn close(&mut self) {
        self.over = true;
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn running(&self) -> Option<&RunningTurn> {
        self.running.as_deref()
    }

    pub(super) fn into_remains(self) -> Remains {
        Remains {
            ready: self.handshake.complete,
            forced: matches!(self.phase, Phase::Killed { .. }),
            stop_began: self.stop_began,
            kill_reason: self.kill_reason,
            handshake_terminal: self.handshake.terminal,
            unfinished: self.running,
            unseen: self.held.map(|held| held.job),
        }
    }
}
