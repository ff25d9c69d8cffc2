//! Reading request bodies: one at most so long, all together at most so long, none slower than so.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use bytes::Bytes;
use http_body_util::LengthLimitError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::ApiError;

/// What all bodies in memory may have together. Nearly all are a few KiB; this is for those that are not.
const TOTAL: usize = 256 << 20;
/// The unit of that account: a semaphore counts in 32 bits when it takes several.
const UNIT: usize = 1 << 10;
/// How long a body may wait for room before its caller is told to come again.
const ROOM_WITHIN: Duration = Duration::from_secs(5);

/// The account of all bodies in memory.
#[derive(Debug)]
pub(super) struct BodyBudget {
    limit: usize,
    within: Duration,
    room: Arc<Semaphore>,
}

/// A body and its share of the account; the share is free again when this is dropped.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl BodyBudget {
    /// For bodies of at most `limit` bytes, which the router's limit layer enforces, sent `within` some time.
    pub(super) fn new(limit: usize, within: Duration) -> Self {
        // The longest accepted body always fits.
        Self { limit, within, room: Arc::new(Semaphore::new(TOTAL.max(limit).div_ceil(UNIT))) }
    }

    /// Reads a body to its end.
    pub(super) async fn receive(&self, headers: &HeaderMap, body: Body) -> Result<Received, ApiError> {
        let units = announced(headers).unwrap_or(self.limit).min(self.limit).div_ceil(UNIT).max(1);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let full = || ApiError::overloaded("too many long requests are being read", Duration::from_secs(1));
        let room = timeout(ROOM_WITHIN, self.room.clone().acquire_many_owned(units));
        let room = room.await.map_err(|_| full())?.map_err(|_| full())?;
        let bytes = timeout(self.within, axum::body::to_bytes(body, self.limit)).await.map_err(|_| {
            let seconds = self.within.as_secs_f32();
            let message = format!("the request body did not arrive within {seconds} s (http.body_timeout)");
            ApiError::new(axum::http::StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
        })?;
        let bytes = bytes.map_err(|error| {
            let too_long =
                std::iter::successors(Some(&error as &(dyn std::error::Error + 'static)), |e| e.source())
                    .any(|cause| cause.is::<LengthLimitError>());
            if too_long {
                ApiError::body_too_large(self.limit)
            } else {
                ApiError::invalid("body_incomplete", "the request body ended early")
            }
        })?;
        Ok(Received { bytes, _room: room })
    }
}

fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
