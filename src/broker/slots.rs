//! Limits on what happens at the same time: connections of children, and requests of users with a spending limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refusal::Refusal;
use super::shares::{MAX_WAIT, MAX_WAITING};
use crate::model::ids::UserId;
use crate::support::lock::MutexExt;

/// Connections that each endpoint has, whatever others use: a CLI with a tool or two.
const OWN_CONNECTIONS: usize = 8;
/// Maximum connections of one endpoint: a CLI with many subagents, and tools that download.
const MAX_CONNECTIONS: usize = 128;
/// Maximum requests of one user at the same time where users have a spending limit: these may exceed it, and no more.
pub(super) const MAX_LIMITED: usize = 8;

/// Requests of each user with a spending limit, over all of the user's endpoints.
#[derive(Debug, Default)]
pub(super) struct UserSlots(Mutex<HashMap<UserId, Weak<UserLimit>>>);

#[derive(Debug)]
struct UserLimit {
    running: Arc<Semaphore>,
    waiting: Semaphore,
}

/// A slot for one request of a user, until it is charged.
#[derive(Debug)]
pub(super) struct UserSlot {
    _permit: OwnedSemaphorePermit,
    /// Keeps the user's entry.
    _limit: Arc<UserLimit>,
}

impl UserSlots {
    /// Waits for a slot.
    ///
    /// # Errors
    /// There was none in time, or too many wait already.
    pub(super) async fn acquire(&self, user: &UserId) -> Result<UserSlot, Refusal> {
        let limit = self.of(user);
        let permit = match limit.running.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _waits = limit.waiting.try_acquire().map_err(|_| Refusal::overloaded())?;
                let wait = tokio::time::timeout(MAX_WAIT, limit.running.clone().acquire_owned()).await;
                wait.ok().and_then(Result::ok).ok_or_else(Refusal::overloaded)?
            }
        };
        Ok(UserSlot { _permit: permit, _limit: limit })
    }

    fn of(&self, user: &UserId) -> Arc<UserLimit> {
        let mut users = self.0.lock_unpoisoned();
        if let Some(limit) = users.get(user).and_then(Weak::upgrade) {
            return limit;
        }
        // Only users with a request have an entry that counts.
        users.retain(|_, limit| limit.strong_count() > 0);
        let limit = Arc::new(UserLimit {
            running: Arc::new(Semaphore::new(MAX_LIMITED)),
            waiting: Semaphore::new(MAX_WAITING),
        });
        users.insert(user.clone(), Arc::downgrade(&limit));
        limit
    }
}

/// Connections of one endpoint.
#[derive(Debug)]
pub(super) struct ConnectionSlots {
    own: Arc<Semaphore>,
    more: Arc<Semaphore>,
    shared: Arc<Semaphore>,
}

/// A slot for one connection.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

impl ConnectionSlots {
    /// `shared`: slots of all endpoints together.
    pub(super) fn new(shared: Arc<Semaphore>) -> Self {
        Self {
            own: Arc::new(Semaphore::new(OWN_CONNECTIONS)),
            more: Arc::new(Semaphore::new(MAX_CONNECTIONS - OWN_CONNECTIONS)),
            shared,
        }
    }

    /// Waits for a slot: connections beyond the limit stay in the kernel's backlog.
    pub(super) async fn acquire(&self) -> Option<ConnectionSlot> {
        let beyond = async {
            let more = self.more.clone().acquire_owned().await.ok()?;
            let shared = self.shared.clone().acquire_owned().await.ok()?;
            Some(ConnectionSlot { _permits: (more, Some(shared)) })
        };
        tokio::select! {
            biased;
            own = self.own.clone().acquire_owned() => Some(ConnectionSlot { _permits: (own.ok()?, None) }),
            slot = beyond => slot,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn soon<T>(wait: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(Duration::from_millis(10), wait).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn endpoint_keeps_its_own_connections() {
        let shared = Arc::new(Semaphore::new(3));
        let (greedy, modest) = (ConnectionSlots::new(shared.clone()), ConnectionSlots::new(shared));
        let mut held = Vec::new();
        while let Some(Some(slot)) = soon(greedy.acquire()).await {
            held.push(slot);
        }
        assert_eq!(held.len(), OWN_CONNECTIONS + 3);
        for _ in 0..OWN_CONNECTIONS {
            held.push(soon(modest.acquire()).await.flatten().unwrap());
        }
        assert!(soon(modest.acquire()).await.is_none());
        held.clear();
        assert!(soon(modest.acquire()).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn endpoint_has_a_maximum_of_connections() {
        let slots = ConnectionSlots::new(Arc::new(Semaphore::new(10_000)));
        let mut held = Vec::new();
        while let Some(Some(slot)) = soon(slots.acquire()).await {
            held.push(slot);
        }
        assert_eq!(held.len(), MAX_CONNECTIONS);
    }
}
