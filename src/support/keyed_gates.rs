//! One gate per key, created on demand: many may be inside, or one has closed it.

use std::hash::Hash;
use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// A map of gates. Keeps only gates that are in use.
#[derive(Debug)]
pub(crate) struct Gates<K: Eq + Hash>(Arc<DashMap<K, Arc<RwLock<()>>>>);

/// A way in, or a closed gate. Dropping leaves or opens it.
#[derive(Debug)]
pub(crate) struct Passage<K: Eq + Hash, G> {
    guard: Option<G>,
    gates: Arc<DashMap<K, Arc<RwLock<()>>>>,
    key: K,
}

/// Inside a gate.
pub(crate) type Inside<K> = Passage<K, OwnedRwLockReadGuard<()>>;
/// A closed gate.
pub(crate) type Closed<K> = Passage<K, OwnedRwLockWriteGuard<()>>;

impl<K: Eq + Hash> Default for Gates<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash + Clone> Gates<K> {
    /// Enters; `None` while the gate is closed, or about to be.
    pub(crate) fn enter(&self, key: &K) -> Option<Inside<K>> {
        let gate = self.gate(key);
        self.passage(key, gate.try_read_owned().ok())
    }

    /// Closes the gate, once everything inside has left. Nothing enters meanwhile.
    pub(crate) async fn close(&self, key: &K) -> Closed<K> {
        let guard = self.gate(key).write_owned().await;
        Passage { guard: Some(guard), gates: self.0.clone(), key: key.clone() }
    }

    /// Closes the gate if nothing is inside.
    #[cfg(feature = "server")]
    pub(crate) fn try_close(&self, key: &K) -> Option<Closed<K>> {
        let gate = self.gate(key);
        self.passage(key, gate.try_write_owned().ok())
    }

    fn gate(&self, key: &K) -> Arc<RwLock<()>> {
        self.0.entry(key.clone()).or_default().clone()
    }

    fn passage<G>(&self, key: &K, guard: Option<G>) -> Option<Passage<K, G>> {
        Some(Passage { guard: Some(guard?), gates: self.0.clone(), key: key.clone() })
    }
}

impl<K: Eq + Hash> Inside<K> {
    /// What is kept open.
    #[cfg(feature = "server")]
    pub(crate) fn key(&self) -> &K {
        &self.key
    }
}

impl<K: Eq + Hash, G> Drop for Passage<K, G> {
    fn drop(&mut self) {
        self.guard = None;
        // Only the map holds an unused gate. Checked under the map's lock, which each newcomer passes.
        self.gates.remove_if(&self.key, |_, gate| Arc::strong_count(gate) == 1);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn closing_waits_for_those_inside() {
        let gates = Gates::default();
        let (one, two) = (gates.enter(&"a").unwrap(), gates.enter(&"a").unwrap());
        let mut closing = pin!(gates.close(&"a"));
        assert!(futures_util::poll!(closing.as_mut()).is_pending());
        assert!(gates.enter(&"a").is_none() && gates.enter(&"b").is_some(), "only its own key");
        drop(one);
        assert!(futures_util::poll!(closing.as_mut()).is_pending());
        drop(two);
        let Poll::Ready(closed) = futures_util::poll!(closing.as_mut()) else { panic!("it is free") };
        assert!(gates.enter(&"a").is_none());
        drop(closed);
        assert!(gates.enter(&"a").is_some());
        #[cfg(feature = "server")]
        {
            let inside = gates.enter(&"a");
            assert!(gates.try_close(&"a").is_none());
            drop(inside);
            let closed = gates.try_close(&"a");
            assert!(closed.is_some() && gates.enter(&"a").is_none());
        }
        assert!(gates.0.is_empty());
    }
}
