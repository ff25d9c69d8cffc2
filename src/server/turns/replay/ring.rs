//! Ring of the latest events of one turn, and its reader.
//!
//! One task writes, at most one caller is attached. Attaching fixes the next event atomically, so that the ring cannot
//! drop it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::http::StatusCode;
use bytes::{BufMut, Bytes, BytesMut};
use futures_core::Stream;
use serde_json::Value;

use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::dialect::sse::{DONE, PING, event as frame};
use crate::server::turns::heartbeat::Heartbeat;
use crate::support::lock::MutexExt;

const AT_A_TIME: usize = 64 << 10;

/// Maximum size of an event's id line.
const ID_BYTES: usize = 64;

pub(in crate::server::turns) fn unreadable() -> ApiError {
    ApiError::invalid("invalid_header", "Last-Event-ID must be the id of an event of this session")
}

pub(in crate::server::turns) struct Ring {
    turn: String,
    capacity: usize,
    form: ErrorForm,
    held: Arc<AtomicUsize>,
    state: Mutex<RingState>,
}

#[derive(Default)]
struct RingState {
    events: VecDeque<Bytes>,
    bytes: usize,
    /// Number of the oldest event in the ring.
    first: u64,
    ended: bool,
    /// Attached reader, and its next event.
    attached: Option<(u64, u64)>,
    attachments: u64,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Ring {
    pub(in crate::server::turns) fn new(capacity: usize, form: ErrorForm, held: Arc<AtomicUsize>) -> Self {
        let turn = uuid::Uuid::new_v4().simple().to_string();
        Self { turn, capacity, form, held, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, RingState> {
        // Whole between two statements: a panic elsewhere leaves it usable.
        self.state.lock_unpoisoned()
    }

    /// Appends an event; waits for the attached reader if the ring is full.
    pub(in crate::server::turns) async fn push(&self, event: &[u8]) {
        if event == PING {
            // Readers have their own heartbeat.
            return;
        }
        // The end always fits, so that it never displaces a long answer.
        let is_end = event == DONE;
        poll_fn(|context| {
            let mut state = self.lock();
            let is_full = |state: &RingState| state.bytes + event.len() + ID_BYTES > self.capacity;
            while !is_end && is_full(&state) && !state.events.is_empty() {
                if state.attached.is_some_and(|(_, next)| next <= state.first) {
                    state.writer = Some(context.waker().clone());
                    return Poll::Pending;
                }
                let gone = state.events.pop_front().map_or(0, |event| event.len());
                state.bytes -= gone;
                self.held.fetch_sub(gone, Ordering::Relaxed);
                state.first += 1;
            }
            let number = state.first + state.events.len() as u64;
            let mut with_id = BytesMut::with_capacity(event.len() + ID_BYTES);
            with_id.put_slice(format!("id: {}-{number}\n", self.turn).as_bytes());
            with_id.put_slice(event);
            state.bytes += with_id.len();
            self.held.fetch_add(with_id.len(), Ordering::Relaxed);
            state.events.push_back(with_id.freeze());
            let reader = state.reader.take();
            drop(state);
            wake(reader);
            Poll::Ready(())
        })
        .await;
    }

    /// Appends the only event of a turn and the end.
    pub(super) async fn push_last(&self, event: &Value) {
        let mut frames = BytesMut::new();
        frame(event, &mut frames);
        self.push(&frames).await;
        self.push(DONE).await;
    }

    pub(in crate::server::turns) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        let reader = state.reader.take();
        drop(state);
        wake(reader);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    pub(in crate::server::turns) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    pub(super) fn is_attached(&self) -> bool {
        self.lock().attached.is_some()
    }

    /// Whether the first event is still there.
    pub(in crate::server::turns) fn is_whole(&self) -> bool {
        self.lock().first == 0
    }

    pub(super) fn all_held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn is_of(&self, id: &str) -> bool {
        id.rsplit_once('-').is_some_and(|(turn, _)| turn == self.turn)
    }

    /// Number of the event after this id.
    fn after(&self, state: &RingState, id: &str) -> Result<u64, ApiError> {
        let (_, number) = id.rsplit_once('-').ok_or_else(unreadable)?;
        let number: u64 = number.parse().map_err(|_| unreadable())?;
        if !self.is_of(id) {
            return Err(gone("this event belongs to a turn that is not kept any more"));
        }
        match number.checked_add(1) {
            Some(next) if next < state.first => Err(gone(
                "events after this one are not kept any more: the stream is longer than what is kept",
            )),
            Some(next) if next <= state.first + state.events.len() as u64 => Ok(next),
            _ => Err(unreadable()),
        }
    }
}

fn gone(message: &str) -> ApiError {
    ApiError::new(StatusCode::GONE, "events_gone", message)
}

/// Number of an event of the Responses API. It comes last, and no text can hold its name with unescaped quotes.
fn sequence(event: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"\"sequence_number\":";
    let at = memchr::memmem::rfind(event, NAME)?;
    let digits = event.get(at + NAME.len()..)?.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

impl Drop for Ring {
    fn drop(&mut self) {
        let state = self.state.lock_unpoisoned();
        self.held.fetch_sub(state.bytes, Ordering::Relaxed);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

pub(in crate::server::turns) struct Attached {
    ring: Arc<Ring>,
    number: u64,
    heartbeat: Heartbeat,
    /// Whether a later reader has superseded this one.
    is_superseded: bool,
}

impl Attached {
    pub(in crate::server::turns) fn form(&self) -> ErrorForm {
        self.ring.form
    }

    /// Reader of the caller that sent the request.
    pub(super) fn first(ring: Arc<Ring>, heartbeat: Duration) -> Self {
        let state = ring.lock();
        Self::at(&ring, state, 0, heartbeat)
    }

    /// Reader of a reattached caller: after the event `last`, else from the oldest.
    pub(in crate::server::turns) fn again(
        ring: Arc<Ring>,
        last: Option<&str>,
        heartbeat: Duration,
    ) -> Result<Self, ApiError> {
        let state = ring.lock();
        let next = last.map_or(Ok(state.first), |last| ring.after(&state, last))?;
        Ok(Self::at(&ring, state, next, heartbeat))
    }

    /// Reader of a stream whose events are numbered: after the one with the number `last`.
    pub(in crate::server::turns) fn after_sequence(
        ring: Arc<Ring>,
        last: u64,
        heartbeat: Duration,
    ) -> Result<Self, ApiError> {
        let state = ring.lock();
        let is_read = |event: &Bytes| sequence(event).is_some_and(|number| number <= last);
        let read = state.events.iter().rposition(is_read).map_or(0, |at| at + 1);
        let first = state.events.iter().find_map(|event| sequence(event));
        if state.first > 0 && first.is_none_or(|first| first > last + 1) {
            return Err(gone(
                "events after this one are not kept any more: the stream is longer than what is kept",
            ));
        }
        let next = state.first + read as u64;
        Ok(Self::at(&ring, state, next, heartbeat))
    }

    fn at(ring: &Arc<Ring>, mut state: MutexGuard<'_, RingState>, next: u64, heartbeat: Duration) -> Self {
        state.attachments += 1;
        let number = state.attachments;
        state.attached = Some((number, next));
        // Wakes the superseded reader, and the writer that waited for it.
        let wakers = (state.reader.take(), state.writer.take());
        drop(state);
        wake(wakers.0);
        wake(wakers.1);
        Self { ring: ring.clone(), number, heartbeat: Heartbeat::new(heartbeat), is_superseded: false }
    }

    pub(super) fn poll_events(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.ring.lock();
        let attached = state.attached.filter(|(number, _)| *number == self.number);
        let Some((number, next)) = attached else {
            self.is_superseded = true;
            return Poll::Ready(None);
        };
        // The ring drops no event before the reader's position.
        let mut at = usize::try_from(next.saturating_sub(state.first)).unwrap_or(usize::MAX);
        let mut events = BytesMut::new();
        while events.len() < AT_A_TIME
            && let Some(event) = state.events.get(at)
        {
            events.extend_from_slice(event);
            at += 1;
        }
        if !events.is_empty() {
            state.attached = Some((number, state.first + at as u64));
            let writer = state.writer.take();
            drop(state);
            wake(writer);
            self.heartbeat.reset();
            return Poll::Ready(Some(events.freeze()));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        state.reader = Some(context.waker().clone());
        drop(state);
        ready!(self.heartbeat.poll(context));
        Poll::Ready(Some(Bytes::from_static(PING)))
    }
}

impl Stream for Attached {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let events = ready!(this.poll_events(context));
        // An error, because the end would look like the end of the answer.
        let superseded = this.is_superseded.then(|| Err(io::ErrorKind::ConnectionAborted.into()));
        Poll::Ready(events.map(Ok).or(superseded))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut state = self.ring.lock();
        if state.attached.is_some_and(|(number, _)| number == self.number) {
            state.attached = None;
            let writer = state.writer.take();
            drop(state);
            wake(writer);
        }
    }
}

#[cfg(test)]
mod tests;
