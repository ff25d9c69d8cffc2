//! Reads request bodies within limits on size, total memory, time and share per caller.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::server::api::error::ApiError;
use crate::server::auth::caller::{Caller, CallerId};
use crate::support::lock::MutexExt;
use crate::turn::Hold;

/// Maximum memory of all bodies, including those of turns that have not begun to answer. Nearly all are a few KiB.
const MAX_MEMORY: usize = 256 << 20;
/// Unit of the account: a semaphore acquires at most 32 bits of permits.
const UNIT: usize = 1 << 10;
/// Maximum wait of a body for memory.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct BodyBudget {
    limit: usize,
    within: Duration,
    account: Arc<Account>,
}

#[derive(Debug)]
struct Account {
    permits: Arc<Semaphore>,
    held: Mutex<HashMap<CallerId, usize>>,
}

/// A body with its share of the account, freed on drop.
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    share: BodyShare,
}

impl Received {
    /// The share, kept until the turn begins to answer.
    pub(crate) fn into_hold(self) -> Hold {
        Arc::new(self.share)
    }
}

impl BodyBudget {
    /// For bodies of at most `limit` bytes, received `within` a time.
    pub(crate) fn new(limit: usize, within: Duration) -> Self {
        // The longest accepted body always fits.
        let permits = Arc::new(Semaphore::new(MAX_MEMORY.max(2 * limit).div_ceil(UNIT)));
        Self { limit, within, account: Arc::new(Account { permits, held: Mutex::default() }) }
    }

    /// Reads a body. One that is announced as too long is refused unread.
    pub(crate) async fn receive(&self, caller: &Caller, body: Body) -> Result<Received, ApiError> {
        if body.size_hint().lower() > self.limit as u64 {
            return Err(ApiError::body_too_large(self.limit));
        }
        let mut share =
            BodyShare { account: self.account.clone(), caller: caller.name(), units: 0, permits: None };
        let bytes = timeout(self.within, self.read(&mut share, body)).await.map_err(|_| {
            let seconds = self.within.as_secs_f32();
            let message = format!("the request body did not arrive within {seconds} s (http.body_timeout)");
            ApiError::body_too_slow(message)
        })??;
        Ok(Received { bytes, share })
    }

    /// Reserves memory for what is read from files on behalf of a request.
    pub(crate) async fn reserve(&self, caller: &Caller, bytes: usize) -> Result<Hold, ApiError> {
        let mut share =
            BodyShare { account: self.account.clone(), caller: caller.name(), units: 0, permits: None };
        share.grow(bytes.div_ceil(UNIT)).await?;
        Ok(Arc::new(share))
    }

    /// Counts received bytes only: announcing a long body reserves nothing.
    async fn read(&self, share: &mut BodyShare, mut body: Body) -> Result<Bytes, ApiError> {
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|_| ApiError::invalid("body_incomplete", "the request body ended early"))?;
            // Trailers are ignored.
            let Ok(data) = frame.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length > self.limit {
                return Err(ApiError::body_too_large(self.limit));
            }
            share.grow(length.div_ceil(UNIT)).await?;
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    }
}

impl Account {
    /// Adds `more` units to the caller's share. A caller holds at most as much as is left for all others: one caller
    /// ends at half of the memory, two at a third each, so that the next always gets some.
    fn count(&self, caller: &CallerId, more: usize) -> Result<(), ApiError> {
        let mut held = self.held.lock_unpoisoned();
        let own = held.get(caller).copied().unwrap_or_default();
        if own > 0 && own + more > self.permits.available_permits() {
            return Err(full("too many long requests of this caller are being read"));
        }
        held.insert(caller.clone(), own + more);
        Ok(())
    }
}

struct BodyShare {
    account: Arc<Account>,
    caller: CallerId,
    units: usize,
    permits: Option<OwnedSemaphorePermit>,
}

impl BodyShare {
    async fn grow(&mut self, units: usize) -> Result<(), ApiError> {
        let more = units.saturating_sub(self.units);
        if more == 0 {
            return Ok(());
        }
        self.account.count(&self.caller, more)?;
        self.units += more;
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let permits = timeout(MEMORY_TIMEOUT, self.account.permits.clone().acquire_many_owned(more)).await;
        let all_full = || full("too many long requests are being read");
        let permits = permits.map_err(|_| all_full())?.map_err(|_| all_full())?;
        match &mut self.permits {
            Some(former) => former.merge(permits),
            none => *none = Some(permits),
        }
        Ok(())
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        let mut held = self.account.held.lock_unpoisoned();
        if let Some(own) = held.get_mut(&self.caller) {
            *own = own.saturating_sub(self.units);
            if *own == 0 {
                held.remove(&self.caller);
            }
        }
    }
}

fn full(message: &str) -> ApiError {
    ApiError::overloaded(message, Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::UserId;

    fn caller(name: &str) -> Caller {
        Caller::trusted(true, UserId::new(name).ok())
    }

    #[tokio::test]
    async fn one_caller_cannot_take_all_memory() {
        let length = 16 << 20;
        let budget = BodyBudget::new(length, Duration::from_secs(30));
        let receive = async |name: &str| {
            budget.receive(&caller(name), Body::from(Bytes::from(vec![b' '; length]))).await
        };
        let mut held = Vec::new();
        for _ in 0..16 {
            held.extend(receive("mallory").await);
        }
        assert_eq!(held.len(), 8, "half of the memory");
        assert_eq!(receive("mallory").await.err().map(|error| error.code()), Some("overloaded"));
        assert!(receive("alice").await.is_ok());
        drop(held);
        assert!(receive("mallory").await.is_ok());
        assert!(budget.account.held.lock_unpoisoned().is_empty(), "callers without bodies are removed");
    }
}
