//! `GET /v1/happenings`: what has happened lately in the sessions that the caller may see, and what happens, as it does.
//!
//! A stream reads the core's log at its own pace: no task, no queue; a reader that is too slow is told that something
//! is missing. It ends by itself after a while, so that a key that was revoked sees no more, and callers come back.
//! Numbers of the log are not shown: they would tell a user how busy all others are.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
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

use super::app::App;
use super::error::ApiError;
use super::query::Inquiry;
use super::sessions::{encode, seconds};
use super::wire::{self, PING};
use crate::happenings::{Exit, Happening, Happenings, What};
use crate::ids::UserId;

/// How long one stream lasts; then its key is looked at again.
const LASTS: Duration = Duration::from_secs(300);

/// What all streams share.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) heartbeat: Duration,
    /// The service is stopping.
    pub(super) closing: CancellationToken,
}

/// See the module.
pub(super) async fn follow(State(app): State<Arc<App>>, inquiry: Inquiry) -> Result<Response, ApiError> {
    let whose = if inquiry.is_about_all() { None } else { Some(inquiry.subject()?) };
    let hello = json!({
        "type": "hello",
        "version": env!("CARGO_PKG_VERSION"),
        "sees": if whose.is_none() { "all" } else { "own" },
        "speaks_for": inquiry.caller.speaks_for(),
        "heartbeat_seconds": app.feed().heartbeat.as_secs_f64(),
    });
    let reader = Reader {
        happenings: app.pilot().happenings(),
        whose,
        last: None,
        heartbeat: app.feed().heartbeat,
        closing: app.feed().closing.clone(),
        until: Instant::now() + LASTS,
    };
    let mut first = BytesMut::new();
    wire::event(&hello, &mut first);
    let body = Body::from_stream(Frames { step: Box::pin(async move { Some((first.freeze(), reader)) }) });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, body).into_response())
}

/// Who reads, and what comes next.
struct Reader {
    happenings: Happenings,
    /// Whose sessions are shown; all without it.
    whose: Option<UserId>,
    /// The number of the happening that was read last.
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

    /// The next happening that the reader may see.
    async fn told(&mut self) -> Bytes {
        let mut frames = BytesMut::new();
        while frames.is_empty() {
            let happening = self.happenings.next().await;
            let missing = self.last.is_some_and(|last| happening.number > last + 1);
            self.last = Some(happening.number);
            if missing {
                wire::event(&json!({ "type": "missed" }), &mut frames);
            }
            if self.whose.as_ref().is_none_or(|user| happening.session.user() == user) {
                wire::event(&shown(&happening, self.whose.is_none()), &mut frames);
            }
        }
        frames.freeze()
    }
}

/// A happening, with its user in a stream of everybody's.
fn shown(happening: &Happening, with_user: bool) -> Value {
    let mut shown = match &happening.what {
        What::Started { generation } => json!({ "type": "started", "generation": generation }),
        What::Ready { took } => json!({ "type": "ready", "took_seconds": took.as_secs_f64() }),
        What::NotStarted { reason } => json!({ "type": "not_started", "reason": reason }),
        What::TurnEnded { outcome, took } => {
            json!({ "type": "turn_ended", "outcome": outcome, "took_seconds": took.as_secs_f64() })
        }
        What::Refused { reason } => json!({ "type": "refused", "reason": reason }),
        What::Crashed(Exit { reason, detail, .. }) => {
            json!({ "type": "crashed", "reason": reason, "detail": detail })
        }
        What::Restarted { cause } => json!({ "type": "restarted", "cause": cause }),
        What::Paused => json!({ "type": "paused" }),
        What::Evicted { reason } => json!({ "type": "evicted", "reason": reason }),
        What::ContextLost { kind } => json!({ "type": "context_lost", "kind": kind }),
    };
    shown["at"] = seconds(happening.at).into();
    shown["session"] = happening.session.conversation().into();
    if with_user {
        shown["user"] = encode(happening.session.user().as_bytes()).into();
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
