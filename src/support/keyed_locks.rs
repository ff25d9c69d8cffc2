//! One lock per key, created on demand.

use std::hash::Hash;
use std::sync::{Arc, Mutex};

use dashmap::DashMap;

use crate::support::lock::MutexExt;

/// A map of locks. Keeps only locks that are held or waited for.
#[derive(Debug)]
pub(crate) struct Locks<K: Eq + Hash>(DashMap<K, Arc<Mutex<()>>>);

impl<K: Eq + Hash> Default for Locks<K> {
    fn default() -> Self {
        Self(DashMap::default())
    }
}

impl<K: Eq + Hash + Clone> Locks<K> {
    /// Runs `action` under the lock of `key`. Blocking.
    pub(crate) fn with<T>(&self, key: &K, action: impl FnOnce() -> T) -> T {
        let lock = self.0.entry(key.clone()).or_default().clone();
        let held = lock.lock_unpoisoned();
        let done = action();
        drop(held);
        drop(lock);
        // Only the map refers to it, so no caller waits. The map's shard lock excludes new callers meanwhile.
        self.0.remove_if(key, |_, lock| Arc::strong_count(lock) == 1);
        done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

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
            let after = scope.spawn(move || locks.with(&"slow", || *counted.lock().unwrap()));
            leave.0.send(()).unwrap();
            assert_eq!(after.join().unwrap(), 1, "one at a time");
        });
        assert!(locks.0.is_empty());
    }
}
