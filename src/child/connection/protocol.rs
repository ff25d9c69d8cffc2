//! The protocol of one child as a pure state machine: a line, an order of the session or a time goes in, actions come
//! out.
//!
//! It has no pipes, no locks and no clock. [`Connection`](super::Connection) carries its [`Action`]s out. Of the CLI it
//! has the knowledge of [`adapter`].

mod calls;
mod deadlines;
mod hibernation;
mod lines;
mod servers;
mod spending;
mod steering;
mod stop;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub(super) use deadlines::{ABSENT, Observation};
use hibernation::Hibernation;
use lines::CONNECT_TRIES;
pub(super) use lines::Fate;
pub(super) use spending::Spending;
use steering::Unsettled;
pub(super) use turns::Ending;

use crate::adapter::{self, LaunchSettings, Notice, Terminal};
use crate::child::calls::{Calls, Waiting};
use crate::child::event::ChildEvent;
use crate::child::exit::KillReason;
use crate::child::permissions::Permissions;
use crate::child::running_turn::{Job, RunningTurn, TurnEnd};
use crate::child::steering::Steering;
use crate::child::tasks::Tasks;
use crate::config::{Config, JournalMode, PermissionPolicy};
use crate::journal::Lines;
use crate::model::{ContextUsage, Usage};
use crate::telemetry::metrics::{
    FirstOutput, HangDetector, ModelClass, ProtocolError, StopStep, Stream, ToolWaitEnd,
};
use crate::turn::TurnTrace;

pub(super) const HANDSHAKE: &str = "handshake";
/// The id of the request that gives the child its MCP servers.
pub(super) const SERVERS: &str = "servers";
/// The prefix of a ping's id.
pub(super) const PING: &str = "ping-";

/// The phase of a child's life. See the diagram in [`super`]. Each but `Serving` has a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Opening,
    Serving,
    /// The child closed its output unasked. Normally its exit follows at once.
    Closed,
    /// A stop was requested; the running turn was interrupted.
    Interrupted,
    InputClosed,
    Terminated,
    Killed,
}

/// A signal for the child's task to send. Of several, the last of this order is sent: a child that is to end needs to run
/// first, which [`Signal::Terminate`] includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::child) enum Signal {
    Freeze,
    Thaw,
    Terminate,
    KillTree,
}

/// An effect of the protocol.
#[derive(Debug)]
pub(super) enum Action {
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
    /// A mirrored line.
    Mirrored,
    Notice(Notice),
    /// The wait for results of the caller's tools ended.
    ToolWait(ToolWaitEnd),
    /// The idle child was frozen.
    Hibernated,
}

pub(super) struct Protocol {
    config: Arc<Config>,
    wall_clock: fn() -> SystemTime,
    pub(super) actions: VecDeque<Action>,
    phase: Phase,
    /// The deadline of the phase.
    until: Option<Instant>,
    pub(super) handshake: Handshake,
    pub(super) stop_began: Option<Instant>,
    pub(super) kill_reason: Option<KillReason>,
    pub(super) running: Option<Box<RunningTurn>>,
    pub(super) held: Option<HeldTurn>,
    own_work: OwnWork,
    calls: Calls,
    /// When something of a call was last noted.
    calls_heard: Instant,
    /// The CLI waits for results of the caller's tools.
    waiting: Option<Waiting>,
    permissions: Permissions,
    policy: PermissionPolicy,
    /// Texts for the running turn.
    steering: Steering,
    /// After a turn whose texts may begin another one.
    unsettled: Option<Unsettled>,
    /// The CLI reports when it works and when it rests.
    says_when_it_rests: bool,
    spending: Spending,
    hibernation: Hibernation,
    /// Who waits for the use of the context, by the request.
    context_asked: Vec<(String, oneshot::Sender<ContextUsage>)>,
    /// Requests about MCP servers.
    servers_asked: Vec<servers::Asked>,
    requests_sent: u64,
    /// What the journal keeps of the running turn.
    pub(super) journal: Lines,
    /// The child has said that it is about to end.
    leaves: bool,
    /// The child is gone; nothing is taken any more.
    pub(super) over: bool,
}

#[derive(Debug, Default)]
pub(super) struct Handshake {
    answered: bool,
    /// The MCP servers are being connected: the child answers nothing else before.
    connecting: bool,
    /// Its deadline was extended, because this process met it late.
    extended: bool,
    /// The child had become ready.
    pub(super) complete: bool,
    /// The end of a turn before that: the reason of a refusal.
    pub(super) terminal: Option<Box<Terminal>>,
}

/// A turn that waits until the child has finished work of its own accord.
#[derive(Debug)]
pub(super) struct HeldTurn {
    pub(super) job: Box<Job>,
    mark: Option<String>,
    since: Instant,
}

#[derive(Debug)]
struct OwnWork {
    /// A turn of its own runs.
    active: bool,
    tasks: Tasks,
    /// The last reported activity.
    reported: bool,
}

impl Protocol {
    /// The protocol of a child that was started at `started` with `model`.
    pub(super) fn new(
        config: Arc<Config>,
        wall_clock: fn() -> SystemTime,
        model: Option<String>,
        started: Instant,
        settings: &LaunchSettings,
    ) -> Self {
        let session = &config.session;
        let connecting = !settings.mcp_servers.is_empty();
        let mut protocol = Self {
            wall_clock,
            actions: VecDeque::new(),
            phase: Phase::Opening,
            until: Some(started + session.spawn_timeout),
            handshake: Handshake { connecting, ..Handshake::default() },
            stop_began: None,
            kill_reason: None,
            running: None,
            held: None,
            own_work: OwnWork { active: false, tasks: Tasks::new(session.turn_timeout), reported: false },
            calls: Calls::new(settings.caller_tools.clone()),
            calls_heard: started,
            waiting: None,
            permissions: Permissions::new(session.permission_timeout),
            policy: config.permissions.policy.stricter(settings.policy),
            steering: Steering::default(),
            unsettled: None,
            says_when_it_rests: false,
            spending: Spending::new(model),
            hibernation: Hibernation::new(session.hibernate_after, started),
            context_asked: Vec::new(),
            servers_asked: Vec::new(),
            requests_sent: 0,
            journal: Lines::new(config.session.journal != JournalMode::Off),
            leaves: false,
            over: false,
            config,
        };
        protocol.write(adapter::handshake(HANDSHAKE, settings));
        if connecting {
            protocol.write(adapter::mcp_servers(SERVERS, settings));
        }
        protocol
    }

    fn act(&mut self, action: Action) {
        if hibernation::needs_a_running_child(&action) {
            self.thaw();
        }
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

    fn enter(&mut self, phase: Phase, until: Option<Instant>) {
        (self.phase, self.until) = (phase, until);
        self.act(Action::Rearm);
    }

    fn emit_permissions(&mut self) {
        self.emit(ChildEvent::Permissions(self.permissions.pending()));
    }

    fn request_id(&mut self, prefix: &str) -> String {
        self.requests_sent += 1;
        format!("{prefix}{}", self.requests_sent)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop_began.is_some()
    }

    /// Whether a kill of the tree was ordered and came to nothing.
    pub(super) fn is_given_up(&self, now: Instant) -> bool {
        self.is_killed() && self.until <= Some(now)
    }
}
