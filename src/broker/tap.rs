//! Body of a response: passes each piece on at once and reads the tokens that it reports.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use super::Shared;
use super::body::{BodyError, IdleTimer};
use super::slots::UpstreamSlot;
use crate::adapter::{self, broker::UsageReader};
use crate::model::Usage;
use crate::model::ids::{SessionHash, UserId};
use crate::telemetry::metrics::ModelClass;

/// A forwarded response, until its end or until the child gives up.
pub(super) struct Tap {
    inner: Incoming,
    idle: IdleTimer,
    reader: Option<Box<dyn UsageReader>>,
    meter: Meter,
}

/// Counts one request to the model's API from its beginning to the end of its response.
pub(super) struct Meter {
    shared: Arc<Shared>,
    user: UserId,
    session: SessionHash,
    _slot: UpstreamSlot,
}

impl Meter {
    pub(super) fn new(shared: Arc<Shared>, user: UserId, session: SessionHash, slot: UpstreamSlot) -> Self {
        shared.metrics.upstream_in_flight.increment(1.0);
        Self { shared, user, session, _slot: slot }
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
        let idle = IdleTimer::new(meter.shared.config.idle_timeout);
        Self { inner, idle, reader, meter }
    }
}

impl HttpBody for Tap {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else {
            ready!(self.idle.poll(context));
            return Poll::Ready(Some(Err("the model's API was silent for too long".into())));
        };
        self.idle.stop();
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(reader)) = (frame.data_ref(), &mut self.reader) {
                    reader.read(data);
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => Some(Err(error.into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Also of a response that was cut: its tokens are paid.
        if let Some(reader) = &self.reader {
            let (model, usage) = reader.reported();
            self.meter.count(model, &usage);
        }
    }
}
