//! Admission of starts: a bounded queue before three limits.
//!
//! Living children and simultaneous starts have limits, and none starts under memory pressure. The order is
//! [`StartQueue`], the pressure [`Pressure`], the choice of children that make room [`room`], all pure; [`Admission`]
//! adds the waiting.

mod pressure;
mod queue;
pub(crate) mod room;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

pub(crate) use self::pressure::Pressure;
use self::queue::{StartQueue, Ticket};
use crate::config::Limits;
use crate::error::TurnError;
use crate::model::ids::UserId;
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::{AdmissionRejected, Metrics};

/// When to try again after a refusal: about as long as one start takes.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why nothing starts under memory pressure.
pub(crate) const NO_MEMORY: &str = "no memory is left for another child (limits.memory_budget)";

/// Admission of every start.
#[derive(Debug)]
pub(crate) struct Admission {
    queue: Mutex<Queue>,
    pressure: Mutex<Pressure>,
    deadline: Mutex<Duration>,
    metrics: Arc<Metrics>,
    /// Notified when a start begins to wait.
    pub(crate) waits: Notify,
    /// Notified when a start waits for which a session's child has to go.
    pub(crate) wants_child: Notify,
}

/// The right to have a child. Given back when dropped: when the child and its tree are gone.
#[derive(Debug)]
pub(crate) struct ChildPermit(Arc<Admission>, UserId);

/// The right of a child without a user. Given back when dropped: when the child and its tree are gone.
#[derive(Debug)]
pub(crate) struct SparePermit(Option<Arc<Admission>>, Option<SparePromise>);

/// That a session is about to get a spare, which gives way to no start until this is dropped.
#[derive(Debug)]
pub(crate) struct SparePromise(Arc<Admission>);

/// What spares must know of the starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Starts that wait.
    pub(crate) waiting: usize,
    /// As many children live as may.
    pub(crate) is_full: bool,
    /// As many children start as may.
    pub(crate) is_starting_most: bool,
}

/// What is in use of the limits on starts.
#[cfg(feature = "server")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) children: usize,
    pub(crate) starting: usize,
    pub(crate) waiting: usize,
}

/// The right to be starting. Given back when dropped: when the child is ready, or is not going to be.
#[derive(Debug)]
pub(crate) struct StartPermit {
    admission: Arc<Admission>,
    is_spare: bool,
}

/// Users who wait for a child, in the order of admission, and the children each user has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    pub(crate) waiting: Vec<UserId>,
    pub(crate) held: HashMap<UserId, usize>,
}

type Permits = (StartPermit, ChildPermit);
type Queue = StartQueue<oneshot::Sender<Permits>>;

impl Admission {
    pub(crate) fn new(limits: &Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.starts_limit.set(limits.starts_in_flight as f64);
        let queue = StartQueue::new(limits.max_children, limits.starts_in_flight, limits.queue);
        Arc::new(Self {
            queue: Mutex::new(queue),
            pressure: Mutex::new(Pressure::Open),
            deadline: Mutex::new(limits.queue_deadline),
            metrics,
            waits: Notify::new(),
            wants_child: Notify::new(),
        })
    }

    /// Takes over other limits. Children above a lower limit stay; starts that wait keep their deadline.
    pub(crate) fn reconfigure(self: &Arc<Self>, limits: &Limits) {
        self.metrics.starts_limit.set(limits.starts_in_flight as f64);
        *self.deadline.lock_unpoisoned() = limits.queue_deadline;
        self.lock().reconfigure(limits.max_children, limits.starts_in_flight, limits.queue);
        self.grant();
    }

    /// Waits for the right to start a child. May be cancelled at any time.
    ///
    /// # Errors
    /// [`TurnError::Overloaded`] at once if too many wait, or at the deadline.
    pub(crate) async fn admit(self: &Arc<Self>, user: &UserId) -> Result<Permits, TurnError> {
        let (ticket, granted) = {
            let mut queue = self.lock();
            if queue.length == 0 && queue.has_room() {
                queue.acquire(user);
                self.publish(&queue);
                self.metrics.queue_wait.record(Duration::ZERO);
                return Ok(self.permits(user));
            }
            let (sender, granted) = oneshot::channel();
            let Some(ticket) = queue.enqueue(user, sender) else {
                drop(queue);
                return Err(
                    self.refuse(AdmissionRejected::QueueFull, "too many starts wait already (limits.queue)")
                );
            };
            self.publish(&queue);
            self.waits.notify_one();
            self.ask(&queue);
            (ticket, granted)
        };
        let _waiting = Waiting { admission: self, user, ticket };
        let since = tokio::time::Instant::now();
        let deadline = *self.deadline.lock_unpoisoned();
        match timeout(deadline, granted).await {
            Ok(Ok(permits)) => {
                self.metrics.queue_wait.record(since.elapsed());
                Ok(permits)
            }
            Ok(Err(_)) => Err(TurnError::Draining),
            Err(_) if self.pressure() >= Pressure::NoNewChildren => {
                Err(self.refuse(AdmissionRejected::Memory, NO_MEMORY))
            }
            Err(_) => Err(self.refuse(
                AdmissionRejected::Deadline,
                "no child could be started in time (limits.max_children, limits.queue_deadline)",
            )),
        }
    }

    /// The right to start a child without a user, while no start is in flight or waits.
    pub(crate) fn admit_spare(self: &Arc<Self>) -> Option<(StartPermit, SparePermit)> {
        let mut queue = self.lock();
        let is_quiet = queue.length == 0 && queue.starting == 0 && queue.has_room();
        is_quiet.then(|| {
            queue.acquire_spare();
            self.publish(&queue);
            (self.start_permit(true), SparePermit(Some(self.clone()), None))
        })
    }

    /// Counts a spare no longer among those that give way.
    pub(crate) fn promise_spare(self: &Arc<Self>) -> SparePromise {
        self.lock().promised += 1;
        SparePromise(self.clone())
    }

    pub(crate) fn demand(&self) -> Demand {
        let queue = self.lock();
        Demand { waiting: queue.length, is_full: queue.is_full(), is_starting_most: queue.is_starting_most() }
    }

    #[cfg(feature = "server")]
    pub(crate) fn used(&self) -> Used {
        let queue = self.lock();
        Used { children: queue.children, starting: queue.starting, waiting: queue.length }
    }

    /// Whether the user has a child, or waits for one.
    pub(crate) fn knows(&self, user: &UserId) -> bool {
        let queue = self.lock();
        queue.held.contains_key(user) || queue.users.contains(user)
    }

    /// Refuses what would need a child while there is no memory for one.
    ///
    /// # Errors
    /// [`TurnError::Overloaded`].
    pub(crate) fn check_memory(&self) -> Result<(), TurnError> {
        if self.pressure() == Pressure::NoNewTurns {
            return Err(self.refuse(AdmissionRejected::Memory, NO_MEMORY));
        }
        Ok(())
    }

    /// Whether a start waits only because of the limit on living children.
    pub(crate) fn wants_room(&self) -> bool {
        self.lock().wants_room()
    }

    /// Has sessions' children go that may go by now, if starts wait for them.
    pub(crate) fn ask_for_room(&self) {
        self.ask(&self.lock());
    }

    /// Under the lock: what comes to rest later finds the starts that wait.
    fn ask(&self, queue: &Queue) {
        if queue.wants_room() {
            self.wants_child.notify_one();
        }
    }

    /// The starts for which sessions' children have to go.
    pub(crate) fn wishes(&self) -> Wishes {
        let queue = self.lock();
        let mut waiting = queue.order();
        // Spares go for the first of them.
        waiting.drain(..queue.giving_way().min(waiting.len()));
        Wishes { waiting, held: queue.held.clone() }
    }

    /// Number of children of each user.
    pub(crate) fn held(&self) -> HashMap<UserId, usize> {
        self.lock().held.clone()
    }

    pub(crate) fn pressure(&self) -> Pressure {
        *self.pressure.lock_unpoisoned()
    }

    pub(crate) fn set_pressure(self: &Arc<Self>, pressure: Pressure) {
        *self.pressure.lock_unpoisoned() = pressure;
        self.metrics.admission_state.set(pressure as u8);
        self.lock().closed = pressure >= Pressure::NoNewChildren;
        self.grant();
    }

    /// Admits all starts that there is room for. The permits are sent outside the lock: dropping one that is no longer
    /// waited for comes back here.
    fn grant(self: &Arc<Self>) {
        loop {
            let mut queue = self.lock();
            let next = if queue.has_room() { queue.dequeue() } else { None };
            let Some((user, next)) = next else {
                // Those that are let in may have taken the last room.
                self.ask(&queue);
                return self.publish(&queue);
            };
            queue.acquire(&user);
            drop(queue);
            drop(next.send(self.permits(&user)));
        }
    }

    fn permits(self: &Arc<Self>, user: &UserId) -> Permits {
        (self.start_permit(false), ChildPermit(self.clone(), user.clone()))
    }

    fn start_permit(self: &Arc<Self>, is_spare: bool) -> StartPermit {
        StartPermit { admission: self.clone(), is_spare }
    }

    fn refuse(&self, why: AdmissionRejected, reason: &'static str) -> TurnError {
        self.metrics.admission_rejected.increment(why);
        TurnError::Overloaded { reason, retry_after: RETRY_AFTER }
    }

    fn publish(&self, queue: &Queue) {
        self.metrics.starts_in_flight.set(queue.starting as f64);
        self.metrics.admission_queue_length.set(queue.length as f64);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is only counted up and down under the lock: a panic elsewhere leaves it usable.
        self.queue.lock_unpoisoned()
    }
}

/// A place in the queue, given up when its owner stops waiting.
struct Waiting<'a> {
    admission: &'a Arc<Admission>,
    user: &'a UserId,
    ticket: Ticket,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut queue = self.admission.lock();
        queue.leave(self.user, self.ticket);
        self.admission.publish(&queue);
    }
}

impl Drop for StartPermit {
    fn drop(&mut self) {
        self.admission.lock().release_start(self.is_spare);
        self.admission.grant();
    }
}

impl Drop for ChildPermit {
    fn drop(&mut self) {
        self.0.lock().release_child(&self.1);
        self.0.grant();
    }
}

impl SparePermit {
    /// Keeps the promise for as long as the spare is one.
    pub(crate) fn promised(&mut self, promise: SparePromise) {
        self.1 = Some(promise);
    }

    /// The spare is now the child of this user.
    pub(crate) fn give(mut self, user: &UserId) -> Option<ChildPermit> {
        let admission = self.0.take()?;
        admission.lock().give_spare(user);
        Some(ChildPermit(admission, user.clone()))
    }
}

impl Drop for SparePromise {
    fn drop(&mut self) {
        self.0.lock().promised -= 1;
    }
}

impl Drop for SparePermit {
    fn drop(&mut self) {
        if let Some(admission) = self.0.take() {
            admission.lock().release_spare();
            admission.grant();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    fn admission(children: usize, starting: usize, queue: usize) -> Arc<Admission> {
        let limits = Limits {
            max_children: children,
            starts_in_flight: starting,
            queue,
            queue_deadline: Duration::from_secs(30),
            ..Limits::default()
        };
        Admission::new(&limits, Arc::new(Metrics::register(&::metrics::NoopRecorder, "pilotlight_")))
    }

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn start_over_the_limit_waits() {
        let gate = admission(10, 1, 10);
        let (start, _child) = gate.admit(&user("a")).await.unwrap();
        let second = {
            let gate = gate.clone();
            async move { gate.admit(&user("b")).await }
        };
        let mut second = Box::pin(second);
        assert!(timeout(Duration::from_secs(1), &mut second).await.is_err(), "two starts at once");
        drop(start);
        second.await.unwrap();
    }

    fn asks(gate: &Admission) -> bool {
        gate.wants_child.notified().now_or_never().is_some()
    }

    /// A child that comes to rest has to find the start among those that wait.
    #[tokio::test(start_paused = true)]
    async fn room_is_asked_for_once_the_start_waits() {
        let gate = admission(1, 1, 10);
        let held = gate.admit(&user("a")).await.unwrap();
        assert!(!asks(&gate), "there was room");
        let b = user("b");
        let mut waiting = Box::pin(gate.admit(&b));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert!(asks(&gate) && gate.wishes().waiting == [user("b")]);
        drop(held);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_asked_for_when_others_take_the_last() {
        let gate = admission(2, 1, 10);
        let (starting, _child) = gate.admit(&user("a")).await.unwrap();
        let (b, c) = (user("b"), user("c"));
        let (mut second, mut third) = (Box::pin(gate.admit(&b)), Box::pin(gate.admit(&c)));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(!asks(&gate), "there is room for another child");
        assert!(futures_util::poll!(&mut third).is_pending());
        asks(&gate);
        drop(starting);
        let _second = second.await.unwrap();
        assert!(asks(&gate), "for the third");
    }

    #[tokio::test(start_paused = true)]
    async fn full_queue_refuses_and_long_wait_ends() {
        let gate = admission(1, 1, 1);
        let _held = gate.admit(&user("a")).await.unwrap();
        let before = tokio::time::Instant::now();
        let (a, b) = (user("a"), user("b"));
        let (waiting, refused) = tokio::join!(gate.admit(&a), gate.admit(&b));
        assert!(matches!(waiting, Err(TurnError::Overloaded { .. })));
        assert!(matches!(refused, Err(TurnError::Overloaded { .. })));
        assert_eq!(before.elapsed(), Duration::from_secs(30));
        assert_eq!(gate.lock().length, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn cancelled_wait_leaves_nothing_behind() {
        let gate = admission(1, 1, 10);
        let held = gate.admit(&user("a")).await.unwrap();
        assert!(timeout(Duration::from_secs(1), gate.admit(&user("b"))).await.is_err());
        drop(held);
        gate.admit(&user("c")).await.unwrap();
        let queue = gate.lock();
        assert_eq!((queue.length, queue.children, queue.starting, queue.users.len()), (0, 0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn spare_gives_way_to_a_start() {
        let gate = admission(2, 2, 10);
        let held = gate.admit(&user("a")).await.unwrap();
        assert!(gate.admit_spare().is_none(), "a start is in flight");
        drop(held.0);
        let (starting, spare) = gate.admit_spare().unwrap();
        drop(starting);
        assert!(gate.admit_spare().is_none(), "no child may be added");
        let other = user("b");
        let mut waiting = Box::pin(gate.admit(&other));
        assert!(timeout(Duration::from_secs(1), &mut waiting).await.is_err());
        gate.waits.notified().await;
        assert_eq!(gate.demand(), Demand { waiting: 1, is_full: true, is_starting_most: false });
        assert!(!gate.wants_room() && gate.wishes().waiting.is_empty(), "the spare goes, and no session");
        drop(spare);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn start_waiting_for_a_spare_takes_no_queue_place() {
        let gate = admission(1, 1, 1);
        let (starting, spare) = gate.admit_spare().unwrap();
        drop(starting);
        let freeing = async {
            tokio::task::yield_now().await;
            drop(spare);
        };
        let admit = async |name: &str| {
            let since = tokio::time::Instant::now();
            (gate.admit(&user(name)).await, since.elapsed())
        };
        let (first, second, third, ()) = tokio::join!(admit("a"), admit("b"), admit("c"), freeing);
        assert!(first.0.is_ok(), "the spare made room");
        assert_eq!(second.1, Duration::from_secs(30), "it waited in the one place of the queue");
        assert!(third.0.is_err() && third.1.is_zero());
    }

    /// Spares that are ready hold no start up, and while memory is scarce their ends help nobody.
    #[tokio::test(start_paused = true)]
    async fn queue_is_no_longer_by_spares_in_no_way() {
        let gate = admission(9, 1, 1);
        let (_spares, held) = {
            let spares: Vec<_> = (0..3).map(|_| gate.admit_spare().unwrap().1).collect();
            (spares, gate.admit(&user("a")).await.unwrap())
        };
        let is_placed = |name: &str, waiter| gate.lock().enqueue(&user(name), waiter).is_some();
        let (starting, _let_in) = oneshot::channel();
        assert!(is_placed("b", starting));
        assert!(!is_placed("c", oneshot::channel().0), "another child starts: the one place is taken");
        drop(held);
        gate.set_pressure(Pressure::NoNewChildren);
        assert!(is_placed("b", oneshot::channel().0));
        assert!(!is_placed("c", oneshot::channel().0), "nothing starts");
    }

    #[tokio::test(start_paused = true)]
    async fn promised_spare_gives_way_to_nobody() {
        let gate = admission(1, 1, 10);
        let (starting, mut spare) = gate.admit_spare().unwrap();
        drop(starting);
        let (taker, other) = (user("a"), user("b"));
        let mut waiting = Box::pin(gate.admit(&other));
        assert!(timeout(Duration::from_secs(1), &mut waiting).await.is_err());
        assert!(!gate.wants_room(), "the spare goes");
        spare.promised(gate.promise_spare());
        assert!(gate.wants_room() && gate.wishes().waiting == [other.clone()], "a session has to go");
        let permit = spare.give(&taker).unwrap();
        assert!(gate.wants_room());
        {
            let queue = gate.lock();
            assert_eq!((queue.spares, queue.promised), (0, 0));
        }
        drop(permit);
        waiting.await.unwrap();
        let (_, unclaimed) = {
            let (starting, mut spare) = gate.admit_spare().unwrap();
            spare.promised(gate.promise_spare());
            (starting, spare)
        };
        drop(unclaimed);
        let queue = gate.lock();
        assert_eq!((queue.children, queue.spares, queue.promised), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn given_spare_counts_for_its_user() {
        let gate = admission(1, 1, 10);
        let (starting, spare) = gate.admit_spare().unwrap();
        drop(starting);
        assert!(!gate.knows(&user("a")));
        let permit = spare.give(&user("a")).unwrap();
        assert!(gate.knows(&user("a")) && gate.demand().is_full);
        assert_eq!(gate.lock().spares, 0);
        drop(permit);
        let queue = gate.lock();
        assert_eq!((queue.children, queue.held.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn counts_come_back_to_zero(actions in prop::collection::vec((0u8..4, 0u8..5), 1..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let gate = admission(4, 2, 3);
                let mut held = Vec::new();
                for (action, who) in actions {
                    let name = user(&who.to_string());
                    match action {
                        0 | 1 => if let Ok(Ok(permits)) = timeout(Duration::from_millis(1), gate.admit(&name)).await {
                            held.push((Some(permits.0), permits.1));
                        },
                        2 => if let Some((start, _)) = held.iter_mut().find(|(start, _)| start.is_some()) {
                            *start = None;
                        },
                        _ => drop(held.pop()),
                    }
                    let queue = gate.lock();
                    assert!(queue.children <= 4 && queue.starting <= 2 && queue.length <= 3);
                    assert_eq!(queue.children, held.len());
                    assert_eq!(queue.held.values().sum::<usize>(), held.len());
                }
                held.clear();
                let queue = gate.lock();
                assert_eq!((queue.children, queue.starting, queue.length, queue.held.len()), (0, 0, 0, 0));
            });
        }
    }
}
