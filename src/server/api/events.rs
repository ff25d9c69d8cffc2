//! `GET /v1/events/stream`: recent and new events of the sessions that the caller may see.
//!
//! A stream reads the core's event log at its own pace, without a task or a queue; a reader that falls behind gets a
//! `missed` event. A stream ends after a time limit, so that the key is checked again; clients reconnect. Event numbers
//! are not shown, because they reveal the activity of other users. Each stream holds a connection, so their number per
//! user is limited.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::{encode, seconds};
use crate::server::app::App;
use crate::server::dialect::sse::{self, PING};
use crate::support::lock::MutexExt;
use crate::telemetry::events::{EventKind, EventStream, Exit, SessionEvent};

/// Time limit of one stream; after a reconnect its key is checked again.
const MAX_DURATION: Duration = Duration::from_secs(300);

/// Maximum concurrent streams of the same user's sessions, or of all sessions: a few people with a few windows each.
const MAX_STREAMS: u32 = 32;
/// Retry delay beyond that limit: people close windows.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Date since which `/v1/happenings` is deprecated (RFC 9745): 28 November 2026.
const DEPRECATED_SINCE: &str = "@1795824000";

#[derive(Debug)]
pub(crate) struct EventStreams {
    heartbeat: Duration,
    /// Cancelled when the service stops.
    closing: CancellationToken,
    streams: Arc<Streams>,
}

impl EventStreams {
    pub(crate) fn new(heartbeat: Duration, closing: CancellationToken) -> Self {
        Self { heartbeat, closing, streams: Arc::default() }
    }
}

/// Open streams, by the user whose sessions they show; those of the operator together.
#[derive(Debug, Default)]
struct Streams(Mutex<HashMap<Option<UserId>, u32>>);

impl Streams {
    fn open(self: &Arc<Self>, user: Option<UserId>) -> Result<StreamSlot, ApiError> {
        let mut open = self.0.lock_unpoisoned();
        let count = open.entry(user.clone()).or_default();
        if *count >= MAX_STREAMS {
            let message = format!("{MAX_STREAMS} streams of these events are open already");
            return Err(ApiError::limited("too_many_streams", message, RETRY_AFTER));
        }
        *count += 1;
        Ok(StreamSlot { streams: self.clone(), user })
    }
}

struct StreamSlot {
    streams: Arc<Streams>,
    /// Owner of the shown sessions; all sessions without one.
    user: Option<UserId>,
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let mut open = self.streams.0.lock_unpoisoned();
        if let Some(count) = open.get_mut(&self.user) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.user);
            }
        }
    }
}

/// `GET /v1/events/stream`.
pub(crate) async fn stream(State(app): State<Arc<App>>, query: SessionQuery) -> Result<Response, ApiError> {
    let user = if query.is_about_all() { None } else { Some(query.subject()?) };
    let heartbeat = app.event_streams.heartbeat;
    let hello = json!({
        "type": "hello",
        "version": env!("CARGO_PKG_VERSION"),
        "sees": if user.is_none() { "all" } else { "own" },
        "speaks_for": query.caller.speaks_for(),
        "heartbeat_seconds": heartbeat.as_secs_f64(),
    });
    let events = Events { events: app.pilot.events(), user: user.clone(), last: None };
    let counted = user.and_then(|user| query.streams_of(user));
    response(&app.event_streams, counted, &hello, Some(events))
}

/// A stream of events, with heartbeats, until its time is over or `source` ends; of `None` only the first event.
/// `user`: whose streams it counts among.
pub(crate) fn response<S: Source + 'static>(
    limits: &EventStreams,
    user: Option<UserId>,
    first: &Value,
    source: Option<S>,
) -> Result<Response, ApiError> {
    let EventStreams { heartbeat, closing, streams } = limits;
    let slot = streams.open(user)?;
    let until = Instant::now() + MAX_DURATION;
    let reader = source.map(|source| Reader {
        source,
        _slot: slot,
        heartbeat: *heartbeat,
        closing: closing.clone(),
        until,
    });
    let mut frames = BytesMut::new();
    sse::event(first, &mut frames);
    let step: Step<S> = Some((frames.freeze(), reader));
    let body = Body::from_stream(Frames { step: Some(Box::pin(std::future::ready(step))) });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, body).into_response())
}

/// Where the frames of a stream come from.
pub(crate) trait Source: Send {
    /// The next frames; `None` at the end. Loses nothing if it is dropped.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// `GET /v1/happenings`: deprecated alias of [`stream`].
pub(crate) async fn deprecated(app: State<Arc<App>>, query: SessionQuery) -> Result<Response, ApiError> {
    let mut response = stream(app, query).await?;
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("deprecation"), HeaderValue::from_static(DEPRECATED_SINCE));
    headers.insert(header::LINK, HeaderValue::from_static("</v1/events/stream>; rel=\"successor-version\""));
    Ok(response)
}

struct Reader<S> {
    source: S,
    _slot: StreamSlot,
    heartbeat: Duration,
    closing: CancellationToken,
    until: Instant,
}

impl<S: Source> Reader<S> {
    /// The next frames and the reader; `None` at the end.
    async fn next(mut self) -> Step<S> {
        let (closing, heartbeat, until) = (self.closing.clone(), self.heartbeat, self.until);
        let frames = tokio::select! {
            frames = self.source.next() => frames?,
            () = sleep(heartbeat) => Bytes::from_static(PING),
            () = sleep_until(until) => return None,
            () = closing.cancelled() => return None,
        };
        Some((frames, Some(self)))
    }
}

/// Position of one stream in the event log.
struct Events {
    events: EventStream,
    /// Owner of the shown sessions; all sessions without one.
    user: Option<UserId>,
    last: Option<u64>,
}

impl Source for Events {
    /// The next event that the reader may see.
    async fn next(&mut self) -> Option<Bytes> {
        let mut frames = BytesMut::new();
        while frames.is_empty() {
            let event = self.events.next().await;
            let has_missed = self.last.is_some_and(|last| event.number > last + 1);
            self.last = Some(event.number);
            if has_missed {
                sse::event(&json!({ "type": "missed" }), &mut frames);
            }
            let user = &self.user;
            if user.as_ref().is_none_or(|user| event.session.user() == user) {
                sse::event(&render(&event, user.is_none()), &mut frames);
            }
        }
        Some(frames.freeze())
    }
}

/// Renders an event; streams of all sessions name its user.
fn render(event: &SessionEvent, with_user: bool) -> Value {
    let mut shown = match &event.kind {
        EventKind::Started { generation } => json!({ "type": "started", "generation": generation }),
        EventKind::Ready { took } => json!({ "type": "ready", "took_seconds": took.as_secs_f64() }),
        EventKind::NotStarted { reason } => json!({ "type": "not_started", "reason": reason }),
        EventKind::TurnEnded { outcome, took } => {
            json!({ "type": "turn_ended", "outcome": outcome, "took_seconds": took.as_secs_f64() })
        }
        EventKind::OwnTurn { cost_usd } => json!({ "type": "own_turn", "cost_usd": cost_usd }),
        EventKind::PermissionNeeded { request_id, tool_name } => {
            json!({ "type": "permission_needed", "request_id": request_id, "tool_name": tool_name })
        }
        EventKind::Refused { reason } => json!({ "type": "refused", "reason": reason }),
        EventKind::Crashed(Exit { reason, detail, .. }) => {
            json!({ "type": "crashed", "reason": reason, "detail": detail })
        }
        EventKind::Restarted { cause } => json!({ "type": "restarted", "cause": cause }),
        EventKind::Paused => json!({ "type": "paused" }),
        EventKind::Evicted { reason } => json!({ "type": "evicted", "reason": reason }),
        EventKind::Expired { reason, bytes } => {
            json!({ "type": "expired", "reason": reason, "bytes": bytes })
        }
        EventKind::ContextLost { kind } => json!({ "type": "context_lost", "kind": kind }),
        EventKind::Recovered { source } => json!({ "type": "recovered", "source": source }),
    };
    shown["at"] = seconds(event.at).into();
    shown["session"] = event.session.conversation().into();
    if with_user {
        shown["user"] = encode(event.session.user()).into();
    }
    shown
}

/// Frames, and the reader if more may follow.
type Step<S> = Option<(Bytes, Option<Reader<S>>)>;

struct Frames<S> {
    /// `None` at the end.
    step: Option<Pin<Box<dyn Future<Output = Step<S>> + Send>>>,
}

impl<S: Source + 'static> Stream for Frames<S> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(step) = &mut self.step else { return Poll::Ready(None) };
        let next = ready!(step.as_mut().poll(context));
        self.step = None;
        Poll::Ready(next.map(|(frames, reader)| {
            if let Some(reader) = reader {
                self.step = Some(Box::pin(reader.next()));
            }
            Ok(frames)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_limited_per_user() {
        let (streams, alice) = (Arc::new(Streams::default()), UserId::new("alice").ok());
        let mut open: Vec<_> = (0..MAX_STREAMS).map(|_| streams.open(alice.clone()).ok().unwrap()).collect();
        assert_eq!(streams.open(alice.clone()).err().unwrap().code(), "too_many_streams");
        drop(streams.open(None).ok().unwrap());
        open.pop();
        open.push(streams.open(alice.clone()).ok().unwrap());
        assert!(streams.open(alice).is_err());
        drop(open);
        assert!(streams.0.lock().unwrap().is_empty(), "users without streams are removed");
    }
}
