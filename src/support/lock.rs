//! Locks that outlive a panic of their holder.
//!
//! Only for values that are consistent between any two statements: the guard of a poisoned lock is handed out as usual.

use std::sync::{Mutex, MutexGuard, PoisonError};
#[cfg(feature = "server")]
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locking without regard to poisoning.
pub(crate) trait MutexExt<T> {
    /// Acquires the lock, also after a panic of an earlier holder.
    fn lock_unpoisoned(&self) -> MutexGuard<'_, T>;
}

impl<T> MutexExt<T> for Mutex<T> {
    fn lock_unpoisoned(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locking without regard to poisoning.
#[cfg(feature = "server")]
pub(crate) trait RwLockExt<T> {
    /// Acquires shared access, also after a panic of an earlier holder.
    fn read_unpoisoned(&self) -> RwLockReadGuard<'_, T>;

    /// Acquires exclusive access, also after a panic of an earlier holder.
    fn write_unpoisoned(&self) -> RwLockWriteGuard<'_, T>;
}

#[cfg(feature = "server")]
impl<T> RwLockExt<T> for RwLock<T> {
    fn read_unpoisoned(&self) -> RwLockReadGuard<'_, T> {
        self.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_unpoisoned(&self) -> RwLockWriteGuard<'_, T> {
        self.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisoned_lock_is_handed_out() {
        let (mutex, lock) = (Mutex::new(1), RwLock::new(1));
        std::thread::scope(|scope| {
            let holder = scope.spawn(|| {
                let _guards = (mutex.lock().unwrap(), lock.write().unwrap());
                panic!("poisons both");
            });
            holder.join().unwrap_err();
        });
        assert!(mutex.is_poisoned() && lock.is_poisoned());
        *mutex.lock_unpoisoned() += 1;
        *lock.write_unpoisoned() += 1;
        assert_eq!((*mutex.lock_unpoisoned(), *lock.read_unpoisoned()), (2, 2));
    }
}
