//! Searches that many requests share: each request needs one that began after it came, and one search answers all of
//! them. However many requests there are, one search runs at a time, and rests follow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// Rest after a search, in times of its duration: searches take at most a fifth of one processor. A request waits for at
/// most two searches and one rest.
const REST: u32 = 4;

/// What searches find.
#[derive(Debug, Default)]
pub(super) struct Rounds<T> {
    /// Requests that have come.
    came: Arc<AtomicU64>,
    /// Fair: who waits is served in the order of arrival.
    last: Arc<Mutex<Last<T>>>,
}

#[derive(Debug, Default)]
struct Last<T> {
    found: T,
    /// Requests that had come when the search began: they need no other.
    covers: u64,
    rests_until: Option<Instant>,
}

impl<T: Default + Send + 'static> Rounds<T> {
    /// Reads what a search found that began after this call. `search` changes what the last one found, on a thread for
    /// blocking work. `None`: the search failed.
    pub(super) async fn read<R>(
        &self,
        search: impl FnOnce(&mut T) + Send + 'static,
        read: impl FnOnce(&T) -> R,
    ) -> Option<R> {
        let number = self.came.fetch_add(1, Ordering::AcqRel);
        let mut last = self.last.clone().lock_owned().await;
        if number >= last.covers {
            if let Some(moment) = last.rests_until {
                sleep_until(moment).await;
            }
            let came = self.came.clone();
            let searched = tokio::task::spawn_blocking(move || {
                let (covers, began) = (came.load(Ordering::Acquire), Instant::now());
                search(&mut last.found);
                last.covers = covers;
                last.rests_until = Some(Instant::now() + began.elapsed() * REST);
                last
            });
            last = searched.await.ok()?;
        }
        Some(read(&last.found))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::{Context, Waker};
    use std::time::Duration;

    use super::*;

    /// Requests that come during a search share the next one.
    #[tokio::test]
    async fn crowd_shares_two_searches() {
        let rounds: Rounds<u32> = Rounds::default();
        let (finish, may_finish) = mpsc::sync_channel(1);
        let search = move |searches: &mut u32| {
            *searches += 1;
            may_finish.recv().unwrap();
        };
        let nobody = &mut Context::from_waker(Waker::noop());
        let mut first = pin!(rounds.read(search, |searches| *searches));
        assert!(first.as_mut().poll(nobody).is_pending());
        // It has begun before the others come, by the thread or by the poll.
        let read = || Box::pin(rounds.read(|searches| *searches += 1, |searches| *searches));
        let mut crowd: Vec<_> = (0..200).map(|_| read()).collect();
        assert!(crowd.iter_mut().all(|request| request.as_mut().poll(nobody).is_pending()));
        finish.send(()).unwrap();
        assert_eq!(first.await, Some(1));
        for request in crowd {
            let seen = request.await.unwrap();
            assert!(seen <= 2, "{seen} searches");
        }
        assert_eq!(read().await, Some(rounds.last.lock().await.found));
    }

    #[tokio::test(start_paused = true)]
    async fn search_is_followed_by_a_rest() {
        let rounds: Rounds<()> = Rounds::default();
        let took = Duration::from_millis(20);
        // The paused clock does not advance by itself while a thread blocks.
        rounds.read(|()| (), |()| ()).await.unwrap();
        rounds.last.lock().await.rests_until = Some(Instant::now() + took * REST);
        let before = Instant::now();
        rounds.read(|()| (), |()| ()).await.unwrap();
        assert!(before.elapsed() >= took * REST);
    }

    #[tokio::test]
    async fn failed_search_is_repeated() {
        let rounds: Rounds<u64> = Rounds::default();
        assert_eq!(rounds.read(|_| panic!("as a test"), |found| *found).await, None);
        assert_eq!(rounds.read(|found| *found += 1, |found| *found).await, Some(1));
    }
}
