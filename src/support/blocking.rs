//! Work on files beside the asynchronous tasks, on a bounded number of threads.
//!
//! A runtime starts as many threads for blocking work as there is work: some hundred when a thousand users come at once.
//! Holders of the permit to start a child use `spawn_blocking` all the same, because those permits are few.

use std::io;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;

/// Threads for short work, of all systems in the process. They mostly wait for the disk, so there are more than cores.
const THREADS: usize = 12;
/// Threads for work whose length a child or a caller decides. Apart, so that it holds up no other.
const LONG_THREADS: usize = 6;

static SHORT: Semaphore = Semaphore::const_new(THREADS);
static LONG: Semaphore = Semaphore::const_new(LONG_THREADS);

/// Runs short `work`. Once it has begun it goes on to its end also when the caller is gone. A panic there is an error here.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    run(&SHORT, work).await
}

/// As [`blocking`], for work that may take seconds.
pub(crate) async fn blocking_long<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    run(&LONG, work).await
}

/// A thread for short work.
#[derive(Debug)]
pub(crate) struct Thread {
    _permit: SemaphorePermit<'static>,
}

impl Thread {
    /// Waits for a thread. A caller that leaves leaves the queue as well.
    pub(crate) async fn wait() -> io::Result<Self> {
        Self::of(&SHORT).await
    }

    async fn of(threads: &'static Semaphore) -> io::Result<Self> {
        let permit = threads.acquire().await;
        permit.map(|_permit| Self { _permit }).map_err(io::Error::other)
    }

    /// As [`blocking`], at once.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let work = spawn_blocking(move || {
            let _thread = self;
            work()
        });
        work.await.map_err(io::Error::other)?
    }
}

async fn run<T: Send + 'static>(
    threads: &'static Semaphore,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    Thread::of(threads).await?.run(work).await
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};

    use tokio::task::JoinSet;

    use super::*;
    use crate::support::lock::MutexExt as _;

    #[tokio::test]
    async fn long_work_holds_up_no_short_work() {
        let (release, held) = mpsc::sync_channel::<()>(1);
        let held = Arc::new(Mutex::new(held));
        let mut waiting = JoinSet::new();
        for _ in 0..2 * LONG_THREADS {
            let held = held.clone();
            waiting.spawn(blocking_long(move || Ok(held.lock_unpoisoned().recv().is_err())));
        }
        for _ in 0..2 * THREADS {
            blocking(|| Ok(())).await.unwrap();
        }
        drop(release);
        for released in waiting.join_all().await {
            assert!(released.unwrap());
        }
    }

    #[tokio::test]
    async fn panic_of_work_is_an_error() {
        for _ in 0..2 * THREADS {
            assert!(blocking::<()>(|| std::panic::resume_unwind(Box::new(()))).await.is_err());
        }
        assert_eq!(blocking(|| Ok(1)).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn caller_that_leaves_leaves_the_queue() {
        let (release, held) = mpsc::sync_channel::<()>(0);
        let held = Arc::new(Mutex::new(held));
        let mut waiting = JoinSet::new();
        static ALONE: Semaphore = Semaphore::const_new(1);
        waiting.spawn(run(&ALONE, move || Ok(held.lock_unpoisoned().recv().is_err())));
        let began = tokio::time::Instant::now();
        while ALONE.available_permits() > 0 {
            assert!(began.elapsed() < pilotlight_test_support::SOON, "the work does not begin");
            tokio::task::yield_now().await;
        }
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let mut work =
            Box::pin(run(&ALONE, move || begun.send(()).map_err(|()| io::ErrorKind::Other.into())));
        let noop = &mut std::task::Context::from_waker(std::task::Waker::noop());
        assert!(work.as_mut().poll(noop).is_pending());
        drop(work);
        drop(release);
        assert!(waiting.join_all().await.into_iter().all(|it| it.unwrap()));
        assert!(has_begun.await.is_err(), "it was never begun");
    }
}
