//! Locks that outlive a panic of their holder.
//!
//! Only for values that are consistent between any two statements: the guard of a poisoned lock is handed out as usual.

use std::sync::{Mutex, MutexGuard, PoisonError};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisoned_lock_is_handed_out() {
        let mutex = Mutex::new(1);
        std::thread::scope(|scope| {
            let holder = scope.spawn(|| {
                let _guard = mutex.lock().unwrap();
                panic!("poisons it");
            });
            holder.join().unwrap_err();
        });
        assert!(mutex.is_poisoned());
        *mutex.lock_unpoisoned() += 1;
        assert_eq!(*mutex.lock_unpoisoned(), 2);
    }
}
