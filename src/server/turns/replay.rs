//! Detached turns, and callers that reattach.
//!
//! With `on_disconnect = "detach"`, a task reads the turn into a ring of its latest events, each with an id; the
//! response reads from the ring. A caller that reattaches with `Last-Event-ID` gets the next event first, without loss
//! or repetition. While a caller is attached, the turn waits for a slow reader; otherwise the ring drops its oldest
//! events. The latest caller to attach supersedes the earlier one.

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
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::asynchronous::SETTLE_TIMEOUT;
use super::body::TurnBody;
use super::control::TurnControl;
use super::pending::event_stream;
use crate::config::WebhookEvent;
use crate::error::TurnError;
use crate::model::ids::UserId;
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::SessionName;
use crate::server::app::App;
use crate::server::net::connection::Closing;
use crate::server::webhooks::{EndedTurn, Webhooks};

mod ring;

pub(super) use ring::{Attached, Ring};

/// Retention of events after the end of a turn.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Maximum sessions with events. Beyond it, ended turns are dropped at once; running ones are bounded by the number of
/// children.
const MOST_KEPT: usize = 1024;
/// Maximum bytes of all events. Beyond it, ended turns are dropped at once: a document with files may exceed a ring a
/// hundredfold.
const MOST_BYTES: usize = 256 << 20;

type Key = (UserId, String);

pub(crate) struct Replays {
    /// Running turns of each session and the last ended one, in order of acceptance.
    kept: Arc<DashMap<Key, Vec<Arc<Ring>>>>,
    capacity: usize,
    held: Arc<AtomicUsize>,
    heartbeat: Duration,
    tasks: TaskTracker,
    /// Turns whose ends are not reported yet; a task of `tasks` outlives its turn.
    unreported: TaskTracker,
    closing: Closing,
    webhooks: Webhooks,
}

impl Replays {
    pub(crate) fn new(
        capacity: usize,
        heartbeat: Duration,
        tasks: TaskTracker,
        closing: Closing,
        webhooks: Webhooks,
    ) -> Self {
        let unreported = TaskTracker::new();
        Self {
            kept: Arc::default(),
            capacity,
            held: Arc::default(),
            heartbeat,
            tasks,
            unreported,
            closing,
            webhooks,
        }
    }

    /// Waits until the ends of all turns are reported, at most for a time. They have ended in their sessions.
    pub(crate) async fn settle(&self) {
        self.unreported.close();
        timeout(SETTLE_TIMEOUT, self.unreported.wait()).await.ok();
    }

    /// Whether ends of turns are reported that nobody is attached to.
    pub(super) fn reports_ends(&self) -> bool {
        self.webhooks.want(WebhookEvent::TurnEnded)
    }

    fn end(&self, user: &UserId, session: &str, control: Option<Arc<TurnControl>>) -> End {
        let (user, session) = (user.clone(), session.to_owned());
        End { webhooks: self.webhooks.clone(), user, session, control }
    }

    /// Streams the turn in a task, so that it survives its caller; returns the attached reader.
    pub(super) async fn detach(
        &self,
        user: &UserId,
        session: &str,
        form: ErrorForm,
        control: Option<Arc<TurnControl>>,
        begin: impl Future<Output = Result<TurnBody, ApiError>> + Send + 'static,
    ) -> Result<Attached, ApiError> {
        let (ring, attached) = self.keep(user, session, form);
        let (done, begun) = oneshot::channel();
        let (filling, end) = (ring.clone(), self.end(user, session, control));
        self.run(user, session, ring, async move {
            let mut answer = match begin.await {
                Ok(answer) => answer,
                Err(error) => {
                    filling.push_last(&error.body(None)).await;
                    if done.send(Err(error)).is_err() {
                        end.report();
                    }
                    return;
                }
            };
            // An error means that the caller has disconnected; it reattaches.
            done.send(Ok(())).ok();
            while let Some(frames) = poll_fn(|context| answer.poll_frames(context)).await {
                for event in split(&frames) {
                    filling.push(event).await;
                }
            }
            if !filling.is_attached() {
                end.report();
            }
        });
        begun.await.map_err(|_| TurnError::Internal("the turn was not read"))??;
        Ok(attached)
    }

    /// Collects the document in a task and keeps it as the only event of the turn.
    pub(super) async fn collect(
        &self,
        user: &UserId,
        session: &str,
        form: ErrorForm,
        control: Option<Arc<TurnControl>>,
        document: impl Future<Output = Result<Value, ApiError>> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let (ring, attached) = self.keep(user, session, form);
        drop(attached);
        let (done, answered) = oneshot::channel();
        let (filling, end) = (ring.clone(), self.end(user, session, control));
        self.run(user, session, ring, async move {
            let document = document.await;
            match &document {
                Ok(document) => filling.push_last(document).await,
                Err(error) => filling.push_last(&error.body(None)).await,
            }
            // Nobody waits: the caller comes back for it.
            if done.send(document).is_err() {
                end.report();
            }
        });
        let document = answered.await.map_err(|_| TurnError::Internal("the turn was not read"))??;
        Ok(Json(document).into_response())
    }

    /// Drops the events of a deleted session.
    pub(crate) fn forget(&self, user: &UserId, session: &str) {
        self.kept.remove(&(user.clone(), session.to_owned()));
    }

    /// Drops the events of a deleted user.
    pub(crate) fn forget_user(&self, user: &UserId) {
        self.kept.retain(|(owner, _), _| owner != user);
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
        let (ring, unreported) = (Ends(ring), self.unreported.token());
        self.tasks.spawn(async move {
            tokio::select! {
                () = filling => {}
                () = closing.now.cancelled() => {}
            }
            drop(unreported);
            let is_room = kept.len() <= MOST_KEPT && ring.0.all_held() <= MOST_BYTES;
            // From here on the list owns the events: a later turn may drop them.
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
        // Without an id: the running turn, else the last ended one.
        let found = match last {
            Some(last) => rings.iter().find(|ring| ring.is_of(last)),
            None => rings.iter().find(|ring| !ring.has_ended()),
        };
        Attached::again(found.unwrap_or(latest).clone(), last, self.heartbeat)
    }
}

/// The end of a turn that nobody is attached to.
struct End {
    webhooks: Webhooks,
    user: UserId,
    session: String,
    control: Option<Arc<TurnControl>>,
}

impl End {
    fn report(&self) {
        let Some(control) = &self.control else { return };
        let (error, spent) = (control.error(), control.spent());
        let (user, session) = (&self.user, &*self.session);
        self.webhooks.turn_ended(&EndedTurn { id: None, user, session, error, spent });
    }
}

/// Ends the ring when its task ends in any way, so that readers never wait forever.
struct Ends(Arc<Ring>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// `GET /v1/sessions/{id}/events`: reattaches to the running or last ended turn.
pub(crate) async fn attach(
    State(app): State<Arc<App>>,
    query: SessionQuery,
    SessionName(session): SessionName,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let user = query.subject()?;
    let attached = app.replays.attach(&user, &session, last_event_id(&headers)?)?;
    Ok(streamed(attached))
}

pub(super) fn last_event_id(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    match headers.get("last-event-id") {
        Some(value) => value.to_str().map(Some).map_err(|_| ring::unreadable()),
        None => Ok(None),
    }
}

pub(super) fn streamed(attached: Attached) -> Response {
    let form = attached.form();
    let mut response = event_stream(Body::from_stream(attached));
    response.extensions_mut().insert(form);
    response
}

/// Splits frames into events, each with its blank line.
pub(super) fn split(frames: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = frames;
    std::iter::from_fn(move || {
        let end = memchr::memmem::find(rest, b"\n\n").map_or(rest.len(), |at| at + 2);
        let (event, after) = rest.split_at_checked(end)?;
        rest = after;
        (!event.is_empty()).then_some(event)
    })
}

#[cfg(test)]
mod tests;
