//! Who reads a child's output: the reader of the running turn, while it holds a lease, else the child's task.
//!
//! A reader that waits reads from the pipe itself, so that a line passes no other task on its way. The holder of the
//! lock does what is due, and calls the task for what only a task can do: signals, and deadlines that are earlier than
//! the task's timer. `tests/handoff.rs` checks the interleavings of reader, task and close with loom, up to three preemptions; for that this
//! file depends on nothing but its `sync`.

use std::sync::PoisonError;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::sync::{Mutex, MutexGuard};

/// Maximum time a reader keeps exclusive read access after its last poll. Long enough for a reader that takes its
/// events one by one; short enough that one which does something else delays neither the end of its turn nor a
/// permission noticeably.
pub(super) const LEASE: Duration = Duration::from_millis(250);

/// A value that the child's task, its session and a reader share, until it is closed.
pub(crate) struct Shared<T>(Mutex<Option<T>>);

/// What [`Shared`] needs to know of its value.
pub(crate) trait HandsOff {
    fn handoff(&mut self) -> &mut Handoff;
}

pub(crate) struct Handoff {
    /// Until then the output is for the reader to read. The task has to look whether it has expired.
    pub(super) lease: Option<Instant>,
    reader_polls: bool,
    /// Lines were put into the reader's channel since its last poll.
    has_put: bool,
    /// When the task's timer rings.
    pub(super) armed: Instant,
    task: Option<Waker>,
    /// The task has to look.
    called: bool,
    /// Something changed that may be for the task.
    pub(super) changed: bool,
    /// Readers to be woken once the lock is free: a waker may run the reader at once, and that takes the lock.
    wakes: Vec<Waker>,
}

impl<T: HandsOff> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(Some(value)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        // A panic under the lock is one of the task, the session or a reader; the others end the child.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acts on the value, then wakes readers. `None` once it is closed.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut T) -> R) -> Option<R> {
        let (result, wakes) = {
            let mut value = self.lock();
            let value = value.as_mut()?;
            (act(value), std::mem::take(&mut value.handoff().wakes))
        };
        for waker in wakes {
            waker.wake();
        }
        Some(result)
    }

    /// Takes the value out. To be dropped without the lock: that ends its turn.
    pub(crate) fn close(&self) -> Option<T> {
        self.lock().take()
    }
}

impl Handoff {
    /// `armed`: when the task's timer rings first.
    pub(super) fn new(armed: Instant) -> Self {
        Self {
            lease: None,
            reader_polls: false,
            has_put: false,
            armed,
            task: None,
            called: false,
            changed: false,
            wakes: Vec::new(),
        }
    }

    // ---- The reader ----

    /// A turn begins: its reader is the first to read.
    pub(super) fn grant(&mut self, now: Instant) {
        self.lease = Some(now + LEASE);
        self.has_put = false;
        self.reader_polls = false;
    }

    /// The reader is gone: the task reads from here on.
    pub(super) fn revoke(&mut self) {
        self.lease = None;
        self.call_task();
    }

    /// Whether the reader finds lines in its channel, since its last poll.
    pub(super) fn take_put(&mut self) -> bool {
        std::mem::take(&mut self.has_put)
    }

    pub(super) fn begin_poll(&mut self, now: Instant) {
        let lease = now + LEASE;
        // The task may have read meanwhile; then its timer is set for much later.
        self.changed |= lease < self.armed;
        self.lease = Some(lease);
        self.reader_polls = true;
    }

    pub(super) fn end_poll(&mut self) {
        self.reader_polls = false;
    }

    /// Lines were put into the reader's channel, or its end; `waiting` is the reader.
    pub(super) fn put(&mut self, waiting: Option<Waker>) {
        self.has_put = true;
        self.wake(waiting);
    }

    /// Wakes the reader once the lock is free. One that polls looks itself.
    pub(super) fn wake(&mut self, waiting: Option<Waker>) {
        self.wakes.extend(waiting.filter(|_| !self.reader_polls));
    }

    // ---- The task ----

    /// Whether the task may read: no reader holds a lease.
    pub(super) fn task_may_read(&mut self, now: Instant) -> bool {
        if self.lease.is_some_and(|lease| now < lease) {
            return false;
        }
        self.lease = None;
        true
    }

    /// The task has to look: it sleeps until its timer rings or it is called.
    pub(super) fn call_task(&mut self) {
        self.called = true;
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }

    /// Whether the task was called since it last asked; the task of `context` is called from now on.
    pub(super) fn poll_called(&mut self, context: &Context<'_>) -> bool {
        match &mut self.task {
            Some(task) => task.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        std::mem::take(&mut self.called)
    }

    /// When the task's timer has to ring, if it has to be moved. Moving it is not free, and most deadlines only move
    /// away: it is moved when it would ring too late, or `has_rung`.
    pub(super) fn arm(&mut self, next: Instant, has_rung: bool) -> Option<Instant> {
        let moves = next < self.armed || has_rung;
        if moves {
            self.armed = next;
        }
        moves.then_some(next)
    }
}
