//! The order in which starts are let in. Pure.
//!
//! A user without a child goes first, then users take turns, and within a user first come is first served: a user with
//! a hundred conversations waits behind itself, not before others.

use std::collections::{HashMap, VecDeque};

use crate::model::ids::UserId;

/// Identifies one waiting start.
pub(super) type Ticket = u64;

/// Starts that room is made for at the same time. Room is asked for again with every other start and every sample.
const MOST_ROOM: usize = 64;

/// Waiting starts and held permits. `W` is how a waiting start is woken.
#[derive(Debug)]
pub(super) struct StartQueue<W> {
    pub(super) children: usize,
    /// Children by user; without users that have none.
    pub(super) held: HashMap<UserId, usize>,
    pub(super) starting: usize,
    /// Children that have no user yet; they go for the starts that wait.
    pub(super) spares: usize,
    /// Those of them that sessions are about to get: they go for nobody.
    pub(super) promised: usize,
    /// Those of them that start.
    pub(super) starting_spares: usize,
    max_children: usize,
    max_starting: usize,
    max_waiting: usize,
    /// No start is let in.
    pub(super) closed: bool,
    /// Users with waiting starts, in the order of their turns.
    pub(super) users: VecDeque<UserId>,
    waiting: HashMap<UserId, VecDeque<(Ticket, W)>>,
    pub(super) length: usize,
    next_ticket: Ticket,
}

impl<W> StartQueue<W> {
    pub(super) fn new(max_children: usize, max_starting: usize, max_waiting: usize) -> Self {
        Self {
            children: 0,
            held: HashMap::new(),
            starting: 0,
            spares: 0,
            promised: 0,
            starting_spares: 0,
            max_children,
            max_starting,
            max_waiting,
            closed: false,
            users: VecDeque::new(),
            waiting: HashMap::new(),
            length: 0,
            next_ticket: 0,
        }
    }

    /// Takes over other limits.
    pub(super) fn reconfigure(&mut self, max_children: usize, max_starting: usize, max_waiting: usize) {
        (self.max_children, self.max_starting, self.max_waiting) = (max_children, max_starting, max_waiting);
    }

    /// Whether as many children live as may.
    pub(super) fn is_full(&self) -> bool {
        self.children >= self.max_children
    }

    /// Whether as many children live as may, and the spares among them are too few for the starts that wait.
    pub(super) fn is_full_of_users(&self, waiting: usize) -> bool {
        self.is_full() && self.children - self.giving_way() + waiting > self.max_children
    }

    /// Whether a start waits only because of the limit on living children.
    pub(super) fn wants_room(&self) -> bool {
        self.length > 0 && self.is_full_of_users(self.length)
    }

    /// Number of spares that go for the starts that wait.
    pub(super) fn giving_way(&self) -> usize {
        self.spares.saturating_sub(self.promised)
    }

    /// Number of starts that wait for spares alone: without any they would not wait. They take no place in the queue.
    fn waiting_for_spares(&self) -> usize {
        if self.closed {
            return 0;
        }
        let others = self.children - self.giving_way();
        let starting = self.starting - self.starting_spares;
        let (room, starts) =
            (self.max_children.saturating_sub(others), self.max_starting.saturating_sub(starting));
        room.min(starts).min(self.giving_way())
    }

    /// Whether as many children start as may.
    pub(super) fn is_starting_most(&self) -> bool {
        self.starting >= self.max_starting
    }

    /// Whether another child may start now.
    pub(super) fn has_room(&self) -> bool {
        !self.closed && !self.is_full() && !self.is_starting_most()
    }

    /// Counts a start that is let in.
    pub(super) fn acquire(&mut self, user: &UserId) {
        self.children += 1;
        self.starting += 1;
        *self.held.entry(user.clone()).or_default() += 1;
    }

    /// Counts a child without a user, which starts.
    pub(super) fn acquire_spare(&mut self) {
        self.children += 1;
        self.starting += 1;
        self.spares += 1;
        self.starting_spares += 1;
    }

    /// Counts a child that starts no more.
    pub(super) fn release_start(&mut self, is_spare: bool) {
        self.starting -= 1;
        self.starting_spares -= usize::from(is_spare);
    }

    /// Counts a spare for a user.
    pub(super) fn give_spare(&mut self, user: &UserId) {
        self.spares -= 1;
        *self.held.entry(user.clone()).or_default() += 1;
    }

    /// Counts a spare that is gone.
    pub(super) fn release_spare(&mut self) {
        self.spares -= 1;
        self.children -= 1;
    }

    /// Counts a child that is gone.
    pub(super) fn release_child(&mut self, user: &UserId) {
        self.children -= 1;
        if let Some(count) = self.held.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(user);
            }
        }
    }

    /// Index of the user whose turn is next: the first without a child, else the first.
    fn next_in_round(&self) -> Option<usize> {
        let newcomer = self.users.iter().position(|user| !self.held.contains_key(user));
        newcomer.or_else(|| (!self.users.is_empty()).then_some(0))
    }

    /// Adds a waiting start; `None` if the queue is full for this user.
    pub(super) fn enqueue(&mut self, user: &UserId, waiter: W) -> Option<Ticket> {
        // A user gets no more places than are left for all others: one user ends at half of the queue, two at a third
        // each, and there is always one for the next.
        let count = self.waiting.get(user).map_or(0, VecDeque::len);
        let most = self.max_waiting.saturating_add(self.waiting_for_spares());
        if count >= most.saturating_sub(self.length) {
            return None;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.length += 1;
        let own = self.waiting.entry(user.clone()).or_default();
        if own.is_empty() {
            self.users.push_back(user.clone());
        }
        own.push_back((ticket, waiter));
        Some(ticket)
    }

    /// Removes the next start; its user goes to the end of the round.
    pub(super) fn dequeue(&mut self) -> Option<(UserId, W)> {
        let user = self.users.remove(self.next_in_round()?)?;
        let own = self.waiting.get_mut(&user)?;
        let next = own.pop_front();
        if own.is_empty() {
            self.waiting.remove(&user);
        } else {
            self.users.push_back(user.clone());
        }
        self.length -= usize::from(next.is_some());
        next.map(|(_, waiter)| (user, waiter))
    }

    /// The users of the next starts, in the order in which they are let in if no child goes meanwhile.
    pub(super) fn order(&self) -> Vec<UserId> {
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
                if self.waiting.get(*user).is_some_and(|own| own.len() > turn + served) {
                    order.push((*user).clone());
                }
            }
        }
        order
    }

    /// Removes a start that no longer waits.
    pub(super) fn leave(&mut self, user: &UserId, ticket: Ticket) {
        let Some(own) = self.waiting.get_mut(user) else { return };
        let before = own.len();
        own.retain(|(other, _)| *other != ticket);
        self.length -= before - own.len();
        if own.is_empty() {
            self.waiting.remove(user);
            self.users.retain(|other| other != user);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    #[test]
    fn users_take_turns() {
        let mut queue = StartQueue::new(0, 0, 100);
        for name in ["a", "a", "a", "b", "c", "a"] {
            queue.enqueue(&user(name), name).unwrap();
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.dequeue()).map(|(_, name)| name).collect();
        assert_eq!(order, ["a", "b", "c", "a", "a", "a"]);
    }

    #[test]
    fn one_user_does_not_fill_the_queue() {
        let mut queue = StartQueue::new(0, 0, 100);
        let placed = (0..100).filter_map(|_| queue.enqueue(&user("a"), ())).count();
        assert_eq!(placed, 50);
        for number in 0..40 {
            queue.enqueue(&user(&format!("other {number}")), ()).expect("a place for a newcomer");
        }
    }

    #[test]
    fn admission_newcomer_passes_a_flood_of_one_user() {
        let mut queue = StartQueue::new(256, 1, 1024);
        // The first of alice's 200 starts; the others wait.
        queue.acquire(&user("alice"));
        for _ in 1..200 {
            queue.enqueue(&user("alice"), ()).unwrap();
        }
        queue.enqueue(&user("bob"), ()).unwrap();
        let order = queue.order();
        assert_eq!((&order[0], order.len()), (&user("bob"), MOST_ROOM));
        assert_eq!(queue.dequeue().unwrap().0, user("bob"));
        assert_eq!(queue.dequeue().unwrap().0, user("alice"));
    }

    proptest! {
        /// A user without a child when a place is free is served before all who have one; those take turns.
        #[test]
        fn admission_order_holds_for_any_arrivals(
            arrivals in prop::collection::vec(0u8..6, 1..60),
            holders in prop::collection::vec(0u8..6, 0..6),
        ) {
            let name = |number: &u8| user(&format!("user {number}"));
            let mut queue = StartQueue::new(0, 0, 1 << 20);
            holders.iter().for_each(|number| queue.acquire(&name(number)));
            for number in &arrivals {
                queue.enqueue(&name(number), ()).unwrap();
            }
            let predicted = queue.order();
            let mut served = Vec::new();
            loop {
                let is_new = |user: &&UserId| !queue.held.contains_key(*user);
                let newcomer = queue.users.iter().find(is_new).cloned();
                let Some((next, _)) = queue.dequeue() else { break };
                prop_assert!(newcomer.is_none_or(|newcomer| newcomer == next));
                queue.acquire(&next);
                served.push(next);
            }
            prop_assert_eq!(served.len(), arrivals.len());
            prop_assert_eq!(&predicted[..], &served[..predicted.len()]);
        }
    }
}
