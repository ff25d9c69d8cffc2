//! Body of a response: passes each piece on at once and reads the tokens that it reports.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use super::Shared;
use super::body::{BodyError, Watched};
use super::lasting;
use super::shares::Share;
use super::slots::UserSlot;
use crate::adapter::{self, broker::UsageReader};
use crate::model::Usage;
use crate::model::ids::{SessionHash, UserId};
use crate::telemetry::metrics::ModelClass;

/// Longest time that the rest of a response is read without the child: the API ends an answer within ten minutes.
const MAX_REST_TIME: Duration = Duration::from_secs(600);
/// Most bytes that are read so: the longest answers have some megabytes.
const MAX_REST_BYTES: u64 = 32 << 20;
/// Bytes per token where none are reported. Events are longer than their text, so this is not too few tokens.
const BYTES_PER_TOKEN: u64 = 4;

/// A forwarded response. A user with a spending limit who gives up before its first byte pays for what the API reports;
/// who gives up later, for an estimate: to read on would have the API go on, and cost more than what was stopped.
pub(super) struct Tap(Option<Counted>);

/// A response whose tokens are counted when it is dropped.
struct Counted {
    inner: Watched,
    reader: Option<Box<dyn UsageReader>>,
    bytes: u64,
    is_over: bool,
    meter: Meter,
}

/// Counts one request to the model's API from its beginning to the end of its response.
pub(super) struct Meter {
    shared: Arc<Shared>,
    user: UserId,
    session: SessionHash,
    request_bytes: u64,
    slots: (Option<Share>, Option<UserSlot>),
}

impl Meter {
    pub(super) fn new(
        shared: Arc<Shared>,
        user: UserId,
        session: SessionHash,
        slots: (Option<Share>, Option<UserSlot>),
        request_bytes: u64,
    ) -> Self {
        shared.metrics.upstream_in_flight.increment(1.0);
        Self { shared, user, session, request_bytes, slots }
    }

    /// Whether the user has a spending limit, which giving up must not evade.
    fn is_limited(&self) -> bool {
        self.slots.1.is_some()
    }

    /// Counts a request without a response, of a user with a limit: its input, by its size.
    pub(super) fn count_unanswered(&self) {
        if self.is_limited() {
            self.count(None, &self.estimate(Usage::default(), 0));
        }
    }

    /// At least what the bytes in both directions stand for.
    fn estimate(&self, mut usage: Usage, bytes: u64) -> Usage {
        if usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens == 0 {
            usage.input_tokens = self.request_bytes / BYTES_PER_TOKEN;
        }
        usage.output_tokens = usage.output_tokens.max(bytes / BYTES_PER_TOKEN);
        usage
    }

    fn count(&self, model: Option<&str>, usage: &Usage) {
        if *usage == Usage::default() {
            return;
        }
        self.shared.metrics.count_upstream(ModelClass::of(model), usage);
        let price = adapter::list_price(model, usage);
        self.shared.spend.requested(&self.user, &self.session, price);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.shared.metrics.upstream_in_flight.decrement(1.0);
    }
}

impl Tap {
    pub(super) fn new(inner: Incoming, reader: Option<Box<dyn UsageReader>>, meter: Meter) -> Self {
        let inner = Watched::new(inner, meter.shared.config.idle_timeout);
        Self(Some(Counted { inner, reader, bytes: 0, is_over: false, meter }))
    }
}

impl Counted {
    /// Whether the rest is read if the child gives up now.
    fn is_read_on(&self) -> bool {
        self.meter.is_limited() && self.bytes == 0 && self.is_open()
    }

    /// Whether the tokens of the answer are still to come.
    fn is_open(&self) -> bool {
        !self.is_over && self.reader.as_ref().is_some_and(|reader| !reader.is_final())
    }

    async fn read_rest(mut self) {
        let until = self.bytes.saturating_add(MAX_REST_BYTES);
        let rest = async {
            while self.is_open()
                && self.bytes < until
                && matches!(poll_fn(|context| self.poll_frame(context)).await, Some(Ok(_)))
            {}
        };
        tokio::time::timeout(MAX_REST_TIME, rest).await.ok();
    }

    /// The next piece, counted.
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        self.is_over |= !matches!(frame, Some(Ok(_)));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.bytes = self.bytes.saturating_add(data.len() as u64);
            if let Some(reader) = &mut self.reader {
                reader.read(data);
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
    }
}

impl HttpBody for Tap {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Some(counted) => counted.poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|counted| counted.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map(|counted| counted.inner.size_hint()).unwrap_or_default()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(counted) = self.0.take().filter(Counted::is_read_on) {
            let shared = counted.meter.shared.clone();
            lasting::spawn(&shared, counted.read_rest());
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Also of a response that was cut: its tokens are paid.
        if let Some(reader) = &self.reader {
            let (model, usage) = reader.reported();
            let is_known = reader.is_final() || !self.meter.is_limited();
            let usage = if is_known { usage } else { self.meter.estimate(usage, self.bytes) };
            self.meter.count(model, &usage);
        }
    }
}
