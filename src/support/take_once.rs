//! A value that is taken once, by whichever side comes first.

use std::sync::Mutex;

use crate::support::lock::MutexExt;

/// Cell whose value is taken at most once.
#[derive(Debug)]
pub(crate) struct TakeOnce<T>(Mutex<Option<T>>);

impl<T> TakeOnce<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(Some(value)))
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.0.lock_unpoisoned().take()
    }
}
