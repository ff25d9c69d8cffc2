//! The latest events of one turn, and whoever reads them.
//!
//! One task writes, at most one caller is attached. Where the next reader begins is decided in the moment in which it is
//! attached, so that nothing of it is given up in between.

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

/// Events that go out at a time, in bytes.
const AT_A_TIME: usize = 64 << 10;

/// What an event's id adds to it, at most.
const ID_BYTES: usize = 64;

pub(super) fn unreadable() -> ApiError {
    ApiError::invalid("invalid_header", "Last-Event-ID must be the id of an event of this session")
}

/// The latest events of one turn.
pub(super) struct Ring {
    /// Tells this turn from others of its session.
    turn: String,
    capacity: usize,
    /// Of what dialect the events are.
    form: ErrorForm,
    /// Bytes of all rings.
    held: Arc<AtomicUsize>,
    state: Mutex<RingState>,
}

#[derive(Default)]
struct RingState {
    events: VecDeque<Bytes>,
    bytes: usize,
    /// The number of the oldest event that is kept.
    first: u64,
    ended: bool,
    /// Who is attached, by number, and what it reads next.
    attached: Option<(u64, u64)>,
    attachments: u64,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Ring {
    pub(super) fn new(capacity: usize, form: ErrorForm, held: Arc<AtomicUsize>) -> Self {
        let turn = uuid::Uuid::new_v4().simple().to_string();
        Self { turn, capacity, form, held, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, RingState> {
        // Whole between two statements: a panic elsewhere leaves it usable.
        self.state.lock_unpoisoned()
    }

    /// Adds an event, when there is room for it: the attached reader is waited for.
    pub(super) async fn push(&self, event: &[u8]) {
        if event == PING {
            // Whoever is attached makes its own.
            return;
        }
        // The end always fits: an answer as long as the ring must not be given up for it.
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

    /// The only event of a turn, and the end.
    pub(super) async fn push_last(&self, told: &Value) {
        let mut frames = BytesMut::new();
        frame(told, &mut frames);
        self.push(&frames).await;
        self.push(DONE).await;
    }

    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        let reader = state.reader.take();
        drop(state);
        wake(reader);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Bytes that all rings hold.
    pub(super) fn all_held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether the event of this id belongs to this turn.
    pub(super) fn is_of(&self, id: &str) -> bool {
        id.rsplit_once('-').is_some_and(|(turn, _)| turn == self.turn)
    }

    /// The number of the event after that with this id.
    fn after(&self, state: &RingState, id: &str) -> Result<u64, ApiError> {
        let (_, number) = id.rsplit_once('-').ok_or_else(unreadable)?;
        let number: u64 = number.parse().map_err(|_| unreadable())?;
        let gone = |message| ApiError::new(StatusCode::GONE, "events_gone", message);
        if !self.is_of(id) {
            return Err(gone("this event belongs to a turn that is not kept any more"));
        }
        match number.checked_add(1) {
            Some(next) if next < state.first => {
                Err(gone("events after this one are not kept any more (http.replay_bytes)"))
            }
            Some(next) if next <= state.first + state.events.len() as u64 => Ok(next),
            _ => Err(unreadable()),
        }
    }
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

/// A caller that reads a ring.
pub(in crate::server::turns) struct Attached {
    ring: Arc<Ring>,
    number: u64,
    heartbeat: Heartbeat,
    /// Somebody else has it now.
    is_superseded: bool,
}

impl Attached {
    /// Of what dialect the events are.
    pub(super) fn form(&self) -> ErrorForm {
        self.ring.form
    }

    /// The caller whose turn it is.
    pub(super) fn first(ring: Arc<Ring>, heartbeat: Duration) -> Self {
        let state = ring.lock();
        Self::at(&ring, state, 0, heartbeat)
    }

    /// One that comes back: after the event with the id `last`, else with the oldest there is.
    pub(super) fn again(ring: Arc<Ring>, last: Option<&str>, heartbeat: Duration) -> Result<Self, ApiError> {
        let state = ring.lock();
        let next = last.map_or(Ok(state.first), |last| ring.after(&state, last))?;
        Ok(Self::at(&ring, state, next, heartbeat))
    }

    fn at(ring: &Arc<Ring>, mut state: MutexGuard<'_, RingState>, next: u64, heartbeat: Duration) -> Self {
        state.attachments += 1;
        let number = state.attachments;
        state.attached = Some((number, next));
        // The one before finds that it is no longer attached; what waited for it goes on.
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
        // Nothing is given up that is still to be read.
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
        // Cut off, not ended: its reader must not take it for the end of the answer.
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
mod tests {
    use super::*;

    fn holding(capacity: usize) -> Arc<Ring> {
        Arc::new(Ring::new(capacity, ErrorForm::Own, Arc::default()))
    }

    fn back(ring: &Arc<Ring>, last: &str) -> Result<Attached, ApiError> {
        Attached::again(ring.clone(), Some(last), Duration::from_secs(10))
    }

    fn text(polled: Poll<Option<Bytes>>) -> Option<String> {
        match polled {
            Poll::Ready(Some(bytes)) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
            Poll::Ready(None) => Some("end".to_owned()),
            Poll::Pending => None,
        }
    }

    async fn now(attached: &mut Attached) -> Option<String> {
        poll_fn(|context| Poll::Ready(text(attached.poll_events(context)))).await
    }

    fn event(number: u32) -> Vec<u8> {
        format!("data: {number}\n\n").into_bytes()
    }

    fn numbers(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
    }

    fn last_id(text: &str) -> &str {
        text.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_back_goes_on_where_it_left() {
        let ring = holding(1 << 20);
        let mut first = Attached::first(ring.clone(), Duration::from_secs(10));
        for number in 0..3 {
            ring.push(&event(number)).await;
        }
        let seen = now(&mut first).await.unwrap();
        assert_eq!(numbers(&seen), ["0", "1", "2"]);
        drop(first);
        ring.push(&event(3)).await;
        let mut second = back(&ring, last_id(&seen)).unwrap();
        assert_eq!(numbers(&now(&mut second).await.unwrap()), ["3"]);
        assert_eq!(now(&mut second).await, None);
        let silent = tokio::time::Instant::now();
        let ping = poll_fn(|context| second.poll_events(context)).await;
        assert_eq!((ping.as_deref(), silent.elapsed()), (Some(PING), Duration::from_secs(10)));
        ring.end();
        assert_eq!(now(&mut second).await.as_deref(), Some("end"));
    }

    #[tokio::test]
    async fn the_ring_waits_for_a_reader_and_runs_over_without_one() {
        let ring = holding(200);
        let mut attached = Attached::first(ring.clone(), Duration::from_secs(10));
        let writing = async {
            for number in 0..20 {
                ring.push(&event(number)).await;
            }
            ring.end();
        };
        let reading = async {
            let mut all = String::new();
            while let Some(events) = poll_fn(|context| attached.poll_events(context)).await {
                all.push_str(std::str::from_utf8(&events).unwrap());
            }
            all
        };
        let ((), all) = tokio::join!(writing, reading);
        assert_eq!(numbers(&all).len(), 20, "{all}");

        let ring = holding(200);
        for number in 0..20 {
            ring.push(&event(number)).await;
        }
        assert!(ring.lock().first > 10 && ring.lock().bytes <= 200);
        let gone = back(&ring, &format!("{}-0", ring.turn)).err().unwrap();
        assert_eq!(gone.status(), StatusCode::GONE);
        assert_eq!(back(&ring, "other-19").err().unwrap().status(), StatusCode::GONE);
        for wrong in ["", "x", "x-y", &format!("{}-20", ring.turn)] {
            assert_eq!(back(&ring, wrong).err().unwrap().status(), StatusCode::BAD_REQUEST, "{wrong}");
        }
    }

    #[tokio::test]
    async fn the_last_one_who_attaches_has_it() {
        let ring = holding(1 << 20);
        let mut first = Attached::first(ring.clone(), Duration::from_secs(10));
        let mut second = Attached::first(ring.clone(), Duration::from_secs(10));
        ring.push(&event(1)).await;
        assert_eq!(now(&mut first).await.as_deref(), Some("end"));
        drop(first);
        assert_eq!(numbers(&now(&mut second).await.unwrap()), ["1"]);
    }

    #[tokio::test]
    async fn a_document_longer_than_the_ring_is_kept_with_its_end() {
        let ring = holding(200);
        ring.push_last(&Value::String("x".repeat(1000))).await;
        ring.end();
        let mut attached = Attached::again(ring, None, Duration::from_secs(10)).unwrap();
        let all = now(&mut attached).await.unwrap();
        assert!(all.contains("xxx") && all.ends_with("data: [DONE]\n\n"), "{all}");
    }
}
