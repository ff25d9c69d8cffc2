//! `GET /v1/happenings`: what has happened lately in the sessions that the caller may see, and what happens, as it does.
//!
//! A stream reads the core's log at its own pace: no task, no queue; a reader that is too slow is told that something
//! is missing. It ends by itself after a while, so that a key that was revoked sees no more, and callers come back.
//! Numbers of the log are not shown: they would tell a user how busy all others are. A stream takes a connection for
//! long, so there are only so many for each user.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::server::api::query::Inquiry;
use crate::server::api::sessions::{encode, seconds};
use crate::server::app::App;
use crate::server::dialect::sse::{self, PING};
use crate::support::lock::MutexExt;
use crate::telemetry::events::{EventKind, EventStream, Exit, SessionEvent};

/// How long one stream lasts; then its key is looked at again.
const LASTS: Duration = Duration::from_secs(300);

/// Streams at the same time that show the same user's sessions, or everybody's: a few people with a few windows each.
const MOST: u32 = 32;
/// When to come again after that: people close windows.
const CROWD_PAUSE: Duration = Duration::from_secs(10);

/// What all streams share.
#[derive(Debug)]
pub(crate) struct Feed {
    heartbeat: Duration,
    /// The service is stopping.
    closing: CancellationToken,
    streams: Arc<Streams>,
}

impl Feed {
    pub(crate) fn new(heartbeat: Duration, closing: CancellationToken) -> Self {
        Self { heartbeat, closing, streams: Arc::default() }
    }
}

/// Streams by whose sessions they show.
#[derive(Debug, Default)]
struct Streams(Mutex<HashMap<Option<UserId>, u32>>);

impl Streams {
    fn place(self: &Arc<Self>, whose: Option<UserId>) -> Result<Place, ApiError> {
        let mut open = self.0.lock_unpoisoned();
        let count = open.entry(whose.clone()).or_default();
        if *count >= MOST {
            let message = format!("{MOST} streams of these happenings are open already");
            return Err(ApiError::limited("too_many_streams", message, CROWD_PAUSE));
        }
        *count += 1;
        Ok(Place { streams: self.clone(), whose })
    }
}

/// One stream's place; free again when this is dropped.
struct Place {
    streams: Arc<Streams>,
    /// Whose sessions are shown; all without it.
    whose: Option<UserId>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.0.lock_unpoisoned();
        if let Some(count) = open.get_mut(&self.whose) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.whose);
            }
        }
    }
}

/// See the module.
pub(crate) async fn follow(State(app): State<Arc<App>>, inquiry: Inquiry) -> Result<Response, ApiError> {
    let whose = if inquiry.is_about_all() { None } else { Some(inquiry.subject()?) };
    let hello = json!({
        "type": "hello",
        "version": env!("CARGO_PKG_VERSION"),
        "sees": if whose.is_none() { "all" } else { "own" },
        "speaks_for": inquiry.caller.speaks_for(),
        "heartbeat_seconds": app.feed().heartbeat.as_secs_f64(),
    });
    let reader = Reader {
        events: app.pilot().events(),
        place: app.feed().streams.place(whose)?,
        last: None,
        heartbeat: app.feed().heartbeat,
        closing: app.feed().closing.clone(),
        until: Instant::now() + LASTS,
    };
    let mut first = BytesMut::new();
    sse::event(&hello, &mut first);
    let body = Body::from_stream(Frames { step: Box::pin(async move { Some((first.freeze(), reader)) }) });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, body).into_response())
}

/// Who reads, and what comes next.
struct Reader {
    events: EventStream,
    place: Place,
    /// The number of the event that was read last.
    last: Option<u64>,
    heartbeat: Duration,
    closing: CancellationToken,
    until: Instant,
}

impl Reader {
    /// The next frames; none at the end.
    async fn next(mut self) -> Step {
        let (closing, heartbeat, until) = (self.closing.clone(), self.heartbeat, self.until);
        let frames = tokio::select! {
            frames = self.told() => frames,
            () = sleep(heartbeat) => Bytes::from_static(PING),
            () = sleep_until(until) => return None,
            () = closing.cancelled() => return None,
        };
        Some((frames, self))
    }

    /// The next event that the reader may see.
    async fn told(&mut self) -> Bytes {
        let mut frames = BytesMut::new();
        while frames.is_empty() {
            let event = self.events.next().await;
            let missing = self.last.is_some_and(|last| event.number > last + 1);
            self.last = Some(event.number);
            if missing {
                sse::event(&json!({ "type": "missed" }), &mut frames);
            }
            let whose = &self.place.whose;
            if whose.as_ref().is_none_or(|user| event.session.user() == user) {
                sse::event(&shown(&event, whose.is_none()), &mut frames);
            }
        }
        frames.freeze()
    }
}

/// An event, with its user in a stream of everybody's.
fn shown(event: &SessionEvent, with_user: bool) -> Value {
    let mut shown = match &event.kind {
        EventKind::Started { generation } => json!({ "type": "started", "generation": generation }),
        EventKind::Ready { took } => json!({ "type": "ready", "took_seconds": took.as_secs_f64() }),
        EventKind::NotStarted { reason } => json!({ "type": "not_started", "reason": reason }),
        EventKind::TurnEnded { outcome, took } => {
            json!({ "type": "turn_ended", "outcome": outcome, "took_seconds": took.as_secs_f64() })
        }
        EventKind::OwnTurn { cost_usd } => json!({ "type": "own_turn", "cost_usd": cost_usd }),
        EventKind::Refused { reason } => json!({ "type": "refused", "reason": reason }),
        EventKind::Crashed(Exit { reason, detail, .. }) => {
            json!({ "type": "crashed", "reason": reason, "detail": detail })
        }
        EventKind::Restarted { cause } => json!({ "type": "restarted", "cause": cause }),
        EventKind::Paused => json!({ "type": "paused" }),
        EventKind::Evicted { reason } => json!({ "type": "evicted", "reason": reason }),
        EventKind::ContextLost { kind } => json!({ "type": "context_lost", "kind": kind }),
    };
    shown["at"] = seconds(event.at).into();
    shown["session"] = event.session.conversation().into();
    if with_user {
        shown["user"] = encode(event.session.user().as_bytes()).into();
    }
    shown
}

/// What comes, and who reads on.
type Step = Option<(Bytes, Reader)>;

/// One step after the other.
struct Frames {
    step: Pin<Box<dyn Future<Output = Step> + Send>>,
}

impl Stream for Frames {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.step.as_mut().poll(context));
        Poll::Ready(next.map(|(frames, reader)| {
            self.step = Box::pin(reader.next());
            Ok(frames)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_streams_and_takes_none_of_others() {
        let (streams, alice) = (Arc::new(Streams::default()), UserId::new("alice").ok());
        let mut open: Vec<_> = (0..MOST).map(|_| streams.place(alice.clone()).ok().unwrap()).collect();
        assert_eq!(streams.place(alice.clone()).err().unwrap().code(), "too_many_streams");
        drop(streams.place(None).ok().unwrap());
        open.pop();
        open.push(streams.place(alice.clone()).ok().unwrap());
        assert!(streams.place(alice).is_err());
        drop(open);
        assert!(streams.0.lock().unwrap().is_empty(), "those without streams are forgotten");
    }
}
