//! Bodies: a request's with limits, and the type that both directions share.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;
pub(super) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A body that is in memory.
pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Ends a wait for the next piece of a body that lasts too long. The timer is set only while there is a wait.
#[derive(Debug)]
pub(super) struct IdleTimer {
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
    is_running: bool,
}

impl IdleTimer {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, sleep: Box::pin(sleep_until(Instant::now() + limit)), is_running: false }
    }

    /// There was progress.
    pub(super) fn stop(&mut self) {
        self.is_running = false;
    }

    /// Ready if there was no progress for too long.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !std::mem::replace(&mut self.is_running, true) {
            self.sleep.as_mut().reset(Instant::now() + self.limit);
        }
        self.sleep.as_mut().poll(context)
    }
}

/// How the body of a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyEnd {
    /// Well, or not yet.
    Fine = 0,
    /// Longer than allowed.
    TooLarge = 1,
    /// Too slow.
    Slow = 2,
}

/// Shared with the request that the body belongs to.
#[derive(Debug, Default)]
pub(super) struct BodyState(AtomicU8);

impl BodyState {
    pub(super) fn end(&self) -> BodyEnd {
        match self.0.load(Ordering::Relaxed) {
            1 => BodyEnd::TooLarge,
            2 => BodyEnd::Slow,
            _ => BodyEnd::Fine,
        }
    }

    fn set(&self, end: BodyEnd) -> BodyError {
        self.0.store(end as u8, Ordering::Relaxed);
        match end {
            BodyEnd::TooLarge => "the body is too long",
            _ => "the body is too slow",
        }
        .into()
    }
}

/// Body of a child's request: limited in size and in waiting.
#[derive(Debug)]
pub(super) struct Limited {
    inner: Incoming,
    left: u64,
    idle: IdleTimer,
    state: Arc<BodyState>,
}

impl Limited {
    pub(super) fn new(inner: Incoming, limit: u64, idle: Duration) -> (Self, Arc<BodyState>) {
        let state = Arc::<BodyState>::default();
        (Self { inner, left: limit, idle: IdleTimer::new(idle), state: state.clone() }, state)
    }
}

impl HttpBody for Limited {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else {
            ready!(self.idle.poll(context));
            return Poll::Ready(Some(Err(self.state.set(BodyEnd::Slow))));
        };
        self.idle.stop();
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        // Trailers could hold what was removed from the headers.
        let Ok(data) = frame.into_data() else { return Poll::Ready(None) };
        match self.left.checked_sub(data.remaining() as u64) {
            Some(left) => self.left = left,
            None => return Poll::Ready(Some(Err(self.state.set(BodyEnd::TooLarge)))),
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
