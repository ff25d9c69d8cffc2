//! The way from a child to the reader of one turn.
//!
//! Bounded twice: by reads and by bytes. A reader that does not keep up makes the child's task stop reading: the pipe
//! fills and the CLI waits.
//!
//! A reader that finds nothing here polls the [`Source`], the child's connection, so that a line goes from the pipe to
//! the reader without a task in between. What is queued here came before what the source
//! has: once a source is attached, lines are put under its lock alone, under which it is asked too.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use super::stream::Turn;
use super::{Lines, Outcome, Status};
use crate::error::TurnError;
use crate::model::Usage;
use crate::model::ids::TurnId;
use crate::support::live::Live;
use crate::support::lock::MutexExt;

/// Interrupts the turn: called when the reader goes away before the end, or asks for it.
pub(crate) type Cancel = Arc<dyn Fn() + Send + Sync>;
/// Called with the outcome, exactly once per turn.
pub(crate) type OnEnd = Box<dyn FnOnce(&Outcome) + Send + Sync>;

/// The source of lines that are not in the channel yet.
pub(crate) trait Source: Send + Sync {
    /// Takes what the child has written for this turn; wakes the task when there may be more.
    fn poll_lines(&self, turn: TurnId, context: &mut Context<'_>) -> Poll<Pulled>;
}

pub(crate) enum Pulled {
    Lines(Lines),
    /// Something has been put into the channel.
    Channel,
}

/// The last lines, which need no room in the channel, and the outcome.
pub(super) struct End {
    pub(super) tail: Lines,
    pub(super) outcome: Outcome,
}

pub(super) enum Item {
    Lines(Lines),
    End(Box<End>),
}

struct Shared {
    turn: TurnId,
    /// Maximum number of reads that wait.
    reads: usize,
    /// Maximum number of bytes that wait. A longer read waits alone.
    bytes: usize,
    state: Mutex<State>,
    /// For those who watch.
    live: OnceLock<Arc<Live>>,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Lines>,
    bytes: usize,
    end: Option<Box<End>>,
    source: Option<Arc<dyn Source>>,
    waker: Option<Waker>,
    reader_gone: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values: a panic elsewhere leaves them usable.
        self.state.lock_unpoisoned()
    }

    /// Changes the state; gives the reader that waits, to be woken when no lock is held that it could ask for.
    fn update(&self, change: impl FnOnce(&mut State)) -> Option<Waker> {
        let mut state = self.lock();
        change(&mut state);
        state.waker.take()
    }
}

/// Where a turn's events go. Ends the turn exactly once: by [`TurnSender::finish`], or with an internal error when it
/// is dropped.
pub(crate) struct TurnSender {
    shared: Arc<Shared>,
    on_end: Option<OnEnd>,
}

pub(super) struct TurnReceiver(Arc<Shared>);

/// The two ends of a turn's channel. `reads` and `bytes` bound what waits for the reader.
pub(crate) fn turn_channel(
    turn: TurnId,
    reads: usize,
    bytes: usize,
    cancel: Cancel,
    on_end: OnEnd,
) -> (TurnSender, Turn) {
    let shared =
        Arc::new(Shared { turn, reads: reads.max(1), bytes, state: Mutex::default(), live: OnceLock::new() });
    let reader = Turn::new(turn, TurnReceiver(shared.clone()), cancel);
    (TurnSender { shared, on_end: Some(on_end) }, reader)
}

impl TurnSender {
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.lock().reader_gone
    }

    /// What the reader gets is also shown to those who watch.
    pub(crate) fn show_to(&self, live: Arc<Live>) {
        // A turn belongs to one session.
        self.shared.live.set(live).ok();
    }

    /// From now on the reader may ask `source` itself. Replaces the one before.
    pub(crate) fn attach(&self, source: Arc<dyn Source>) {
        drop(self.shared.lock().source.replace(source));
    }

    /// The reader, if it waits.
    #[must_use = "it is to be woken"]
    pub(crate) fn waiting(&self) -> Option<Waker> {
        self.shared.update(|_| {})
    }

    pub(crate) fn has_room(&self, length: usize) -> bool {
        let state = self.shared.lock();
        // A read longer than the whole budget waits alone: it can wait, but never for ever.
        state.lines.is_empty()
            || (state.lines.len() < self.shared.reads
                && state.bytes.saturating_add(length) <= self.shared.bytes)
    }

    /// Hands lines over; to be asked first: [`TurnSender::has_room`]. Gives whom to wake.
    #[must_use = "it is to be woken"]
    pub(crate) fn put(&self, lines: impl Into<Lines>) -> Option<Waker> {
        let lines = lines.into();
        self.shared.update(|state| {
            if !state.reader_gone {
                state.bytes += lines.len();
                state.lines.push_back(lines);
            }
        })
    }

    /// Ends the turn. What was put before is still read first, then `tail` (whole lines, or nothing): the last lines
    /// of a turn never wait for a slow reader, so that its child is free for the next turn. Gives whom to wake.
    #[must_use = "it is to be woken"]
    pub(crate) fn finish(mut self, tail: impl Into<Lines>, outcome: Outcome) -> Option<Waker> {
        let end = self.end(tail.into(), outcome)?;
        self.shared.update(|state| state.end = Some(end))
    }

    /// Forgets a turn that was not given to a caller: its end is not awaited and not counted.
    pub(crate) fn disown(mut self) {
        self.on_end = None;
    }

    fn end(&mut self, tail: Lines, outcome: Outcome) -> Option<Box<End>> {
        self.on_end.take()?(&outcome);
        Some(Box::new(End { tail, outcome }))
    }
}

impl Drop for TurnSender {
    fn drop(&mut self) {
        let error = match &self.shared.lock().source {
            Some(_) => TurnError::Internal("the session ended while the turn ran"),
            None => TurnError::Overloaded {
                reason: "the session was ended before it came to the turn",
                retry_after: Duration::ZERO,
            },
        };
        if let Some(end) = self.end(Lines::default(), aborted(error)) {
            wake(self.shared.update(|state| state.end = Some(end)));
        }
    }
}

impl TurnReceiver {
    /// The next item, also shown to those who watch. After the end there is nothing more to ask for.
    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<Item> {
        let item = ready!(self.poll_item(context));
        if let Some(live) = self.0.live.get() {
            live.show(match &item {
                Item::Lines(lines) => lines.bytes(),
                Item::End(end) => end.tail.bytes(),
            });
        }
        Poll::Ready(item)
    }

    fn poll_item(&self, context: &mut Context<'_>) -> Poll<Item> {
        loop {
            let source = {
                let mut state = self.0.lock();
                if let Some(lines) = state.lines.pop_front() {
                    state.bytes -= lines.len();
                    return Poll::Ready(Item::Lines(lines));
                }
                if let Some(end) = state.end.take() {
                    state.source = None;
                    return Poll::Ready(Item::End(end));
                }
                match &mut state.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                state.source.clone()
            };
            let Some(source) = source else { return Poll::Pending };
            match ready!(source.poll_lines(self.0.turn, context)) {
                Pulled::Lines(lines) => return Poll::Ready(Item::Lines(lines)),
                Pulled::Channel => {}
            }
        }
    }

    pub(super) fn close(&self) {
        let (lines, source) = {
            let mut state = self.0.lock();
            state.reader_gone = true;
            state.bytes = 0;
            state.waker = None;
            (std::mem::take(&mut state.lines), state.source.take())
        };
        // Dropped outside of the lock.
        drop((lines, source));
    }
}

impl Drop for TurnReceiver {
    fn drop(&mut self) {
        self.close();
    }
}

/// Wakes who waits. Not under a lock that it could ask for.
pub(crate) fn wake(waiting: Option<Waker>) {
    if let Some(waker) = waiting {
        waker.wake();
    }
}

/// The outcome of a turn that has no answer.
pub(crate) fn aborted(error: TurnError) -> Outcome {
    Outcome {
        status: Status::Aborted(error),
        text: String::new(),
        stop_reason: None,
        tool_calls: Vec::new(),
        usage: Usage::default(),
        cost_usd: 0.0,
        cli_session_id: String::new(),
        retries: 0,
        context_lost: false,
        duration: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;

    use super::*;

    fn channel(reads: usize, bytes: usize) -> (TurnSender, Turn, Arc<AtomicUsize>) {
        let ends = Arc::new(AtomicUsize::new(0));
        let seen = ends.clone();
        let on_end = Box::new(move |_: &Outcome| {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        let (sender, turn) = turn_channel(TurnId(7), reads, bytes, Arc::new(|| ()), on_end);
        (sender, turn, ends)
    }

    fn lines(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    /// Has these lines, one after the other, and then nothing.
    struct Script(Mutex<VecDeque<Bytes>>);

    impl Source for Script {
        fn poll_lines(&self, turn: TurnId, _: &mut Context<'_>) -> Poll<Pulled> {
            assert_eq!(turn, TurnId(7));
            match self.0.lock().unwrap().pop_front() {
                Some(lines) => Poll::Ready(Pulled::Lines(lines.into())),
                None => Poll::Pending,
            }
        }
    }

    #[tokio::test]
    async fn channel_comes_before_source_and_the_end_last() {
        let (sender, mut turn, ends) = channel(8, 1000);
        sender.attach(Arc::new(Script(Mutex::new([lines("2\n"), lines("3\n")].into()))));
        drop(sender.put(lines("1\n")));
        for expected in ["1\n", "2\n", "3\n"] {
            assert_eq!(turn.next_lines().await.unwrap().unwrap(), expected);
        }
        {
            let mut waiting = std::pin::pin!(turn.next_lines());
            let mut context = Context::from_waker(Waker::noop());
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            assert!(sender.put(lines("4\n")).is_some(), "it waits");
            assert_eq!(waiting.await.unwrap().unwrap(), "4\n");
        }
        drop(sender.finish(lines("5\n"), aborted(TurnError::Cancelled)));
        assert_eq!(turn.next_lines().await.unwrap().unwrap(), "5\n");
        assert!(turn.next_lines().await.unwrap().is_err());
        assert_eq!(ends.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn what_waits_is_bounded_by_reads_and_by_bytes() {
        let (sender, mut turn, _) = channel(2, 10);
        assert!(sender.has_room(11), "what is longer than the budget may wait alone");
        drop(sender.put(lines("12345\n")));
        assert!(sender.has_room(4) && !sender.has_room(5));
        drop(sender.put(lines("1\n")));
        assert!(!sender.has_room(1), "two reads wait");
        assert!(turn.next_lines().await.unwrap().is_ok());
        assert!(sender.has_room(8) && !sender.has_room(9));
    }

    #[tokio::test]
    async fn a_turn_ends_once_whatever_happens_to_its_sender() {
        let (sender, mut turn, ends) = channel(2, 10);
        drop(sender);
        assert!(turn.next().await.unwrap().is_err());
        assert!(turn.next().await.is_none());
        assert_eq!(ends.load(Ordering::Relaxed), 1);

        let (sender, turn, ends) = channel(2, 10);
        drop(sender.put(lines("1\n")));
        drop(turn);
        assert!(sender.is_closed() && sender.has_room(10), "nothing is kept for a reader that is gone");
        drop(sender.finish(Bytes::new(), aborted(TurnError::Cancelled)));
        assert_eq!(ends.load(Ordering::Relaxed), 1);
    }
}
