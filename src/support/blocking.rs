//! Work on files beside the asynchronous tasks, on a bounded number of threads.
//!
//! A runtime starts as many threads for blocking work as there is work: some hundred when a thousand users come at once.
//! Holders of the permit to start a child use `spawn_blocking` all the same, because those permits are few.

use std::io;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Threads for short work, of all systems in the process. They mostly wait for the disk, so there are more than cores.
const THREADS: usize = 12;
/// Threads for work whose length a child or a caller decides. Apart, so that it holds up no other.
const LONG_THREADS: usize = 6;

static SHORT: Semaphore = Semaphore::const_new(THREADS);
static LONG: Semaphore = Semaphore::const_new(LONG_THREADS);

/// Runs short `work`, to its end also when the caller is gone. A panic there is an error here.
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

#[expect(clippy::disallowed_methods, reason = "it ends with its work, as every `spawn_blocking`")]
async fn run<T: Send + 'static>(
    threads: &'static Semaphore,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // A task of its own, so that what was begun for a caller that leaves does not depend on when it leaves. The number of
    // those that wait is that of requests and sessions, which have limits of their own.
    let job = tokio::spawn(async move {
        let _permit = threads.acquire().await.map_err(io::Error::other)?;
        spawn_blocking(work).await.map_err(io::Error::other)?
    });
    job.await.map_err(io::Error::other)?
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
    async fn work_ends_without_its_caller() {
        let (done, ended) = tokio::sync::oneshot::channel();
        let mut work = Box::pin(blocking(move || done.send(()).map_err(|()| io::ErrorKind::Other.into())));
        assert!(poll_once(&mut work).is_pending());
        drop(work);
        ended.await.unwrap();
    }

    /// Polls once.
    fn poll_once<F: Future>(future: &mut std::pin::Pin<Box<F>>) -> std::task::Poll<F::Output> {
        future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }
}
