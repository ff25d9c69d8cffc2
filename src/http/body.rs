//! Reading request bodies: one at most so long, all together at most so long, none slower than so.
//!
//! What counts is what has come, not what was announced: a caller that announces much and sends nothing takes no room.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::ApiError;

/// What all bodies in memory may have together beyond their first [`SMALL`] bytes. Nearly all are a few KiB; this is for
/// those that are not.
const TOTAL: usize = 256 << 20;
/// So much of each body needs no room: callers with short ones never wait for those with long ones. Bounded by the
/// connections there may be.
const SMALL: usize = 64 << 10;
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
    _room: Option<OwnedSemaphorePermit>,
}

impl BodyBudget {
    /// For bodies of at most `limit` bytes, which the router's limit layer enforces, sent `within` some time.
    pub(super) fn new(limit: usize, within: Duration) -> Self {
        // The longest accepted body always fits.
        Self { limit, within, room: Arc::new(Semaphore::new(TOTAL.max(limit).div_ceil(UNIT))) }
    }

    /// Reads a body to its end.
    pub(super) async fn receive(&self, body: Body) -> Result<Received, ApiError> {
        timeout(self.within, self.read(body)).await.map_err(|_| {
            let seconds = self.within.as_secs_f32();
            let message = format!("the request body did not arrive within {seconds} s (http.body_timeout)");
            ApiError::body_too_slow(message)
        })?
    }

    async fn read(&self, mut body: Body) -> Result<Received, ApiError> {
        let mut room: Option<OwnedSemaphorePermit> = None;
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(piece) = frame.map_err(|error| self.broken(&error))?.into_data() else { continue };
            if bytes.len() + piece.len() > self.limit {
                return Err(ApiError::body_too_large(self.limit));
            }
            bytes.extend_from_slice(&piece);
            let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let more = bytes.len().saturating_sub(SMALL).div_ceil(UNIT).saturating_sub(held);
            if more > 0 {
                let more = self.more(u32::try_from(more).unwrap_or(u32::MAX)).await?;
                match &mut room {
                    Some(room) => room.merge(more),
                    None => room = Some(more),
                }
            }
        }
        Ok(Received { bytes: bytes.freeze(), _room: room })
    }

    async fn more(&self, units: u32) -> Result<OwnedSemaphorePermit, ApiError> {
        let full = || ApiError::overloaded("too many long requests are being read", Duration::from_secs(1));
        let room = timeout(ROOM_WITHIN, self.room.clone().acquire_many_owned(units));
        room.await.map_err(|_| full())?.map_err(|_| full())
    }

    fn broken(&self, error: &axum::Error) -> ApiError {
        let too_long =
            std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |e| e.source())
                .any(|cause| cause.is::<LengthLimitError>());
        if too_long {
            ApiError::body_too_large(self.limit)
        } else {
            ApiError::invalid("body_incomplete", "the request body ended early")
        }
    }
}
