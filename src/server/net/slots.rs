//! Connection slots: a maximum of concurrent connections, with eviction of the one idle longest.
//!
//! A connection is idle while no request is being served: before its first request, between two, and while a request
//! head is arriving. A busy connection is closed after its response.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::support::lock::MutexExt;

/// Minimum idle time before eviction: after opening or a response the next request is likely to be on its way.
const MIN_IDLE: Duration = Duration::from_millis(100);
/// Maximum time for an evicted connection to close before the next one is evicted.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);
/// Maximum wait for a slot. Each evicted connection may just have received a request.
const SLOT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct ConnectionSlots {
    permits: Arc<Semaphore>,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    next: u64,
    /// By increasing number: the first has been idle longest.
    waiting: BTreeMap<u64, (Instant, Arc<Notify>)>,
}

impl ConnectionSlots {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { permits, idle: Mutex::default() })
    }

    /// Acquires a slot; `None` if all are in use.
    pub(super) async fn acquire(self: &Arc<Self>) -> Option<Arc<ConnectionSlot>> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Some(ConnectionSlot::new(self, permit));
        }
        let until = Instant::now() + SLOT_TIMEOUT;
        while Instant::now() < until {
            let patience = match self.idlest_for()? {
                idle_for if idle_for < MIN_IDLE => MIN_IDLE - idle_for,
                _ => {
                    self.evict_idlest();
                    CLOSE_TIMEOUT
                }
            };
            if let Ok(Ok(permit)) = timeout(patience, self.permits.clone().acquire_owned()).await {
                return Some(ConnectionSlot::new(self, permit));
            }
        }
        None
    }

    /// Idle time of the connection idle longest, if any.
    fn idlest_for(&self) -> Option<Duration> {
        self.idle.lock_unpoisoned().waiting.first_key_value().map(|(_, (since, _))| since.elapsed())
    }

    /// Asks the connection idle longest to close; returns whether there was one.
    pub(super) fn evict_idlest(&self) -> bool {
        let idlest = self.idle.lock_unpoisoned().waiting.pop_first();
        let is_there = idlest.is_some();
        if let Some((_, (_, leave))) = idlest {
            leave.notify_one();
        }
        is_there
    }
}

/// Slot of one connection, freed on drop.
pub(super) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    leave: Arc<Notify>,
    /// Number among the idle connections; meaningless while a request is served.
    number: Mutex<u64>,
    in_use: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionSlot {
    fn new(slots: &Arc<ConnectionSlots>, permit: OwnedSemaphorePermit) -> Arc<Self> {
        let slot = Arc::new(Self {
            slots: slots.clone(),
            leave: Arc::default(),
            number: Mutex::new(0),
            in_use: AtomicBool::new(true),
            _permit: permit,
        });
        slot.rest();
        slot
    }

    pub(super) async fn evicted(&self) {
        self.leave.notified().await;
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Acquire)
    }

    /// Marks a request as being served until the returned guard is dropped.
    pub(super) fn serve(self: &Arc<Self>) -> InUse {
        self.in_use.store(true, Ordering::Release);
        self.forget();
        InUse(self.clone())
    }

    fn rest(&self) {
        let mut idle = self.slots.idle.lock_unpoisoned();
        let number = idle.next;
        idle.next += 1;
        idle.waiting.insert(number, (Instant::now(), self.leave.clone()));
        *self.number.lock_unpoisoned() = number;
        drop(idle);
        self.in_use.store(false, Ordering::Release);
    }

    fn forget(&self) {
        let number = *self.number.lock_unpoisoned();
        self.slots.idle.lock_unpoisoned().waiting.remove(&number);
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Guard of a request being served.
pub(super) struct InUse(Arc<ConnectionSlot>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.rest();
    }
}

/// Response body that keeps its connection in use until its end.
pub(super) struct TrackedBody<B> {
    body: B,
    _in_use: InUse,
}

impl<B> TrackedBody<B> {
    pub(super) fn new(body: B, in_use: InUse) -> Self {
        Self { body, _in_use: in_use }
    }
}

impl<B: Body + Unpin> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the connection has been evicted.
    async fn is_asked(slot: &ConnectionSlot) -> bool {
        timeout(Duration::ZERO, slot.evicted()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn longest_idle_is_evicted_and_busy_never() {
        let slots = ConnectionSlots::new(3);
        let [first, second, third] = [slots.acquire().await, slots.acquire().await, slots.acquire().await];
        let (first, second, third) = (first.unwrap(), second.unwrap(), third.unwrap());
        // The first connection became idle last.
        drop(first.serve());
        let serving = second.serve();
        let leaving = async {
            third.evicted().await;
            drop(third);
        };
        let (entered, ()) = tokio::join!(slots.acquire(), leaving);
        assert!(entered.is_some());
        assert!(!is_asked(&first).await && !is_asked(&second).await);
        assert!(second.is_in_use());
        drop(serving);
        assert!(!second.is_in_use());
    }

    #[tokio::test(start_paused = true)]
    async fn new_connection_is_not_evicted_at_once() {
        let slots = ConnectionSlots::new(1);
        let slot = slots.acquire().await.unwrap();
        let begin = Instant::now();
        let leaving = async {
            slot.evicted().await;
            assert_eq!(begin.elapsed(), MIN_IDLE);
            drop(slot);
        };
        let (entered, ()) = tokio::join!(slots.acquire(), leaving);
        assert!(entered.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn connection_is_refused_while_all_are_busy() {
        let slots = ConnectionSlots::new(2);
        let places = [slots.acquire().await.unwrap(), slots.acquire().await.unwrap()];
        let serving = places.each_ref().map(ConnectionSlot::serve);
        assert!(slots.acquire().await.is_none());
        // Evicted after their minimum idle time, but their next request came first.
        drop(serving);
        assert!(slots.acquire().await.is_none());
        assert!(is_asked(&places[0]).await && is_asked(&places[1]).await);
        drop(places);
        assert!(slots.acquire().await.is_some());
        assert!(slots.idle.lock_unpoisoned().waiting.is_empty(), "closed connections are removed");
    }
}
