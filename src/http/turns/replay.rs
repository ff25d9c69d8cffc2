//! Turns that go on without their caller, and callers who come back.
//!
//! With `on_disconnect = "detach"` a turn is read by a task of its own into a ring of its latest events, each with an
//! id; the response reads from the ring. Whoever comes back with the id of the last event that was seen
//! (`Last-Event-ID`) gets the next one first: nothing is lost or told twice. While somebody is attached the ring does
//! not run over: the turn waits for a slow reader as it would without a ring. While nobody is, the oldest events are
//! given up for new ones. Whoever attaches last has it; the connection before is ended.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use dashmap::DashMap;
use futures_core::Stream;
use serde_json::Value;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::answer::Answer;
use super::events;
use super::silence::Silence;
use crate::error::TurnError;
use crate::http::app::App;
use crate::http::connection::Closing;
use crate::http::error::ApiError;
use crate::http::query::Inquiry;
use crate::http::sessions::Name;
use crate::http::wire::{DONE, PING};
use crate::ids::UserId;

/// How long the events of a turn that has ended are kept for a caller who comes back.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Turns whose events are kept at once. Beyond it those that have ended are given up at once; running ones are bounded
/// by the children there may be.
const MOST_KEPT: usize = 1024;
/// Events that go out at a time, in bytes.
const AT_A_TIME: usize = 64 << 10;

/// What an event's id adds to it, at most.
const ID_BYTES: usize = 64;

type Key = (UserId, String);

/// The turns that go on without their callers.
pub(in crate::http) struct Replays {
    kept: Arc<DashMap<Key, Arc<Ring>>>,
    /// Bytes of events per turn.
    capacity: usize,
    heartbeat: Duration,
    tasks: TaskTracker,
    closing: Closing,
}

impl std::fmt::Debug for Replays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Replays({})", self.kept.len())
    }
}

impl Replays {
    pub(in crate::http) fn new(
        capacity: usize,
        heartbeat: Duration,
        tasks: TaskTracker,
        closing: Closing,
    ) -> Self {
        Self { kept: Arc::default(), capacity, heartbeat, tasks, closing }
    }

    /// Has the answer read by a task of its own; what is returned is attached to it.
    pub(super) fn detach(&self, user: &UserId, session: &str, mut answer: Answer) -> Attached {
        let (ring, attached) = self.keep(user, session);
        let filling = ring.clone();
        self.run(user, session, ring, async move {
            while let Some(frames) = poll_fn(|context| answer.poll_frames(context)).await {
                for event in split(&frames) {
                    filling.push(event).await;
                }
            }
        });
        attached
    }

    /// Has the document made by a task of its own; it is kept as the one event of its turn.
    pub(super) async fn collect(
        &self,
        user: &UserId,
        session: &str,
        document: impl Future<Output = Result<Value, ApiError>> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let (ring, attached) = self.keep(user, session);
        drop(attached);
        let (done, answered) = tokio::sync::oneshot::channel();
        let filling = ring.clone();
        self.run(user, session, ring, async move {
            let document = document.await;
            let told = match &document {
                Ok(document) => document.clone(),
                Err(error) => error.body(None),
            };
            let mut frames = BytesMut::new();
            crate::http::wire::event(&told, &mut frames);
            filling.push(&frames).await;
            filling.push(DONE).await;
            // Nobody waits: the caller comes back for it.
            done.send(document).ok();
        });
        let document = answered.await.map_err(|_| TurnError::Internal("the turn was not read"))??;
        Ok(Json(document).into_response())
    }

    fn keep(&self, user: &UserId, session: &str) -> (Arc<Ring>, Attached) {
        let ring = Arc::new(Ring::new(self.capacity));
        self.kept.insert((user.clone(), session.to_owned()), ring.clone());
        let attached = Attached::new(ring.clone(), 0, self.heartbeat);
        (ring, attached)
    }

    fn run(
        &self,
        user: &UserId,
        session: &str,
        ring: Arc<Ring>,
        filling: impl Future<Output = ()> + Send + 'static,
    ) {
        let (key, kept, closing) =
            ((user.clone(), session.to_owned()), self.kept.clone(), self.closing.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = filling => {}
                () = closing.now.cancelled() => {}
            }
            ring.end();
            if kept.len() <= MOST_KEPT {
                closing.or(sleep(KEPT_FOR)).await;
            }
            kept.remove_if(&key, |_, other| Arc::ptr_eq(other, &ring));
        });
    }

    fn attach(&self, user: &UserId, session: &str, last: Option<&str>) -> Result<Attached, ApiError> {
        let found = self.kept.get(&(user.clone(), session.to_owned())).map(|found| found.value().clone());
        let ring = found.ok_or_else(|| {
            let message = "no turn of this session is kept: none ran lately with on_disconnect = \"detach\"";
            ApiError::new(StatusCode::NOT_FOUND, "no_kept_turn", message)
        })?;
        let next = match last {
            Some(last) => ring.after(last)?,
            None => ring.oldest(),
        };
        Ok(Attached::new(ring, next, self.heartbeat))
    }
}

/// `GET /v1/sessions/{id}/events`: the running turn, or the one that has just ended, from where the caller left it.
pub(in crate::http) async fn attach(
    State(app): State<Arc<App>>,
    inquiry: Inquiry,
    Name(session): Name,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let user = inquiry.subject()?;
    let last = match headers.get("last-event-id") {
        Some(value) => Some(value.to_str().map_err(|_| unreadable())?),
        None => None,
    };
    Ok(events(Body::from_stream(app.replays().attach(&user, &session, last)?)))
}

fn unreadable() -> ApiError {
    ApiError::invalid("invalid_header", "Last-Event-ID must be the id of an event of this session")
}

/// Events in whole, each with its blank line.
fn split(frames: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = frames;
    std::iter::from_fn(move || {
        let end = memchr::memmem::find(rest, b"\n\n").map_or(rest.len(), |at| at + 2);
        let (event, after) = rest.split_at_checked(end)?;
        rest = after;
        (!event.is_empty()).then_some(event)
    })
}

/// The latest events of one turn.
struct Ring {
    /// Tells this turn from others of its session.
    turn: String,
    capacity: usize,
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
    fn new(capacity: usize) -> Self {
        Self { turn: uuid::Uuid::new_v4().simple().to_string(), capacity, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, RingState> {
        // Whole between two statements: a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, when there is room for it: the attached reader is waited for.
    async fn push(&self, event: &[u8]) {
        if event == PING {
            // Whoever is attached makes its own.
            return;
        }
        poll_fn(|context| {
            let mut state = self.lock();
            while state.bytes + event.len() + ID_BYTES > self.capacity && !state.events.is_empty() {
                if state.attached.is_some_and(|(_, next)| next <= state.first) {
                    state.writer = Some(context.waker().clone());
                    return Poll::Pending;
                }
                let gone = state.events.pop_front().map_or(0, |event| event.len());
                state.bytes -= gone;
                state.first += 1;
            }
            let number = state.first + state.events.len() as u64;
            let mut with_id = BytesMut::with_capacity(event.len() + ID_BYTES);
            with_id.put_slice(format!("id: {}-{number}\n", self.turn).as_bytes());
            with_id.put_slice(event);
            state.bytes += with_id.len();
            state.events.push_back(with_id.freeze());
            let reader = state.reader.take();
            drop(state);
            wake(reader);
            Poll::Ready(())
        })
        .await;
    }

    fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        let reader = state.reader.take();
        drop(state);
        wake(reader);
    }

    fn oldest(&self) -> u64 {
        self.lock().first
    }

    /// The number of the event after that with this id.
    fn after(&self, id: &str) -> Result<u64, ApiError> {
        let (turn, number) = id.rsplit_once('-').ok_or_else(unreadable)?;
        let number: u64 = number.parse().map_err(|_| unreadable())?;
        let gone = |message| ApiError::new(StatusCode::GONE, "events_gone", message);
        if turn != self.turn {
            return Err(gone("this event belongs to a turn that is not kept any more"));
        }
        let state = self.lock();
        match number.checked_add(1) {
            Some(next) if next < state.first => {
                Err(gone("events after this one are not kept any more (http.replay_bytes)"))
            }
            Some(next) if next <= state.first + state.events.len() as u64 => Ok(next),
            _ => Err(unreadable()),
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// A caller that reads a ring.
pub(super) struct Attached {
    ring: Arc<Ring>,
    number: u64,
    silence: Silence,
}

impl Attached {
    fn new(ring: Arc<Ring>, next: u64, heartbeat: Duration) -> Self {
        let mut state = ring.lock();
        state.attachments += 1;
        let number = state.attachments;
        state.attached = Some((number, next));
        // The one before finds that it is no longer attached; what waited for it goes on.
        let wakers = (state.reader.take(), state.writer.take());
        drop(state);
        wake(wakers.0);
        wake(wakers.1);
        Self { ring, number, silence: Silence::new(heartbeat) }
    }

    fn poll_events(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.ring.lock();
        let Some((number, next)) = state.attached else { return Poll::Ready(None) };
        if number != self.number {
            return Poll::Ready(None);
        }
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
            self.silence.broken();
            return Poll::Ready(Some(events.freeze()));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        state.reader = Some(context.waker().clone());
        drop(state);
        ready!(self.silence.poll(context));
        Poll::Ready(Some(Bytes::from_static(PING)))
    }
}

impl Stream for Attached {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_events(context).map(|events| events.map(Ok))
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
    use tokio::time::Instant;

    use super::*;

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
        let ring = Arc::new(Ring::new(1 << 20));
        let mut first = Attached::new(ring.clone(), 0, Duration::from_secs(10));
        for number in 0..3 {
            ring.push(&event(number)).await;
        }
        let seen = now(&mut first).await.unwrap();
        assert_eq!(numbers(&seen), ["0", "1", "2"]);
        drop(first);
        ring.push(&event(3)).await;
        let next = ring.after(last_id(&seen)).unwrap();
        let mut second = Attached::new(ring.clone(), next, Duration::from_secs(10));
        assert_eq!(numbers(&now(&mut second).await.unwrap()), ["3"]);
        assert_eq!(now(&mut second).await, None);
        let silent = Instant::now();
        let ping = poll_fn(|context| second.poll_events(context)).await;
        assert_eq!((ping.as_deref(), silent.elapsed()), (Some(PING), Duration::from_secs(10)));
        ring.end();
        assert_eq!(now(&mut second).await.as_deref(), Some("end"));
    }

    #[tokio::test]
    async fn the_ring_waits_for_a_reader_and_runs_over_without_one() {
        let ring = Arc::new(Ring::new(200));
        let mut attached = Attached::new(ring.clone(), 0, Duration::from_secs(10));
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

        let ring = Ring::new(200);
        for number in 0..20 {
            ring.push(&event(number)).await;
        }
        assert!(ring.oldest() > 10 && ring.lock().bytes <= 200);
        let gone = ring.after(&format!("{}-0", ring.turn)).unwrap_err();
        assert_eq!(gone.status(), StatusCode::GONE);
        assert_eq!(ring.after("other-19").unwrap_err().status(), StatusCode::GONE);
        for wrong in ["", "x", "x-y", &format!("{}-20", ring.turn)] {
            assert_eq!(ring.after(wrong).unwrap_err().status(), StatusCode::BAD_REQUEST, "{wrong}");
        }
    }

    #[tokio::test]
    async fn the_last_one_who_attaches_has_it() {
        let ring = Arc::new(Ring::new(1 << 20));
        let mut first = Attached::new(ring.clone(), 0, Duration::from_secs(10));
        let mut second = Attached::new(ring.clone(), 0, Duration::from_secs(10));
        ring.push(&event(1)).await;
        assert_eq!(now(&mut first).await.as_deref(), Some("end"));
        drop(first);
        assert_eq!(numbers(&now(&mut second).await.unwrap()), ["1"]);
    }

    #[test]
    fn frames_are_split_into_events() {
        let events: Vec<_> = split(b"event: a\ndata: 1\n\n: c\n\ndata: 2\n\n").collect();
        assert_eq!(events, [&b"event: a\ndata: 1\n\n"[..], b": c\n\n", b"data: 2\n\n"]);
        assert_eq!(split(b"").count(), 0);
    }
}
