//! One lock per key, created on demand.

use std::hash::Hash;
use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// A map of locks. Keeps only locks that are held or waited for.
#[derive(Debug)]
pub(crate) struct Locks<K: Eq + Hash>(Arc<DashMap<K, Arc<Mutex<()>>>>);

/// The held lock of one key.
pub(crate) struct Held<K: Eq + Hash> {
    guard: Option<OwnedMutexGuard<()>>,
    locks: Arc<DashMap<K, Arc<Mutex<()>>>>,
    key: K,
}

impl<K: Eq + Hash> std::fmt::Debug for Held<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

impl<K: Eq + Hash> Default for Locks<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash + Clone> Locks<K> {
    /// Waits for the lock of `key`.
    pub(crate) async fn acquire(&self, key: &K) -> Held<K> {
        let lock = self.0.entry(key.clone()).or_default().clone();
        self.held(key, lock.lock_owned().await)
    }

    /// The lock of `key`, unless it is held.
    pub(crate) fn try_acquire(&self, key: &K) -> Option<Held<K>> {
        let lock = self.0.entry(key.clone()).or_default().clone();
        Some(self.held(key, lock.try_lock_owned().ok()?))
    }

    /// Runs `action` under the lock of `key`. Blocking: not in an asynchronous task.
    pub(crate) fn with<T>(&self, key: &K, action: impl FnOnce() -> T) -> T {
        let lock = self.0.entry(key.clone()).or_default().clone();
        let _held = self.held(key, lock.blocking_lock_owned());
        action()
    }

    /// As [`Locks::with`]; `None` if the lock is held.
    #[cfg(feature = "server")]
    pub(crate) fn try_with<T>(&self, key: &K, action: impl FnOnce() -> T) -> Option<T> {
        let lock = self.0.entry(key.clone()).or_default().clone();
        let _held = self.held(key, lock.try_lock_owned().ok()?);
        Some(action())
    }

    fn held(&self, key: &K, guard: OwnedMutexGuard<()>) -> Held<K> {
        Held { guard: Some(guard), locks: self.0.clone(), key: key.clone() }
    }
}

impl<K: Eq + Hash> Drop for Held<K> {
    fn drop(&mut self) {
        self.guard = None;
        // Without waiters only the map holds the lock. Checked under the map's lock, which each new waiter passes.
        self.locks.remove_if(&self.key, |_, lock| Arc::strong_count(lock) == 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;

    #[test]
    fn lock_blocks_its_own_key_only() {
        let locks = Locks::default();
        let (entered, leave) = (mpsc::sync_channel(1), mpsc::sync_channel::<()>(1));
        let counted = Mutex::new(0);
        std::thread::scope(|scope| {
            let (locks, counted) = (&locks, &counted);
            let (enter, wait) = (entered.0, leave.1);
            scope.spawn(move || {
                locks.with(&"slow", || {
                    enter.send(()).unwrap();
                    wait.recv().unwrap();
                    *counted.lock().unwrap() += 1;
                });
            });
            entered.1.recv().unwrap();
            assert_eq!(locks.with(&"other", || *counted.lock().unwrap()), 0);
            #[cfg(feature = "server")]
            assert_eq!((locks.try_with(&"slow", || 1), locks.try_with(&"other", || 1)), (None, Some(1)));
            let after = scope.spawn(move || locks.with(&"slow", || *counted.lock().unwrap()));
            leave.0.send(()).unwrap();
            assert_eq!(after.join().unwrap(), 1, "one at a time");
        });
        assert!(locks.0.is_empty());
    }
}
