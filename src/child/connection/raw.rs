//! A child that a client speaks to itself: lines go through unchanged, as far as the client's [`Gate`] lets them.
//!
//! The child is asked whether it answers before the client is taken; the client's own handshake comes later. What the
//! session needs (cost, journal, end of turns) is read from the lines on their way.
//!
//! `relay` passes lines on, `seen` is what the session reads of them, `stop` are the steps of the end:
//!
//! ```text
//!  Open ──► Ended (the client has no more input) ──► Terminated ──► Killed
//!    │ stop requested, client gone, no line for too long
//!    └────► Interrupted (a turn runs) ──► InputClosed ──► Terminated ──► Killed
//! ```

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

mod relay;
mod seen;
mod stop;

use super::ChildContext;
use super::pipes::PipeIo;
use super::protocol::Spending;
use crate::adapter::{self, Gate};
use crate::child::event::ChildEvent;
use crate::child::exit::{ChildExit, ExitCause, KillReason};
use crate::child::spawn::Contained;
use crate::child::waiting::{Unfit, WaitingChild};
use crate::config::JournalMode;
use crate::journal::Lines;

/// Lines on the way from the client to the child, and back. Each is as long as a line may be.
pub(crate) const LINES_IN_FLIGHT: usize = 4;

/// A client, connected by two bounded channels. Closing the second one is its end.
#[derive(Debug)]
pub(crate) struct RawClient {
    pub(crate) gate: Gate,
    pub(crate) input: mpsc::Receiver<RawInput>,
    pub(crate) output: mpsc::Sender<RawOutput>,
    /// Maximum time without a line of either side.
    pub(crate) idle_timeout: Duration,
}

/// When the server ends the connection.
#[derive(Debug, Clone)]
pub(crate) struct RawStops {
    pub(crate) now: CancellationToken,
    /// With the client's turn, if one runs.
    pub(crate) after_turn: CancellationToken,
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
    stops: RawStops,
) -> ChildExit {
    let child = match open(&context, child, &stops.now).await {
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
        leaves: false,
        phase: Phase::Open,
        until: Instant::now(),
        stop_began: None,
        pending: VecDeque::new(),
        reason: None,
        context,
    };
    match take() {
        Some(client) => Box::pin(relay.relay(client, shim, stderr, &oom_kills, stops)).await,
        None => {
            // It is gone, and the child of no use.
            let (_input, input) = mpsc::channel(1);
            let (output, _) = mpsc::channel(1);
            let client = RawClient { gate: Gate::closed(), input, output, idle_timeout: Duration::ZERO };
            Box::pin(relay.relay(client, shim, stderr, &oom_kills, stops)).await
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
    /// The connection ends with the turn.
    leaves: bool,
    phase: Phase,
    /// The deadline of the phase.
    until: Instant,
    stop_began: Option<Instant>,
    /// For the client.
    pending: VecDeque<RawOutput>,
    /// Why the server ends the connection.
    reason: Option<&'static str>,
}
