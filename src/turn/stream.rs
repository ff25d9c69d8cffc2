//! The reader's end of a turn.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;

use super::channel::{Cancel, Item, TurnReceiver, aborted};
use super::{Event, Lines, Outcome, Status};
use crate::error::TurnError;
use crate::model::ids::TurnId;

/// An accepted turn: a stream of its events, then its [`Outcome`].
///
/// Reading slowly slows the CLI of this session alone. Dropping the turn before its end interrupts it; the
/// child stays warm. [`Turn::next`] may be cancelled without losing an event.
pub struct Turn {
    id: TurnId,
    receiver: TurnReceiver,
    /// Whole lines that were received and not read yet.
    lines: Lines,
    /// The outcome, while the last lines are still being read.
    ending: Option<Outcome>,
    outcome: Option<Outcome>,
    error_reported: bool,
    cancel: Option<Cancel>,
}

impl Turn {
    pub(super) fn new(id: TurnId, receiver: TurnReceiver, cancel: Cancel) -> Self {
        Self {
            id,
            receiver,
            lines: Lines::default(),
            ending: None,
            outcome: None,
            error_reported: false,
            cancel: Some(cancel),
        }
    }

    /// This turn's number within its instance.
    #[must_use]
    pub fn id(&self) -> TurnId {
        self.id
    }

    /// The next event; `None` after the last. A turn that ends without an answer gives its error as the last item.
    pub async fn next(&mut self) -> Option<Result<Event, TurnError>> {
        poll_fn(|context| self.poll_event(context)).await
    }

    /// Ends the turn early, while its reader reads on: the outcome comes as usual. `None` once the turn has ended.
    #[cfg(feature = "server")]
    pub(crate) fn interrupter(&self) -> Option<Interrupter> {
        self.cancel.clone().map(Interrupter)
    }

    /// How the turn ended; `None` until [`Turn::next`] has returned `None` or an error.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Reads to the end and returns the outcome; events not read yet are passed over. A failed turn has an outcome as well:
    /// [`Outcome::into_text`] has either the answer or the error.
    pub async fn finish(mut self) -> Outcome {
        while let Some(event) = self.next().await {
            if event.is_err() {
                break;
            }
        }
        self.outcome
            .clone()
            .unwrap_or_else(|| aborted(TurnError::Internal("the turn ended without an outcome")))
    }

    /// Whole lines, each with its LF, as many as have come: what [`Turn::next`] would cut into events.
    pub async fn next_lines(&mut self) -> Option<Result<Bytes, TurnError>> {
        poll_fn(|context| {
            let more = ready!(self.poll_lines(context));
            Poll::Ready(if more {
                Some(Ok(std::mem::take(&mut self.lines).into_bytes()))
            } else {
                self.last_item()
            })
        })
        .await
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Event, TurnError>>> {
        if !ready!(self.poll_lines(context)) {
            return Poll::Ready(self.last_item());
        }
        Poll::Ready(self.lines.next().map(|line| Ok(Event::new(line))))
    }

    /// Whether there are lines to read; false at the end of the turn.
    fn poll_lines(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        while self.lines.is_empty() {
            if self.ending.is_some() || self.outcome.is_some() {
                self.outcome = self.outcome.take().or_else(|| self.ending.take());
                return Poll::Ready(false);
            }
            match ready!(self.receiver.poll(context)) {
                Item::Lines(lines) => self.lines = lines,
                Item::End(end) => {
                    // From here on there is nothing to interrupt.
                    self.cancel = None;
                    self.lines = end.tail;
                    self.ending = Some(end.outcome);
                }
            }
        }
        Poll::Ready(true)
    }

    fn last_item<T>(&mut self) -> Option<Result<T, TurnError>> {
        match &self.outcome {
            Some(Outcome { status: Status::Aborted(error), .. }) if !self.error_reported => {
                self.error_reported = true;
                Some(Err(error.clone()))
            }
            _ => None,
        }
    }
}

/// Interrupts one turn, from any task. Without effect once the turn has ended.
#[cfg(feature = "server")]
#[derive(Clone)]
pub(crate) struct Interrupter(Cancel);

#[cfg(feature = "server")]
impl Interrupter {
    pub(crate) fn interrupt(&self) {
        (self.0)();
    }
}

impl Stream for Turn {
    type Item = Result<Event, TurnError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_event(context)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // First, so that the session finds the reader gone when the cancellation comes.
        self.receiver.close();
        if let Some(cancel) = self.cancel.take() {
            cancel();
        }
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("id", &self.id).finish_non_exhaustive()
    }
}
