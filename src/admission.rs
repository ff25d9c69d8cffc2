//! Who may start a child, and when: a bounded queue in front of three limits.
//!
//! At most so many children live, at most so many of them start at the same time, and none starts under memory
//! pressure. Who has no child yet goes first, then users take turns, and within a user first come is first served: a user
//! with a hundred conversations waits behind itself, not before others. The order is [`Line`], pure; [`Admission`] adds the waiting.

pub(crate) mod room;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::config::Limits;
use crate::error::TurnError;
use crate::model::ids::UserId;
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::{AdmissionRejected, Metrics};

/// How scarce memory is. Each level includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pressure {
    /// None.
    Open = 0,
    /// Idle sessions are evicted.
    Evicting = 1,
    /// No new children.
    NoNewChildren = 2,
    /// No new turns for sessions without a warm child.
    NoNewTurns = 3,
}

impl Pressure {
    /// Below this share of the budget there is no pressure any more, whatever was before.
    pub(crate) const RELAXED_PERCENT: u64 = 80 - HYSTERESIS;

    /// The level at `used` of `budget` bytes. Having risen, a level is left only well below its mark, so that it does
    /// not flap.
    pub(crate) fn of(used: u64, budget: u64, before: Self) -> Self {
        let percent = used.saturating_mul(100) / budget.max(1);
        let mark =
            |level: Self, mark: u64| if before >= level { mark.saturating_sub(HYSTERESIS) } else { mark };
        if percent >= mark(Self::NoNewTurns, 95) {
            Self::NoNewTurns
        } else if percent >= mark(Self::NoNewChildren, 90) {
            Self::NoNewChildren
        } else if percent >= mark(Self::Evicting, 80) {
            Self::Evicting
        } else {
            Self::Open
        }
    }
}

/// In percent of the budget.
const HYSTERESIS: u64 = 3;

/// Starts that room is made for at the same time. It is asked for again with every other start and every sample.
const MOST_ROOM: usize = 64;

/// When to try again after a refusal: about as long as one start takes.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The gate that every start goes through.
#[derive(Debug)]
pub(crate) struct Admission {
    line: Mutex<Line>,
    pressure: AtomicU8,
    deadline: Duration,
    metrics: Arc<Metrics>,
}

/// The right to have a child. Given back when dropped: when the child and its tree are gone.
#[derive(Debug)]
pub(crate) struct ChildPermit(Arc<Admission>, UserId);

/// The right to be starting. Given back when dropped: when the child is ready, or is not going to be.
#[derive(Debug)]
pub(crate) struct StartPermit(Arc<Admission>);

/// Who wants a child, in the order of their turns, and who has how many.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    pub(crate) waiting: Vec<UserId>,
    pub(crate) held: HashMap<UserId, usize>,
}

type Ticket = u64;
type Permits = (StartPermit, ChildPermit);

/// The order of those who wait. Pure.
#[derive(Debug, Default)]
struct Line {
    children: usize,
    /// The same by user; nobody with none.
    held: HashMap<UserId, usize>,
    starting: usize,
    max_children: usize,
    max_starting: usize,
    max_waiting: usize,
    closed: bool,
    /// Users with someone waiting, in the order of their turns.
    users: VecDeque<UserId>,
    waiting: HashMap<UserId, VecDeque<(Ticket, oneshot::Sender<Permits>)>>,
    length: usize,
    next_ticket: Ticket,
}

impl Line {
    fn has_room(&self) -> bool {
        !self.closed && self.children < self.max_children && self.starting < self.max_starting
    }

    fn take_place(&mut self, user: &UserId) {
        self.children += 1;
        self.starting += 1;
        *self.held.entry(user.clone()).or_default() += 1;
    }

    fn give_back_child(&mut self, user: &UserId) {
        self.children -= 1;
        if let Some(count) = self.held.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(user);
            }
        }
    }

    /// The place in the round of the user who is next: the first without a child, else the first.
    fn next_in_round(&self) -> Option<usize> {
        let newcomer = self.users.iter().position(|user| !self.held.contains_key(user));
        newcomer.or_else(|| (!self.users.is_empty()).then_some(0))
    }

    fn enqueue(&mut self, user: &UserId) -> Option<(Ticket, oneshot::Receiver<Permits>)> {
        // Nobody gets more places than are left for all others: so one user ends at half of the line, two at a third
        // each, and there is always one for the next.
        let own = self.waiting.get(user).map_or(0, VecDeque::len);
        if own >= self.max_waiting.saturating_sub(self.length) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.length += 1;
        let line = self.waiting.entry(user.clone()).or_default();
        if line.is_empty() {
            self.users.push_back(user.clone());
        }
        line.push_back((ticket, sender));
        Some((ticket, receiver))
    }

    /// Takes the next one out; its user goes to the end of the round.
    fn dequeue(&mut self) -> Option<(UserId, oneshot::Sender<Permits>)> {
        let user = self.users.remove(self.next_in_round()?)?;
        let line = self.waiting.get_mut(&user)?;
        let next = line.pop_front();
        if line.is_empty() {
            self.waiting.remove(&user);
        } else {
            self.users.push_back(user.clone());
        }
        self.length -= usize::from(next.is_some());
        next.map(|(_, sender)| (user, sender))
    }

    /// The users of the next starts, in the order in which they are let in if no child goes meanwhile.
    fn order(&self) -> Vec<UserId> {
        let is_new = |user: &&UserId| !self.held.contains_key(*user);
        let (new, others): (Vec<_>, Vec<_>) = self.users.iter().partition(is_new);
        let mut order: Vec<UserId> = new.iter().take(MOST_ROOM).map(|user| (*user).clone()).collect();
        // Then round by round.
        let round: Vec<&UserId> = others.into_iter().chain(new.iter().copied()).collect();
        let longest = self.waiting.values().map(VecDeque::len).max().unwrap_or_default();
        for turn in 0..longest {
            for user in &round {
                if order.len() >= MOST_ROOM {
                    return order;
                }
                let served = usize::from(new.contains(user));
                if self.waiting.get(*user).is_some_and(|line| line.len() > turn + served) {
                    order.push((*user).clone());
                }
            }
        }
        order
    }

    fn leave(&mut self, user: &UserId, ticket: Ticket) {
        let Some(line) = self.waiting.get_mut(user) else { return };
        let before = line.len();
        line.retain(|(other, _)| *other != ticket);
        self.length -= before - line.len();
        if line.is_empty() {
            self.waiting.remove(user);
            self.users.retain(|other| other != user);
        }
    }
}

impl Admission {
    pub(crate) fn new(limits: &Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.set_starts_limit(limits.starts_in_flight);
        let line = Line {
            max_children: limits.max_children,
            max_starting: limits.starts_in_flight,
            max_waiting: limits.queue,
            ..Line::default()
        };
        Arc::new(Self {
            line: Mutex::new(line),
            pressure: AtomicU8::new(Pressure::Open as u8),
            deadline: limits.queue_deadline,
            metrics,
        })
    }

    /// Waits for the right to start a child. May be cancelled at any time.
    ///
    /// # Errors
    /// [`TurnError::Overloaded`] at once if too many wait, or at the deadline.
    pub(crate) async fn admit(self: &Arc<Self>, user: &UserId) -> Result<Permits, TurnError> {
        let (ticket, granted) = {
            let mut line = self.lock();
            if line.length == 0 && line.has_room() {
                line.take_place(user);
                self.publish(&line);
                self.metrics.queue_waited(Duration::ZERO);
                return Ok(self.permits(user));
            }
            let Some(place) = line.enqueue(user) else {
                drop(line);
                return Err(
                    self.refuse(AdmissionRejected::QueueFull, "too many starts wait already (limits.queue)")
                );
            };
            self.publish(&line);
            place
        };
        let _place = Place { admission: self, user, ticket };
        let since = tokio::time::Instant::now();
        match timeout(self.deadline, granted).await {
            Ok(Ok(permits)) => {
                self.metrics.queue_waited(since.elapsed());
                Ok(permits)
            }
            Ok(Err(_)) => Err(TurnError::Draining),
            Err(_) if self.pressure() >= Pressure::NoNewChildren => Err(self.refuse(
                AdmissionRejected::Memory,
                "no memory is left for another child (limits.memory_budget)",
            )),
            Err(_) => Err(self.refuse(
                AdmissionRejected::Deadline,
                "no child could be started in time (limits.max_children, limits.queue_deadline)",
            )),
        }
    }

    /// Refuses what would need a child while there is no memory for one.
    ///
    /// # Errors
    /// [`TurnError::Overloaded`].
    pub(crate) fn check_memory(&self) -> Result<(), TurnError> {
        if self.pressure() == Pressure::NoNewTurns {
            return Err(self.refuse(
                AdmissionRejected::Memory,
                "no memory is left for another child (limits.memory_budget)",
            ));
        }
        Ok(())
    }

    /// Whether somebody waits although children could start: the limit on living children is what is in the way.
    pub(crate) fn wants_room(&self) -> bool {
        let line = self.lock();
        line.length > 0 && line.children >= line.max_children
    }

    /// For whom room is to be made: those who wait, and `also`, who is about to.
    pub(crate) fn wishes(&self, also: Option<&UserId>) -> Wishes {
        let line = self.lock();
        let mut waiting = line.order();
        if let Some(user) = also {
            let is_new = !line.held.contains_key(user) && !waiting.contains(user);
            waiting.insert(if is_new { 0 } else { waiting.len() }, user.clone());
        }
        Wishes { waiting, held: line.held.clone() }
    }

    /// How many children each user has.
    pub(crate) fn held(&self) -> HashMap<UserId, usize> {
        self.lock().held.clone()
    }

    /// Whether a new user would have to wait for somebody else's child to go.
    pub(crate) fn is_full(&self) -> bool {
        let line = self.lock();
        line.children >= line.max_children
    }

    pub(crate) fn pressure(&self) -> Pressure {
        match self.pressure.load(Ordering::Relaxed) {
            0 => Pressure::Open,
            1 => Pressure::Evicting,
            2 => Pressure::NoNewChildren,
            _ => Pressure::NoNewTurns,
        }
    }

    pub(crate) fn set_pressure(self: &Arc<Self>, pressure: Pressure) {
        self.pressure.store(pressure as u8, Ordering::Relaxed);
        self.metrics.set_admission_state(pressure as u8);
        self.lock().closed = pressure >= Pressure::NoNewChildren;
        self.grant();
    }

    /// Lets in whoever can be let in. The permits are sent outside the lock: dropping one that nobody takes any more
    /// comes back here.
    fn grant(self: &Arc<Self>) {
        loop {
            let next = {
                let mut line = self.lock();
                if !line.has_room() {
                    return self.publish(&line);
                }
                let Some((user, next)) = line.dequeue() else { return self.publish(&line) };
                line.take_place(&user);
                (user, next)
            };
            let (user, next) = next;
            drop(next.send(self.permits(&user)));
        }
    }

    fn permits(self: &Arc<Self>, user: &UserId) -> Permits {
        (StartPermit(self.clone()), ChildPermit(self.clone(), user.clone()))
    }

    fn refuse(&self, why: AdmissionRejected, reason: &'static str) -> TurnError {
        self.metrics.admission_rejected(why);
        TurnError::Overloaded { reason, retry_after: RETRY_AFTER }
    }

    fn publish(&self, line: &Line) {
        self.metrics.set_starts_in_flight(line.starting);
        self.metrics.set_admission_queue_length(line.length);
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        // The line is only counted up and down under the lock: a panic elsewhere leaves it usable.
        self.line.lock_unpoisoned()
    }
}

/// A place in the line, given up when its owner stops waiting.
struct Place<'a> {
    admission: &'a Arc<Admission>,
    user: &'a UserId,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = self.admission.lock();
        line.leave(self.user, self.ticket);
        self.admission.publish(&line);
    }
}

impl Drop for StartPermit {
    fn drop(&mut self) {
        self.0.lock().starting -= 1;
        self.0.grant();
    }
}

impl Drop for ChildPermit {
    fn drop(&mut self) {
        self.0.lock().give_back_child(&self.1);
        self.0.grant();
    }
}

#[cfg(test)]
mod tests {
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
        Admission::new(&limits, Arc::new(Metrics::register("pilotlight_")))
    }

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn starts_are_limited_and_given_on() {
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

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_at_once_and_a_long_wait_at_the_deadline() {
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
    async fn who_stops_waiting_leaves_nothing_behind() {
        let gate = admission(1, 1, 10);
        let held = gate.admit(&user("a")).await.unwrap();
        assert!(timeout(Duration::from_secs(1), gate.admit(&user("b"))).await.is_err());
        drop(held);
        gate.admit(&user("c")).await.unwrap();
        let line = gate.lock();
        assert_eq!((line.length, line.children, line.starting, line.users.len()), (0, 0, 0, 0));
    }

    #[test]
    fn users_take_turns() {
        let mut line = Line { max_waiting: 100, ..Line::default() };
        let mut receivers = Vec::new();
        for name in ["a", "a", "a", "b", "c", "a"] {
            receivers.push((name, line.enqueue(&user(name)).unwrap().1));
        }
        let mut order = Vec::new();
        while let Some((_, sender)) = line.dequeue() {
            drop(sender);
            let index = receivers.iter_mut().position(|(_, receiver)| {
                matches!(receiver.try_recv(), Err(oneshot::error::TryRecvError::Closed))
            });
            order.push(receivers.remove(index.unwrap()).0);
        }
        assert_eq!(order, ["a", "b", "c", "a", "a", "a"]);
    }

    #[test]
    fn one_user_does_not_fill_the_line() {
        let mut line = Line { max_waiting: 100, ..Line::default() };
        let mut waiting = Vec::new();
        for _ in 0..100 {
            waiting.extend(line.enqueue(&user("a")));
        }
        assert_eq!(waiting.len(), 50);
        for number in 0..40 {
            waiting.push(line.enqueue(&user(&format!("other {number}"))).expect("a place for a newcomer"));
        }
    }

    #[test]
    fn pressure_rises_and_falls_without_flapping() {
        use Pressure::{Evicting, NoNewChildren, NoNewTurns, Open};
        let level = |used, before| Pressure::of(used, 100, before);
        assert_eq!(
            [79, 80, 90, 95, 200].map(|used| level(used, Open)),
            [Open, Evicting, NoNewChildren, NoNewTurns, NoNewTurns]
        );
        assert_eq!(level(88, NoNewChildren), NoNewChildren);
        assert_eq!(level(86, NoNewChildren), Evicting);
        assert_eq!(level(76, Evicting), Open);
        assert_eq!(Pressure::of(1, 0, Open), NoNewTurns);
    }

    #[test]
    fn admission_newcomer_passes_a_flood_of_one_user() {
        let mut line = Line { max_children: 256, max_starting: 1, max_waiting: 1024, ..Line::default() };
        // The first of alice's 200 starts; the others wait.
        line.take_place(&user("alice"));
        let mut waiting: Vec<_> = (1..200).map(|_| line.enqueue(&user("alice")).unwrap()).collect();
        waiting.push(line.enqueue(&user("bob")).unwrap());
        let order = line.order();
        assert_eq!((&order[0], order.len()), (&user("bob"), MOST_ROOM));
        assert_eq!(line.dequeue().unwrap().0, user("bob"));
        assert_eq!(line.dequeue().unwrap().0, user("alice"));
    }

    proptest! {
        /// Whoever has no child when a place is free is served before all who have one; those take turns.
        #[test]
        fn admission_order_holds_for_any_arrivals(
            arrivals in prop::collection::vec(0u8..6, 1..60),
            holders in prop::collection::vec(0u8..6, 0..6),
        ) {
            let name = |number: &u8| user(&format!("user {number}"));
            let mut line = Line { max_waiting: 1 << 20, ..Line::default() };
            holders.iter().for_each(|number| line.take_place(&name(number)));
            let _waiting: Vec<_> = arrivals.iter().map(|number| line.enqueue(&name(number)).unwrap()).collect();
            let predicted = line.order();
            let mut served = Vec::new();
            loop {
                let is_new = |user: &&UserId| !line.held.contains_key(*user);
                let newcomer = line.users.iter().find(is_new).cloned();
                let Some((next, _)) = line.dequeue() else { break };
                prop_assert!(newcomer.is_none_or(|newcomer| newcomer == next));
                line.take_place(&next);
                served.push(next);
            }
            prop_assert_eq!(served.len(), arrivals.len());
            prop_assert_eq!(&predicted[..], &served[..predicted.len()]);
        }
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
                    let line = gate.lock();
                    assert!(line.children <= 4 && line.starting <= 2 && line.length <= 3);
                    assert_eq!(line.children, held.len());
                    assert_eq!(line.held.values().sum::<usize>(), held.len());
                }
                held.clear();
                let line = gate.lock();
                assert_eq!((line.children, line.starting, line.length, line.held.len()), (0, 0, 0, 0));
            });
        }
    }
}
