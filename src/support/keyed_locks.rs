//! Locks by name: what blocks under one of them holds up those alone that ask for the same.

use std::hash::Hash;
use std::sync::{Arc, Mutex};

use dashmap::DashMap;

use crate::support::lock::MutexExt;

/// See the module. Holds as many locks as are held or waited for.
#[derive(Debug)]
pub(crate) struct Locks<K: Eq + Hash>(DashMap<K, Arc<Mutex<()>>>);

impl<K: Eq + Hash> Default for Locks<K> {
    fn default() -> Self {
        Self(DashMap::default())
    }
}

impl<K: Eq + Hash + Clone> Locks<K> {
    /// Does this while nobody else does anything under the same name. Blocks.
    pub(crate) fn with<T>(&self, name: &K, act: impl FnOnce() -> T) -> T {
        let lock = self.0.entry(name.clone()).or_default().clone();
        let held = lock.lock_unpoisoned();
        let done = act();
        drop(held);
        drop(lock);
        // Nobody waits: only the map holds it. Checked under the map's lock, which all who want it have to pass.
        self.0.remove_if(name, |_, lock| Arc::strong_count(lock) == 1);
        done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_lock_holds_up_its_own_name_only() {
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
