//! Room for so many connections, and who makes way when it is taken: the connection that has been idle longest.
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
const GRACE: Duration = Duration::from_millis(100);
/// How long a connection that was asked to leave may take before the next one is asked. It has nothing to do but to close.
const LEAVES_WITHIN: Duration = Duration::from_millis(200);
/// How long a newcomer waits before it is refused. Each that is asked to leave may just have got a request.
const ENTERS_WITHIN: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Room {
    permits: Arc<Semaphore>,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    next: u64,
    /// By number, which grows: the first has been idle longest.
    waiting: BTreeMap<u64, (Instant, Arc<Notify>)>,
}

impl Room {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { permits, idle: Mutex::default() })
    }

    /// A place for one more connection; none if every place is in use.
    pub(super) async fn enter(self: &Arc<Self>) -> Option<Arc<Place>> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Some(Place::new(self, permit));
        }
        let until = Instant::now() + ENTERS_WITHIN;
        while Instant::now() < until {
            let patience = match self.idlest_for()? {
                so_long if so_long < GRACE => GRACE - so_long,
                _ => {
                    self.ask_idlest_to_leave();
                    LEAVES_WITHIN
                }
            };
            if let Ok(Ok(permit)) = timeout(patience, self.permits.clone().acquire_owned()).await {
                return Some(Place::new(self, permit));
            }
        }
        None
    }

    /// How long the idlest has been idle, if there is one.
    fn idlest_for(&self) -> Option<Duration> {
        self.idle().waiting.first_key_value().map(|(_, (since, _))| since.elapsed())
    }

    /// Whether there was one.
    pub(super) fn ask_idlest_to_leave(&self) -> bool {
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

/// One connection's place; free again when this is dropped.
pub(super) struct Place {
    room: Arc<Room>,
    leave: Arc<Notify>,
    /// Its number among the idle; meaningless while a request is served.
    number: Mutex<u64>,
    in_use: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(room: &Arc<Room>, permit: OwnedSemaphorePermit) -> Arc<Self> {
        let place = Arc::new(Self {
            room: room.clone(),
            leave: Arc::default(),
            number: Mutex::new(0),
            in_use: AtomicBool::new(true),
            _permit: permit,
        });
        place.rest();
        place
    }

    /// Ready when the connection is asked to make way.
    pub(super) async fn asked_to_leave(&self) {
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
        let mut idle = self.room.idle();
        let number = idle.next;
        idle.next += 1;
        idle.waiting.insert(number, (Instant::now(), self.leave.clone()));
        *self.number() = number;
        drop(idle);
        self.in_use.store(false, Ordering::Release);
    }

    fn forget(&self) {
        let number = *self.number();
        self.room.idle().waiting.remove(&number);
    }

    fn number(&self) -> MutexGuard<'_, u64> {
        self.number.lock_unpoisoned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.forget();
    }
}

/// A request on a connection.
pub(super) struct InUse(Arc<Place>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.rest();
    }
}

/// The body of an answer, which keeps its connection in use to its end.
pub(super) struct Served<B> {
    body: B,
    _in_use: InUse,
}

impl<B> Served<B> {
    pub(super) fn new(body: B, in_use: InUse) -> Self {
        Self { body, _in_use: in_use }
    }
}

impl<B: Body + Unpin> Body for Served<B> {
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
    async fn is_asked(place: &Place) -> bool {
        timeout(Duration::ZERO, place.asked_to_leave()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_idlest_makes_way_and_one_in_use_never() {
        let room = Room::new(3);
        let [first, second, third] = [room.enter().await, room.enter().await, room.enter().await];
        let (first, second, third) = (first.unwrap(), second.unwrap(), third.unwrap());
        // The first is the last to have become idle.
        drop(first.serve());
        let serving = second.serve();
        let leaving = async {
            third.asked_to_leave().await;
            drop(third);
        };
        let (entered, ()) = tokio::join!(room.enter(), leaving);
        assert!(entered.is_some());
        assert!(!is_asked(&first).await && !is_asked(&second).await);
        assert!(second.is_in_use());
        drop(serving);
        assert!(!second.is_in_use());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_just_come_is_left_alone_for_a_moment() {
        let room = Room::new(1);
        let place = room.enter().await.unwrap();
        let begin = Instant::now();
        let leaving = async {
            place.asked_to_leave().await;
            assert_eq!(begin.elapsed(), GRACE);
            drop(place);
        };
        let (entered, ()) = tokio::join!(room.enter(), leaving);
        assert!(entered.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_is_refused_while_all_are_in_use() {
        let room = Room::new(2);
        let places = [room.enter().await.unwrap(), room.enter().await.unwrap()];
        let serving = places.each_ref().map(Place::serve);
        assert!(room.enter().await.is_none());
        // Asked once their grace is over, and they do not leave: their next request came first.
        drop(serving);
        assert!(room.enter().await.is_none());
        assert!(is_asked(&places[0]).await && is_asked(&places[1]).await);
        drop(places);
        assert!(room.enter().await.is_some());
        assert!(room.idle().waiting.is_empty(), "who has left is forgotten");
    }
}
