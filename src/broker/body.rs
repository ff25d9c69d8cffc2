//! Bodies: a request's with limits, and the type that both directions share.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;
pub(super) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Maximum time in which a whole body is received: it comes over loopback, and has room in memory meanwhile.
const MAX_BODY_TIME: Duration = Duration::from_secs(60);
/// Memory for a body before its first byte: the stated length is only a promise.
const FIRST_BYTES: u64 = 64 << 10;

/// A body that is in memory.
pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyFault {
    #[error("the body is too long")]
    TooLarge,
    #[error("the body was silent for too long")]
    Silent,
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

/// A body that may be silent for a limited time. The timer is set only while there is a wait.
#[derive(Debug)]
pub(super) struct Watched {
    inner: Incoming,
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
    is_waiting: bool,
}

impl Watched {
    pub(super) fn new(inner: Incoming, limit: Duration) -> Self {
        Self { inner, limit, sleep: Box::pin(sleep_until(Instant::now() + limit)), is_waiting: false }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            self.is_waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyFault::from)));
        }
        if !std::mem::replace(&mut self.is_waiting, true) {
            let until = Instant::now() + self.limit;
            self.sleep.as_mut().reset(until);
        }
        ready!(self.sleep.as_mut().poll(context));
        Poll::Ready(Some(Err(BodyFault::Silent)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body that is limited in size and in waiting.
#[derive(Debug)]
pub(super) struct Limited {
    inner: Watched,
    left: u64,
}

impl Limited {
    pub(super) fn new(inner: Incoming, limit: u64, idle: Duration) -> Self {
        Self { inner: Watched::new(inner, idle), left: limit }
    }

    /// The whole body.
    ///
    /// # Errors
    /// [`BodyFault`], also if it takes too long.
    pub(super) async fn receive(mut self) -> Result<Bytes, BodyFault> {
        let expected = self.size_hint().lower().min(FIRST_BYTES);
        let mut received = BytesMut::with_capacity(usize::try_from(expected).unwrap_or_default());
        let receive = async {
            while let Some(frame) = self.frame().await {
                received.extend(frame?.into_data());
            }
            Ok(received.freeze())
        };
        timeout(MAX_BODY_TIME, receive).await.unwrap_or(Err(BodyFault::Silent))
    }
}

impl HttpBody for Limited {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let Some(frame) = ready!(Pin::new(&mut self.inner).poll_frame(context)?) else {
            return Poll::Ready(None);
        };
        // Trailers could hold what was removed from the headers.
        let Ok(data) = frame.into_data() else { return Poll::Ready(None) };
        let Some(left) = self.left.checked_sub(data.remaining() as u64) else {
            return Poll::Ready(Some(Err(BodyFault::TooLarge)));
        };
        self.left = left;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
