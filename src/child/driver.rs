//! The driver of one child: a task that is there from the handshake to the last byte.
//!
//! It does what needs a task: it sleeps until something is due, hears of the exit, drains the standard error, has
//! signals sent, reads the child's output when no reader does and writes what the pipe would not take at once. What any
//! of it means is decided by the [`Dialogue`]. The child is stopped by the same loop, so that output is read and
//! deadlines are kept to the very end.
//!
//! Every wait is bounded: the handshake by `spawn_timeout`, a turn by `turn_timeout`, silence by the watch, a write by
//! `write_timeout`, each step of the stop by its own limit.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::unix::pipe;
use tokio::time::{Duration, Instant, Sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::dialogue::{Dialogue, Order, Setup};
use super::exit::{ChildExit, Exit, OomKills};
use super::port::Port;
use super::spawn::{Contained, ShimHandle};
use super::stderr::Tail;
use crate::adapter::LaunchSettings;
use crate::telemetry::metrics::Stream;

/// After the exit the rest of the output is read for at most so long: whoever else held the pipe is being killed.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// A tree that survives SIGKILL for so long waits for its hardware; nobody can help it.
pub(crate) const UNKILLABLE: Duration = Duration::from_secs(30);

/// One child, driven.
pub(crate) struct Driver {
    setup: Setup,
    shim: ShimHandle,
    stderr: Option<pipe::Receiver>,
    tail: Tail,
    open: Open,
    timer: Pin<Box<Sleep>>,
    oom_kills: OomKills,
}

/// The dialogue, as long as there is a driver: dropping it ends the running turn and refuses others.
struct Open(Arc<Port>);

impl Drop for Open {
    fn drop(&mut self) {
        drop(self.0.close());
    }
}

enum Wake {
    /// The dialogue went on, or calls.
    Dialogue,
    Stop,
    Stderr {
        open: bool,
    },
    Exited(Exit),
    Timer,
}

impl Driver {
    /// Takes over a started child and begins to speak with it. `model` is what it was started with.
    pub(crate) fn new(
        setup: Setup,
        child: Box<Contained>,
        model: Option<String>,
        started: Instant,
        settings: &LaunchSettings,
    ) -> Box<Self> {
        let Contained { input, output, stderr, shim, oom_kills } = *child;
        let dialogue = Dialogue::open(setup.clone(), (input, output), shim.pid(), model, started, settings);
        // Boxed, for it goes from one future into the next, and each would keep room for it as long as the child lives.
        Box::new(Self {
            tail: Tail::new(setup.config.session.stderr_tail, setup.secrets.clone()),
            stderr: Some(stderr),
            shim,
            timer: Box::pin(sleep_until(dialogue.armed())),
            open: Open(Port::new(dialogue)),
            oom_kills,
            setup,
        })
    }

    /// How the child is reached while it is driven.
    pub(crate) fn port(&self) -> Arc<Port> {
        self.open.0.clone()
    }

    /// Drives the child until nothing of it is left; `stop` asks it to go. Dropping the future kills the tree.
    pub(crate) async fn run(mut self: Box<Self>, stop: CancellationToken) -> ChildExit {
        let mut stopped = Box::pin(stop.cancelled_owned());
        let mut asked = false;
        loop {
            match self.wait(stopped.as_mut(), !asked).await {
                Wake::Dialogue => {}
                Wake::Stop => {
                    asked = true;
                    self.with(Dialogue::stop);
                }
                Wake::Stderr { open } => self.stderr_read(open),
                Wake::Timer => self.with(Dialogue::on_time),
                Wake::Exited(exit) => return self.depart(Some(exit)).await,
            }
            match self.with(Dialogue::take_order) {
                Some(Order::Terminate) => self.shim.terminate(),
                Some(Order::KillTree) => self.shim.kill_tree(),
                None => {}
            }
            if self.with(|dialogue| dialogue.is_given_up()) {
                return self.depart(None).await;
            }
        }
    }

    fn with<T: Default>(&self, act: impl FnOnce(&mut Dialogue) -> T) -> T {
        self.open.0.with(act).unwrap_or_default()
    }

    async fn wait(&mut self, mut stop: Pin<&mut impl Future<Output = ()>>, takes_stop: bool) -> Wake {
        let has_rung = self.timer.is_elapsed();
        if let Some(next) = self.with(|dialogue| dialogue.arm(has_rung)) {
            self.timer.as_mut().reset(next);
        }
        let Self { open, stderr, tail, shim, timer, .. } = self;
        let port = &open.0;
        tokio::select! {
            () = poll_fn(|context| drive(port, context)) => Wake::Dialogue,
            () = stop.as_mut(), if takes_stop => Wake::Stop,
            open = read_stderr(tail, stderr.as_mut()), if stderr.is_some() => Wake::Stderr { open },
            exit = shim.exited() => Wake::Exited(exit),
            () = timer.as_mut() => Wake::Timer,
        }
    }

    fn stderr_read(&mut self, open: bool) {
        if !open {
            self.stderr = None;
        }
        self.setup.metrics.stream_bytes.add(Stream::Stderr, self.tail.take_new());
    }

    fn drain_stderr(&mut self) {
        let open = self.stderr.as_ref().is_some_and(|pipe| self.tail.drain(pipe));
        self.stderr_read(open);
    }

    async fn depart(mut self: Box<Self>, exit: Option<Exit>) -> ChildExit {
        self.with(Dialogue::depart);
        if exit.is_some() {
            self.last_output().await;
        }
        self.drain_stderr();
        let sweep = timeout(UNKILLABLE, self.shim.gone()).await.ok();
        self.drain_stderr();
        if self.tail.is_cut() {
            self.setup.metrics.truncations.increment(Stream::Stderr);
        }
        let ended =
            self.open.0.close().map(|dialogue| dialogue.into_exit(exit, self.oom_kills, self.tail.text()));
        ChildExit { sweep, ..ended.unwrap_or_default() }
    }

    /// Reads what the child wrote before it ended. Lines are kept, not handed over one by one: what is left goes out
    /// with the end of the turn.
    async fn last_output(&mut self) {
        let deadline = Instant::now() + LAST_OUTPUT;
        let port = &self.open.0;
        let read_on =
            || poll_fn(|context| port.with(|it| it.poll_last(context)).unwrap_or(Poll::Ready(false)));
        while let Ok(true) = timeout_at(deadline, read_on()).await {}
        self.with(Dialogue::close_output);
    }
}

/// What of the dialogue is for the driver to do. Ready when something was done, or the driver is called.
fn drive(port: &Port, context: &mut Context<'_>) -> Poll<()> {
    let polled = port.with(|dialogue| {
        let written = dialogue.poll_write(context);
        let read = dialogue.poll_for_driver(context);
        if dialogue.poll_called(context) || written.is_ready() || read.is_ready() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    // Without a dialogue there is nothing to wait for but the exit.
    polled.unwrap_or(Poll::Pending)
}

async fn read_stderr(tail: &mut Tail, pipe: Option<&mut pipe::Receiver>) -> bool {
    match pipe {
        Some(pipe) => tail.read(pipe).await,
        None => std::future::pending().await,
    }
}
