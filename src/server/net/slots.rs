//! ConnectionSlots for so many connections, and who makes way when it is taken: the connection that has been idle longest.
//!
//! A connection is idle while no request is being served on it: before its first request, between two, and also while
//! the head of one is still on its way, however slowly. One whose answer has not gone out yet is asked to leave after it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::support::lock::MutexExt;

/// A connection is left alone for so long after it was opened or answered: its next request is likely to be on its way.
const MIN_IDLE: Duration = Duration::from_millis(100);
/// How long a connection that was asked to leave may take before the next one is asked. It has nothing to do but to close.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a newcomer waits before it is refused. Each that is asked to leave may just have got a request.
const SLOT_TIMEOUT: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct ConnectionSlots {
    permits: Arc<Semaphore>,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    next: u64,
    /// By number, which grows: the first has been idle longest.
    waiting: BTreeMap<u64, (Instant, Arc<Notify>)>,
}

impl ConnectionSlots {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { permits, idle: Mutex::default() })
    }

    /// A slot for one more connection; none if every slot is in use.
    pub(super) async fn acquire(self: &Arc<Self>) -> Option<Arc<ConnectionSlot>> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Some(ConnectionSlot::new(self, permit));
        }
        let until = Instant::now() + SLOT_TIMEOUT;
        while Instant::now() < until {
            let patience = match self.idlest_for()? {
                so_long if so_long < MIN_IDLE => MIN_IDLE - so_long,
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

    /// How long the idlest has been idle, if there is one.
    fn idlest_for(&self) -> Option<Duration> {
        self.idle().waiting.first_key_value().map(|(_, (since, _))| since.elapsed())
    }

    /// Whether there was one.
    pub(super) fn evict_idlest(&self) -> bool {
        let idlest = self.idle().waiting.pop_first();
        let is_there = idlest.is_some();
        if let Some((_, (_, leave))) = idlest {
            leave.notify_one();
        }
        is_there
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        // Whole between two statements: a panic elsewhere leaves it usable.
        self.idle.lock_unpoisoned()
    }
}

/// One connection's slot; free again when this is dropped.
pub(super) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    leave: Arc<Notify>,
    /// Its number among the idle; meaningless while a request is served.
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

    /// Ready when the connection is asked to make way.
    pub(super) async fn evicted(&self) {
        self.leave.notified().await;
    }

    /// Whether a request is being served.
    pub(super) fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Acquire)
    }

    /// A request is served until what is returned is dropped.
    pub(super) fn serve(self: &Arc<Self>) -> InUse {
        self.in_use.store(true, Ordering::Release);
        self.forget();
        InUse(self.clone())
    }

    fn rest(&self) {
        let mut idle = self.slots.idle();
        let number = idle.next;
        idle.next += 1;
        idle.waiting.insert(number, (Instant::now(), self.leave.clone()));
        *self.number() = number;
        drop(idle);
        self.in_use.store(false, Ordering::Release);
    }

    fn forget(&self) {
        let number = *self.number();
        self.slots.idle().waiting.remove(&number);
    }

    fn number(&self) -> MutexGuard<'_, u64> {
        self.number.lock_unpoisoned()
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.forget();
    }
}

/// A request on a connection.
pub(super) struct InUse(Arc<ConnectionSlot>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.rest();
    }
}

/// The body of an answer, which keeps its connection in use to its end.
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

    /// Whether a connection has been asked to leave; asked once.
    async fn is_asked(slot: &ConnectionSlot) -> bool {
        timeout(Duration::ZERO, slot.evicted()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_idlest_makes_way_and_one_in_use_never() {
        let slots = ConnectionSlots::new(3);
        let [first, second, third] = [slots.acquire().await, slots.acquire().await, slots.acquire().await];
        let (first, second, third) = (first.unwrap(), second.unwrap(), third.unwrap());
        // The first is the last to have become idle.
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
    async fn one_that_has_just_come_is_left_alone_for_a_moment() {
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
    async fn a_newcomer_is_refused_while_all_are_in_use() {
        let slots = ConnectionSlots::new(2);
        let places = [slots.acquire().await.unwrap(), slots.acquire().await.unwrap()];
        let serving = places.each_ref().map(ConnectionSlot::serve);
        assert!(slots.acquire().await.is_none());
        // TurnRequest once their grace is over, and they do not leave: their next request came first.
        drop(serving);
        assert!(slots.acquire().await.is_none());
        assert!(is_asked(&places[0]).await && is_asked(&places[1]).await);
        drop(places);
        assert!(slots.acquire().await.is_some());
        assert!(slots.idle().waiting.is_empty(), "who has left is forgotten");
    }
}
