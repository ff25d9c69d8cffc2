//! The task of one child, from the handshake to the last byte.
//!
//! It does what needs a task: it sleeps until something is due, waits for the exit, drains the standard error, has
//! signals sent, reads the child's output when no reader does and writes what the pipe would not take at once. The
//! [`Connection`] decides what any of it means. The same loop stops the child, so that output is read and deadlines
//! are kept to the very end.
//!
//! Every wait is bounded: the handshake by `spawn_timeout`, a turn by `turn_timeout`, silence by the watchdog, a write by
//! `write_timeout`, each step of the stop by its own limit.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::unix::pipe;
use tokio::time::{Duration, Instant, Sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::connection::{ChildContext, Connection, ConnectionHandle, Signal};
use super::exit::{ChildExit, Exit, OomKills};
use super::spawn::{Contained, ShimHandle};
use super::stderr::Tail;
use crate::adapter::LaunchSettings;
use crate::telemetry::metrics::Stream;

/// Maximum time to read the rest of the output after the exit: other holders of the pipe are being killed.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Maximum wait for a killed tree. One that survives waits for its hardware and cannot be helped.
pub(crate) const UNKILLABLE: Duration = Duration::from_secs(30);

pub(crate) struct ChildTask {
    context: ChildContext,
    shim: ShimHandle,
    stderr: Option<pipe::Receiver>,
    tail: Tail,
    open: Open,
    timer: Pin<Box<Sleep>>,
    oom_kills: OomKills,
}

/// The connection, while there is a task: dropping it ends the running turn and refuses others.
struct Open(Arc<ConnectionHandle>);

impl Drop for Open {
    fn drop(&mut self) {
        drop(self.0.close());
    }
}

enum Wake {
    /// The connection went on, or called.
    Connection,
    Stop,
    Stderr {
        open: bool,
    },
    Exited(Exit),
    Timer,
}

impl ChildTask {
    /// Connects to a started child. `model`: the one that it was started with.
    pub(crate) fn new(
        context: ChildContext,
        child: Box<Contained>,
        model: Option<String>,
        started: Instant,
        settings: &LaunchSettings,
    ) -> Box<Self> {
        let Contained { input, output, stderr, shim, oom_kills } = *child;
        let connection =
            Connection::open(context.clone(), (input, output), shim.pid(), model, started, settings);
        // Boxed, for it goes from one future into the next, and each would keep room for it while the child lives.
        Box::new(Self {
            tail: Tail::new(context.config.session.stderr_tail, context.secrets.clone()),
            stderr: Some(stderr),
            shim,
            timer: Box::pin(sleep_until(connection.armed())),
            open: Open(Arc::new(ConnectionHandle::new(connection))),
            oom_kills,
            context,
        })
    }

    pub(crate) fn handle(&self) -> Arc<ConnectionHandle> {
        self.open.0.clone()
    }

    /// Runs until nothing of the child is left; `stop` requests its stop. Dropping the future kills the tree.
    pub(crate) async fn run(mut self: Box<Self>, stop: CancellationToken) -> ChildExit {
        let mut stopped = Box::pin(stop.cancelled_owned());
        let mut requested = false;
        loop {
            match self.wait(stopped.as_mut(), !requested).await {
                Wake::Connection => {}
                Wake::Stop => {
                    requested = true;
                    self.with(Connection::stop);
                }
                Wake::Stderr { open } => self.stderr_read(open),
                Wake::Timer => self.with(Connection::on_time),
                Wake::Exited(exit) => return self.conclude(Some(exit)).await,
            }
            match self.with(Connection::take_signal) {
                Some(Signal::Freeze) => self.shim.freeze(),
                Some(Signal::Thaw) => self.shim.thaw(),
                Some(Signal::Terminate) => self.shim.terminate(),
                Some(Signal::KillTree) => self.shim.kill_tree(),
                None => {}
            }
            if self.with(|connection| connection.is_given_up()) {
                return self.conclude(None).await;
            }
        }
    }

    fn with<T: Default>(&self, act: impl FnOnce(&mut Connection) -> T) -> T {
        self.open.0.with(act).unwrap_or_default()
    }

    async fn wait(&mut self, mut stop: Pin<&mut impl Future<Output = ()>>, takes_stop: bool) -> Wake {
        let has_rung = self.timer.is_elapsed();
        if let Some(next) = self.with(|connection| connection.arm(has_rung)) {
            self.timer.as_mut().reset(next);
        }
        let Self { open, stderr, tail, shim, timer, .. } = self;
        // Without a connection there is nothing to wait for but the exit.
        let poll = |context: &mut Context<'_>| {
            open.0.with(|connection| connection.poll_for_task(context)).unwrap_or(Poll::Pending)
        };
        tokio::select! {
            () = poll_fn(poll) => Wake::Connection,
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
        self.context.metrics.stream_bytes.add(Stream::Stderr, self.tail.take_new());
    }

    fn drain_stderr(&mut self) {
        let open = self.stderr.as_ref().is_some_and(|pipe| self.tail.drain(pipe));
        self.stderr_read(open);
    }

    async fn conclude(mut self: Box<Self>, exit: Option<Exit>) -> ChildExit {
        self.with(Connection::set_over);
        if exit.is_some() {
            self.last_output().await;
        }
        self.drain_stderr();
        let sweep = timeout(UNKILLABLE, self.shim.gone()).await.ok();
        self.drain_stderr();
        if self.tail.is_cut() {
            self.context.metrics.truncations.increment(Stream::Stderr);
        }
        let ended = self
            .open
            .0
            .close()
            .map(|connection| connection.into_exit(exit, &self.oom_kills, self.tail.text()));
        ChildExit { sweep, ..ended.unwrap_or_default() }
    }

    /// Reads what the child wrote before it ended. Lines are kept, not handed over one by one: what is left goes out
    /// with the end of the turn.
    async fn last_output(&mut self) {
        let deadline = Instant::now() + LAST_OUTPUT;
        let handle = &self.open.0;
        let read_on =
            || poll_fn(|context| handle.with(|it| it.poll_last(context)).unwrap_or(Poll::Ready(false)));
        while let Ok(true) = timeout_at(deadline, read_on()).await {}
        self.with(Connection::close_output);
    }
}

async fn read_stderr(tail: &mut Tail, pipe: Option<&mut pipe::Receiver>) -> bool {
    match pipe {
        Some(pipe) => tail.read(pipe).await,
        None => std::future::pending().await,
    }
}
