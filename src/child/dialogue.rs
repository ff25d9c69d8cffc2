//! What is said between us and one child: its pipes, the turn that runs, what waits to be written, how far its life has
//! come. All of it decided here, without a wait.
//!
//! Shared, behind a [`Port`](super::port::Port), by those who have something to do with the child: the driver, which is
//! always there, the session's actor, which gives it turns, and the reader of the running turn, which takes the
//! child's lines from the pipe itself. Whoever has the lock does what is due and calls the driver for the rest: signals,
//! and deadlines that are earlier than it knows. It knows turns and lines; it knows no actors, and of the CLI only what
//! the [`Adapter`](crate::adapter::Adapter) says.
//!
//! A reader holds a [`LEASE`] on the output as long as it keeps asking. When it expires, the driver reads.

mod input;
mod output;
mod stopping;
mod timing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Waker};

use bytes::Bytes;
use tokio::net::{UnixStream, unix::pipe};
use tokio::time::{Duration, Instant};

use super::exit::{ChildExit, Exit, ExitCause, KillReason, OomKills};
use super::framing::Framer;
use super::permissions::Permissions;
use super::running::{Running, TurnJob, TurnReport};
use super::secrets::Secrets;
use super::tasks::Tasks;
use crate::adapter::{Adapter, LaunchSettings, Terminal};
use crate::config::Config;
use crate::model::PendingPermission;
use crate::telemetry::metrics::{Metrics, Stream};

/// So long after a reader has asked nobody else reads the output. Long enough that a reader which takes its events one
/// by one keeps it; short enough that one which does something else delays neither the end of its turn nor a
/// permission noticeably.
pub(super) const LEASE: Duration = Duration::from_millis(250);

/// What a dialogue needs beside the pipes.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) adapter: &'static dyn Adapter,
    pub(crate) config: Arc<Config>,
    pub(crate) metrics: Arc<Metrics>,
    /// Never to be shown, whatever the child writes.
    pub(crate) secrets: Secrets,
    pub(crate) events: Arc<dyn OnChildEvent>,
}

/// Receives the events of one child, at once and in order. Must not wait and must not call back.
pub(crate) trait OnChildEvent: Send + Sync {
    fn on_child_event(&self, event: ChildEvent);
}

/// An event of a child that lives.
#[derive(Debug)]
pub(crate) enum ChildEvent {
    /// The child runs and answers; it may still connect to its MCP servers.
    Greeted,
    /// Turns can be taken.
    Ready,
    /// The model that the child works with, from its first turn on.
    Model(String),
    /// A turn is over.
    TurnEnded(TurnReport),
    /// A turn is over that the child ran of its own accord.
    OwnTurn { cost_usd: f64 },
    /// The child works of its own accord, or no longer.
    Active(bool),
    /// The tools that wait for permission have changed.
    Permissions(Vec<PendingPermission>),
}

/// How far the child's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
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

/// A signal that the driver is to have sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Terminate,
    KillTree,
}

/// See the module.
pub(super) struct Dialogue {
    setup: Setup,
    input: UnixStream,
    output: pipe::Receiver,
    pid: Option<u32>,
    framer: Framer,
    outbox: VecDeque<Bytes>,
    write_deadline: Option<Instant>,
    phase: Phase,
    /// Somebody wanted it to go.
    asked: bool,
    stop_began: Option<Instant>,
    verdict: Option<KillReason>,
    ready: bool,
    /// It has had its time to become ready twice.
    waited_on: bool,
    /// The child's output has ended.
    silent: bool,
    /// What has come and is in no figure yet.
    uncounted: u64,
    running: Option<Box<Running>>,
    /// Waits since then until the child has finished what it does of its own accord.
    held: Option<(Box<TurnJob>, Instant)>,
    active: bool,
    tasks: Tasks,
    /// What was reported last of being active.
    told_active: bool,
    permissions: Permissions,
    model: Option<String>,
    /// Its first announcement was read.
    announced: bool,
    cumulative_cost: f64,
    handshake_terminal: Option<Box<Terminal>>,
    requests_sent: u64,
    /// The handshake was answered.
    greeted: bool,
    /// The MCP servers are being connected: the child answers nothing else before.
    connecting: bool,
    /// The child is gone; nothing is taken any more.
    over: bool,
    // ---- Who does what ----
    order: Option<Order>,
    /// Until then the output is for the reader to read.
    lease: Option<Instant>,
    /// The reader is asking right now.
    reader_asks: bool,
    /// When the driver's timer rings.
    armed: Instant,
    driver: Option<Waker>,
    /// The driver has to look.
    called: bool,
    /// Something changed that may be for the driver.
    unsettled: bool,
    /// Lines were put into the reader's channel since it last asked.
    has_put: bool,
    /// Readers to be woken once the lock is free: a waker may run the reader at once, and that asks.
    wakes: Vec<Waker>,
}

impl Dialogue {
    /// Begins to speak with a child that was started at `started`, with `model`.
    pub(super) fn open(
        setup: Setup,
        (input, output): (UnixStream, pipe::Receiver),
        pid: Option<u32>,
        model: Option<String>,
        started: Instant,
        settings: &LaunchSettings,
    ) -> Self {
        let session = &setup.config.session;
        let until = started + session.spawn_timeout;
        let handshake = setup.adapter.handshake(output::HANDSHAKE, settings);
        let mut dialogue = Self {
            input,
            output,
            pid,
            framer: Framer::new(session.line_limit),
            outbox: VecDeque::new(),
            write_deadline: None,
            phase: Phase::Opening { until },
            asked: false,
            stop_began: None,
            verdict: None,
            ready: false,
            waited_on: false,
            silent: false,
            uncounted: 0,
            running: None,
            held: None,
            active: false,
            tasks: Tasks::new(session.turn_timeout),
            told_active: false,
            permissions: Permissions::new(session.permission_timeout),
            model,
            announced: false,
            cumulative_cost: 0.0,
            handshake_terminal: None,
            requests_sent: 0,
            greeted: false,
            connecting: !settings.mcp_servers.is_empty(),
            over: false,
            order: None,
            lease: None,
            reader_asks: false,
            armed: until,
            driver: None,
            called: false,
            unsettled: false,
            has_put: false,
            wakes: Vec::new(),
            setup,
        };
        dialogue.write(handshake.into());
        if dialogue.connecting {
            let servers = dialogue.setup.adapter.mcp_servers(output::SERVERS, settings);
            dialogue.write(servers.into());
        }
        dialogue
    }

    fn report(&self, event: ChildEvent) {
        self.setup.events.on_child_event(event);
    }

    /// The driver has to look: it sleeps until its timer rings or it is called.
    fn call_driver(&mut self) {
        self.called = true;
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// After a change by anybody but the driver: calls it if there is something that only it can do.
    pub(super) fn settle(&mut self) {
        if !std::mem::take(&mut self.unsettled) {
            return;
        }
        self.flush();
        let is_due_earlier = self.next_deadline().is_some_and(|next| next < self.armed);
        if self.order.is_some() || !self.outbox.is_empty() || is_due_earlier {
            self.call_driver();
        }
    }

    /// Whom to wake now that the lock is free.
    pub(super) fn take_wakes(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakes)
    }

    /// The signal that is to be sent.
    pub(super) fn take_order(&mut self) -> Option<Order> {
        self.order.take()
    }

    /// Nothing came of the order to kill.
    pub(super) fn is_given_up(&self) -> bool {
        matches!(self.phase, Phase::Killed { until } if until <= Instant::now())
    }

    /// Nobody but the driver reads any more: what is left goes out with the end of the turn.
    pub(super) fn depart(&mut self) {
        self.over = true;
    }

    pub(super) fn armed(&self) -> Instant {
        self.armed
    }

    /// Whether the driver was called since it last asked; from now on `context` is whom to call.
    pub(super) fn poll_called(&mut self, context: &Context<'_>) -> bool {
        match &mut self.driver {
            Some(driver) => driver.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        std::mem::take(&mut self.called)
    }

    /// The end of the child, apart from the end of its tree.
    pub(super) fn into_exit(mut self, exit: Option<Exit>, oom_kills: OomKills, stderr: String) -> ChildExit {
        self.setup.metrics.stream_bytes.add(Stream::Stdout, self.uncounted);
        let rest = self.take_tail();
        let forced = matches!(self.phase, Phase::Killed { .. });
        let cause = self.verdict.map_or_else(
            || ExitCause::classify(exit.unwrap_or(Exit::Unknown), forced, oom_kills, OomKills::now()),
            ExitCause::Killed,
        );
        let refusal = match self.ready {
            true => None,
            false => self.setup.adapter.refusal(self.handshake_terminal.as_deref(), &stderr),
        };
        ChildExit {
            cause,
            ready: self.ready,
            requested: self.asked,
            forced,
            stop_began: self.stop_began,
            refusal,
            stderr,
            unfinished: self.running.map(|mut running| {
                running.rest = rest;
                running
            }),
            unseen: self.held.map(|(job, _)| job),
            sweep: None,
        }
    }
}
