//! Work on files beside the asynchronous tasks, on a bounded number of threads.
//!
//! A runtime starts as many threads for blocking work as there is work: some hundred when a thousand users come at once.
//! Holders of the permit to start a child use `spawn_blocking` all the same, because those permits are few.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::lock::MutexExt as _;

/// Threads for short work, of all systems in the process. They mostly wait for the disk, so there are more than cores.
const THREADS: usize = 12;
/// Threads for work whose length a child or a caller decides. Apart, so that it holds up no other.
const LONG_THREADS: usize = 6;
/// Idle time after which a thread ends.
const LINGER: Duration = Duration::from_secs(10);

static SHORT: Pool = Pool::new("files", THREADS);
static LONG: Pool = Pool::new("long-files", LONG_THREADS);

/// Runs short `work`. A panic there is an error here.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    SHORT.run(work).await
}

/// As [`blocking`], for work that may take seconds.
pub(crate) async fn blocking_long<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    LONG.run(work).await
}

type Job = Box<dyn FnOnce() + Send>;

struct Pool {
    name: &'static str,
    most: usize,
    state: Mutex<State>,
    called: Condvar,
}

struct State {
    /// One for each request or session that waits for it: those have limits of their own.
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Pool {
    const fn new(name: &'static str, most: usize) -> Self {
        let state = State { jobs: VecDeque::new(), threads: 0, idle: 0 };
        Self { name, most, state: Mutex::new(state), called: Condvar::new() }
    }

    async fn run<T: Send + 'static>(
        &'static self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        let runtime = Handle::current();
        self.push(Box::new(move || {
            let _inside = runtime.enter();
            // The caller may be gone.
            drop(done.send(work()));
        }))?;
        // A panic drops the sender.
        result.await.map_err(io::Error::other)?
    }

    fn push(&'static self, job: Job) -> io::Result<()> {
        let mut state = self.state.lock_unpoisoned();
        state.jobs.push_back(job);
        if state.jobs.len() > state.idle && state.threads < self.most {
            let thread = std::thread::Builder::new().name(self.name.to_owned());
            match thread.spawn(|| self.work()) {
                Ok(_) => state.threads += 1,
                // The threads that are there do it.
                Err(_) if state.threads > 0 => {}
                Err(error) => {
                    state.jobs.pop_back();
                    return Err(error);
                }
            }
        }
        drop(state);
        self.called.notify_one();
        Ok(())
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            // The panic is the caller's.
            drop(catch_unwind(AssertUnwindSafe(job)));
        }
    }

    /// The next job; `None` if none came for a while.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock_unpoisoned();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            let waited = self.called.wait_timeout(state, LINGER);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use tokio::task::JoinSet;

    use super::*;

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
        assert!(LONG.state.lock_unpoisoned().threads <= LONG_THREADS);
        drop(release);
        for released in waiting.join_all().await {
            assert!(released.unwrap());
        }
    }

    #[tokio::test]
    async fn panic_of_work_leaves_its_thread() {
        for _ in 0..2 * THREADS {
            assert!(blocking::<()>(|| std::panic::resume_unwind(Box::new(()))).await.is_err());
        }
        assert_eq!(blocking(|| Ok(1)).await.unwrap(), 1);
        assert!(SHORT.state.lock_unpoisoned().threads <= THREADS);
    }
}
