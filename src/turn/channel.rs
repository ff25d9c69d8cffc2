//! The bounded channel from the driver of a child to the reader of one turn.
//!
//! Bounded twice: by reads and by bytes. A reader that does not keep up makes [`TurnSender::reserve`] wait, the driver
//! stops reading, the pipe fills, the CLI waits: nobody else notices.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::{Semaphore, oneshot};

use super::stream::Turn;
use super::{Outcome, Status, Usage};
use crate::cli::Adapter;
use crate::error::TurnError;
use crate::ids::TurnId;

/// Called when the reader goes away before the end.
pub(crate) type Cancel = Box<dyn FnOnce() + Send + Sync>;
/// Called with the outcome, exactly once per turn.
pub(crate) type OnEnd = Box<dyn FnOnce(&Outcome) + Send + Sync>;

/// The last lines, which need no room in the channel, and the outcome.
pub(super) struct End {
    pub(super) tail: Bytes,
    pub(super) outcome: Outcome,
}

/// Where a turn's events go. Ends the turn exactly once: by [`TurnSender::finish`], or with an internal error when it
/// is dropped.
pub(crate) struct TurnSender {
    chunks: Option<mpsc::Sender<Chunk>>,
    bytes: Arc<Semaphore>,
    bytes_limit: u32,
    end: Option<(oneshot::Sender<End>, OnEnd)>,
}

/// One or more whole lines, each with its LF, and their share of the byte limit.
pub(super) struct Chunk {
    pub(super) lines: Bytes,
    pub(super) weight: u32,
}

/// Room for one chunk.
pub(crate) struct Slot<'a> {
    permit: mpsc::Permit<'a, Chunk>,
    weight: u32,
}

impl Slot<'_> {
    /// Hands the lines over.
    pub(crate) fn put(self, lines: Bytes) {
        self.permit.send(Chunk { lines, weight: self.weight });
    }
}

/// The two ends of a turn's channel. `reads` and `bytes` bound what waits for the reader.
pub(crate) fn turn_channel(
    id: TurnId,
    adapter: &'static dyn Adapter,
    reads: usize,
    bytes: usize,
    cancel: Cancel,
    on_end: OnEnd,
) -> (TurnSender, Turn) {
    let (sender, receiver) = mpsc::channel(reads.max(1));
    let (end, ended) = oneshot::channel();
    let limit = u32::try_from(bytes).unwrap_or(u32::MAX).max(1);
    let budget = Arc::new(Semaphore::new(limit as usize));
    let turn = Turn::new(id, adapter, receiver, budget.clone(), ended, cancel);
    let sender =
        TurnSender { chunks: Some(sender), bytes: budget, bytes_limit: limit, end: Some((end, on_end)) };
    (sender, turn)
}

impl TurnSender {
    /// Whether the reader is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.chunks.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// Waits for room for `length` bytes; `None` if the reader is gone. May be cancelled at any time.
    pub(crate) async fn reserve(&self, length: usize) -> Option<Slot<'_>> {
        let chunks = self.chunks.as_ref()?;
        // A line longer than the whole budget takes all of it: it can wait, but never for ever.
        let weight = u32::try_from(length).unwrap_or(u32::MAX).min(self.bytes_limit);
        let permit = chunks.reserve().await.ok()?;
        let budget = tokio::select! {
            budget = self.bytes.acquire_many(weight) => budget.ok()?,
            () = chunks.closed() => return None,
        };
        budget.forget();
        Some(Slot { permit, weight })
    }

    /// Room at once, or `None`.
    pub(crate) fn try_reserve(&self, length: usize) -> Option<Slot<'_>> {
        let weight = u32::try_from(length).unwrap_or(u32::MAX).min(self.bytes_limit);
        let permit = self.chunks.as_ref()?.try_reserve().ok()?;
        self.bytes.try_acquire_many(weight).ok()?.forget();
        Some(Slot { permit, weight })
    }

    /// Ends the turn. What was put before is still read first, then `tail` (whole lines, or nothing): the last lines
    /// of a turn never wait for a slow reader, so that its child is free for the next turn.
    pub(crate) fn finish(mut self, tail: Bytes, outcome: Outcome) {
        self.end(tail, outcome);
    }

    /// Forgets a turn that nobody was given: nobody waits for its end, and it is not counted.
    pub(crate) fn disown(mut self) {
        self.end = None;
    }

    fn end(&mut self, tail: Bytes, outcome: Outcome) {
        if let Some((end, on_end)) = self.end.take() {
            on_end(&outcome);
            // The reader may be gone; the outcome was counted above.
            drop(end.send(End { tail, outcome }));
        }
        self.chunks = None;
    }
}

impl Drop for TurnSender {
    fn drop(&mut self) {
        if self.end.is_some() {
            let error = TurnError::Internal("the session was started anew while the turn ran");
            self.end(Bytes::new(), aborted(error));
        }
    }
}

/// The outcome of a turn that has no answer.
pub(crate) fn aborted(error: TurnError) -> Outcome {
    Outcome {
        status: Status::Aborted(error),
        text: String::new(),
        stop_reason: None,
        usage: Usage::default(),
        cost_usd: 0.0,
        cli_session_id: String::new(),
        retries: 0,
        context_lost: false,
        duration: std::time::Duration::ZERO,
    }
}
