//! Turns that go on without their caller, and callers who come back.
//!
//! With `on_disconnect = "detach"` a turn is read by a task of its own, from its acceptance on, into a ring of its latest
//! events, each with an id; the response reads from the ring. Whoever comes back with the id of the last event that was
//! seen (`Last-Event-ID`) gets the next one first: nothing is lost or told twice. While somebody is attached the ring does
//! not run over: the turn waits for a slow reader as it would without a ring. While nobody is, the oldest events are
//! given up for new ones. Whoever attaches last has it; the connection before is ended.

use std::future::poll_fn;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use dashmap::DashMap;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::body::TurnBody;
use super::pending::event_stream;
use crate::error::TurnError;
use crate::model::ids::UserId;
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::Name;
use crate::server::app::App;
use crate::server::net::connection::Closing;

mod ring;

use ring::{Attached, Ring};

/// How long the events of a turn that has ended are kept for a caller who comes back.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Sessions whose events are kept at once. Beyond it turns that have ended are given up at once; running ones are
/// bounded by the children there may be.
const MOST_KEPT: usize = 1024;
/// Bytes of all events that are kept. Beyond it turns that have ended are given up at once, too: a document with files
/// may be a hundred times as long as a ring is meant to be.
const MOST_BYTES: usize = 256 << 20;

type Key = (UserId, String);

/// The turns that go on without their callers.
pub(crate) struct Replays {
    /// The turns of each session that have not ended, and the one that ended last, in the order of their acceptance.
    kept: Arc<DashMap<Key, Vec<Arc<Ring>>>>,
    /// Bytes of events per turn.
    capacity: usize,
    /// Bytes of all events.
    held: Arc<AtomicUsize>,
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
    pub(crate) fn new(capacity: usize, heartbeat: Duration, tasks: TaskTracker, closing: Closing) -> Self {
        Self { kept: Arc::default(), capacity, held: Arc::default(), heartbeat, tasks, closing }
    }

    /// Has the answer begun and read by a task of its own, so that it goes on if its caller leaves before its first
    /// event; what is returned is attached to it.
    pub(super) async fn detach(
        &self,
        user: &UserId,
        session: &str,
        form: ErrorForm,
        begin: impl Future<Output = Result<TurnBody, ApiError>> + Send + 'static,
    ) -> Result<Attached, ApiError> {
        let (ring, attached) = self.keep(user, session, form);
        let (done, begun) = oneshot::channel();
        let filling = ring.clone();
        self.run(user, session, ring, async move {
            let mut answer = match begin.await {
                Ok(answer) => answer,
                Err(error) => {
                    filling.push_last(&error.body(None)).await;
                    done.send(Err(error)).ok();
                    return;
                }
            };
            // Nobody waits: the caller comes back for it.
            done.send(Ok(())).ok();
            while let Some(frames) = poll_fn(|context| answer.poll_frames(context)).await {
                for event in split(&frames) {
                    filling.push(event).await;
                }
            }
        });
        begun.await.map_err(|_| TurnError::Internal("the turn was not read"))??;
        Ok(attached)
    }

    /// Has the document made by a task of its own; it is kept as the one event of its turn.
    pub(super) async fn collect(
        &self,
        user: &UserId,
        session: &str,
        form: ErrorForm,
        document: impl Future<Output = Result<Value, ApiError>> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let (ring, attached) = self.keep(user, session, form);
        drop(attached);
        let (done, answered) = oneshot::channel();
        let filling = ring.clone();
        self.run(user, session, ring, async move {
            let document = document.await;
            match &document {
                Ok(document) => filling.push_last(document).await,
                Err(error) => filling.push_last(&error.body(None)).await,
            }
            // Nobody waits: the caller comes back for it.
            done.send(document).ok();
        });
        let document = answered.await.map_err(|_| TurnError::Internal("the turn was not read"))??;
        Ok(Json(document).into_response())
    }

    /// Gives up what is kept of a session that is deleted.
    pub(crate) fn forget(&self, user: &UserId, session: &str) {
        self.kept.remove(&(user.clone(), session.to_owned()));
    }

    fn keep(&self, user: &UserId, session: &str, form: ErrorForm) -> (Arc<Ring>, Attached) {
        let ring = Arc::new(Ring::new(self.capacity, form, self.held.clone()));
        let mut kept = self.kept.entry((user.clone(), session.to_owned())).or_default();
        let last = kept.iter().rposition(|ring| ring.has_ended());
        let mut number = 0..;
        kept.retain(|ring| number.next() == last || !ring.has_ended());
        kept.push(ring.clone());
        drop(kept);
        let attached = Attached::first(ring.clone(), self.heartbeat);
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
        let ring = Ends(ring);
        self.tasks.spawn(async move {
            tokio::select! {
                () = filling => {}
                () = closing.now.cancelled() => {}
            }
            let is_room = kept.len() <= MOST_KEPT && ring.0.all_held() <= MOST_BYTES;
            // Its events are the list's from here on: a later turn of the session may have them given up.
            let ended = Arc::downgrade(&ring.0);
            drop(ring);
            if is_room {
                closing.or(sleep(KEPT_FOR)).await;
            }
            kept.remove_if_mut(&key, |_, rings| {
                rings.retain(|ring| !Weak::ptr_eq(&Arc::downgrade(ring), &ended));
                rings.is_empty()
            });
        });
    }

    fn attach(&self, user: &UserId, session: &str, last: Option<&str>) -> Result<Attached, ApiError> {
        let rings = self.kept.get(&(user.clone(), session.to_owned())).map(|found| found.value().clone());
        let rings = rings.unwrap_or_default();
        let latest = rings.last().ok_or_else(|| {
            let message = "no turn of this session is kept: none ran lately with on_disconnect = \"detach\"";
            ApiError::new(StatusCode::NOT_FOUND, "no_kept_turn", message)
        })?;
        // Without an id: the turn that runs, else the one that has just ended.
        let found = match last {
            Some(last) => rings.iter().find(|ring| ring.is_of(last)),
            None => rings.iter().find(|ring| !ring.has_ended()),
        };
        Attached::again(found.unwrap_or(latest).clone(), last, self.heartbeat)
    }
}

/// A ring that ends with the task that fills it, however that ends: its reader must not wait for ever.
struct Ends(Arc<Ring>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// `GET /v1/sessions/{id}/events`: the running turn, or the one that has just ended, from where the caller left it.
pub(crate) async fn attach(
    State(app): State<Arc<App>>,
    query: SessionQuery,
    Name(session): Name,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let user = query.subject()?;
    let last = match headers.get("last-event-id") {
        Some(value) => Some(value.to_str().map_err(|_| ring::unreadable())?),
        None => None,
    };
    let attached = app.replays().attach(&user, &session, last)?;
    let form = attached.form();
    let mut response = event_stream(Body::from_stream(attached));
    response.extensions_mut().insert(form);
    Ok(response)
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

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn replays() -> Replays {
        let closing = Closing { gracefully: CancellationToken::new(), now: CancellationToken::new() };
        Replays::new(1 << 20, Duration::from_secs(10), TaskTracker::new(), closing)
    }

    async fn read(mut attached: Attached) -> String {
        let mut all = String::new();
        while let Some(events) = poll_fn(|context| attached.poll_events(context)).await {
            all.push_str(std::str::from_utf8(&events).unwrap());
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_waits_does_not_hide_the_one_that_runs() {
        let (replays, alice) = (replays(), UserId::new("alice").unwrap());
        let begin = async |name: &'static str| {
            let (ring, attached) = replays.keep(&alice, "s", ErrorForm::Own);
            let (end, ended) = oneshot::channel::<()>();
            let filling = ring.clone();
            replays.run(&alice, "s", ring, async move {
                filling.push(format!("data: {name}\n\n").as_bytes()).await;
                ended.await.ok();
            });
            drop(attached);
            tokio::task::yield_now().await;
            end
        };
        let attach = |last: Option<&str>| replays.attach(&alice, "s", last);
        let first = begin("first").await;
        let second = begin("second").await;
        let mut running = attach(None).unwrap();
        let seen = poll_fn(|context| running.poll_events(context)).await.unwrap();
        assert!(seen.ends_with(b"data: first\n\n"), "{seen:?}");
        let seen = String::from_utf8(seen.to_vec()).unwrap();
        let id = seen.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
        drop(running);
        drop(first);
        tokio::task::yield_now().await;
        // It has just ended, while the other one runs.
        assert_eq!(read(attach(Some(&id)).unwrap()).await, "");
        drop(second);
        assert!(read(attach(None).unwrap()).await.ends_with("data: second\n\n"));
        let third = begin("third").await;
        assert_eq!(replays.kept.iter().map(|rings| rings.len()).sum::<usize>(), 2, "one of the ended");
        assert_eq!(attach(Some(&id)).err().unwrap().status(), StatusCode::GONE);
        drop(third);
        tokio::time::sleep(KEPT_FOR * 2).await;
        assert!(replays.kept.is_empty());
        assert_eq!(attach(None).err().unwrap().status(), StatusCode::NOT_FOUND);
        assert_eq!(replays.held.load(std::sync::atomic::Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_does_not_wait_for_a_task_that_failed() {
        let (replays, alice) = (replays(), UserId::new("alice").unwrap());
        let (ring, attached) = replays.keep(&alice, "s", ErrorForm::Own);
        replays.run(&alice, "s", ring, async { panic!("as a test") });
        let read = tokio::time::timeout(KEPT_FOR, read(attached)).await;
        assert_eq!(read.expect("the end"), "");
    }

    #[test]
    fn frames_are_split_into_events() {
        let events: Vec<_> = split(b"event: a\ndata: 1\n\n: c\n\ndata: 2\n\n").collect();
        assert_eq!(events, [&b"event: a\ndata: 1\n\n"[..], b": c\n\n", b"data: 2\n\n"]);
        assert_eq!(split(b"").count(), 0);
    }
}
