//! At most one live child per session, also across a failed actor and its successor.
//!
//! A child's task holds the session's slot from before the start until nothing of the child is left.

use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::model::ids::SessionHash;

/// One slot per session that has, or waits for, a child.
#[derive(Debug, Default)]
pub(crate) struct Slots(Arc<DashMap<SessionHash, Arc<Mutex<()>>>>);

/// The right to have the session's child.
pub(crate) struct Slot {
    guard: Option<OwnedMutexGuard<()>>,
    slots: Arc<DashMap<SessionHash, Arc<Mutex<()>>>>,
    session: SessionHash,
}

impl Slots {
    /// Waits until the session has no child.
    pub(crate) async fn acquire(&self, session: &SessionHash) -> Slot {
        let mutex = self.0.entry(session.clone()).or_default().clone();
        let guard = Some(mutex.lock_owned().await);
        Slot { guard, slots: self.0.clone(), session: session.clone() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.guard = None;
        // Without waiters only the map holds the mutex. Checked under the map's lock, which each new waiter passes.
        self.slots.remove_if(&self.session, |_, mutex| Arc::strong_count(mutex) == 1);
    }
}
