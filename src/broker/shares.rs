//! Something bounded that users share: slots at the model's API, memory for bodies.
//!
//! One user has at most half, over all sessions, unless no other has been here. What is free goes to the waiting user who
//! has least; among equals they take turns: requests of one user delay no other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use super::refusal::Refusal;
use crate::model::ids::UserId;
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::Metrics;

/// Maximum time that a request waits for its share.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);
/// Maximum requests of one user that wait: a few sessions with some subagents each.
pub(super) const MAX_WAITING: usize = 32;

#[derive(Debug)]
pub(super) struct Shares {
    units: usize,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    free: usize,
    seen: Seen,
    /// Those who have units or wait.
    users: HashMap<UserId, User>,
    /// In the order of their arrival.
    waiting: Vec<Waiting>,
    /// Number of the next request, and of the next grant.
    next: u64,
}

/// Who has ever had a child. A request lasts as long as its child wants, so half is kept before others need it.
#[derive(Debug, Default)]
pub(super) enum Seen {
    #[default]
    Nobody,
    One(UserId),
    Several,
}

#[derive(Debug, Default, Clone, Copy)]
struct User {
    held: usize,
    /// Number of the last grant.
    granted: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    user: UserId,
    units: usize,
    granted: oneshot::Sender<()>,
}

/// Units of one request, or its place in the queue.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    number: u64,
    user: UserId,
    units: usize,
}

impl Shares {
    pub(super) fn new(units: usize, seen: Seen, metrics: Arc<Metrics>) -> Arc<Self> {
        let state = State { free: units, seen, users: HashMap::new(), waiting: Vec::new(), next: 1 };
        Arc::new(Self { units, state: Mutex::new(state), metrics })
    }

    /// A child of the user begins: it may have requests.
    pub(super) fn meet(&self, user: &UserId) {
        let seen = &mut self.state.lock_unpoisoned().seen;
        match seen {
            Seen::Nobody => *seen = Seen::One(user.clone()),
            Seen::One(known) if known != user => *seen = Seen::Several,
            Seen::One(_) | Seen::Several => {}
        }
    }

    fn half(&self) -> usize {
        self.units.div_ceil(2)
    }

    fn grant(&self, state: &mut State) {
        state.grant(if matches!(state.seen, Seen::Several) { self.half() } else { self.units });
    }

    /// Waits for a share.
    ///
    /// # Errors
    /// There was none in time, or too many requests of the user wait already.
    pub(super) async fn acquire(self: &Arc<Self>, user: &UserId, units: usize) -> Result<Share, Refusal> {
        let (share, mut granted) = self.enter(user, units).ok_or_else(Refusal::overloaded)?;
        if granted.try_recv().is_err() {
            let _counted = Counted::new(&self.metrics);
            let granted = tokio::time::timeout(MAX_WAIT, granted).await;
            granted.map_err(|_| Refusal::overloaded())?.map_err(|_| Refusal::overloaded())?;
        }
        Ok(share)
    }

    fn enter(self: &Arc<Self>, user: &UserId, units: usize) -> Option<(Share, oneshot::Receiver<()>)> {
        let units = units.min(self.half());
        let (granted, receiver) = oneshot::channel();
        let mut state = self.state.lock_unpoisoned();
        if state.waiting.iter().filter(|waiting| waiting.user == *user).count() >= MAX_WAITING {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.waiting.push(Waiting { number, user: user.clone(), units, granted });
        self.grant(&mut state);
        Some((Share { shares: self.clone(), number, user: user.clone(), units }, receiver))
    }
}

impl State {
    fn of(&self, user: &UserId) -> User {
        self.users.get(user).copied().unwrap_or_default()
    }

    /// Gives to those whose turn it is. One that needs more than is free is waited for: it would never come.
    fn grant(&mut self, most_of_one: usize) {
        while let Some(at) = self.next_in_turn(most_of_one) {
            if self.waiting.get(at).is_none_or(|waiting| waiting.units > self.free) {
                return;
            }
            let Waiting { user, units, granted, .. } = self.waiting.remove(at);
            self.free -= units;
            let user = self.users.entry(user).or_default();
            (user.held, user.granted) = (user.held + units, self.next);
            self.next += 1;
            // A receiver that is gone gives the share back when it is dropped.
            granted.send(()).ok();
        }
    }

    /// Place in the queue of the request whose turn it is.
    fn next_in_turn(&self, most_of_one: usize) -> Option<usize> {
        let waiting = self.waiting.iter().enumerate();
        let may_have =
            waiting.filter(|(_, waiting)| self.of(&waiting.user).held + waiting.units <= most_of_one);
        let in_turn = |(at, waiting): &(usize, &Waiting)| {
            let User { held, granted } = self.of(&waiting.user);
            (held, granted, *at)
        };
        may_have.min_by_key(in_turn).map(|(at, _)| at)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.shares.state.lock_unpoisoned();
        match state.waiting.iter().position(|waiting| waiting.number == self.number) {
            Some(at) => drop(state.waiting.remove(at)),
            None => {
                state.free += self.units;
                if let Some(user) = state.users.get_mut(&self.user) {
                    user.held = user.held.saturating_sub(self.units);
                }
            }
        }
        let has_left =
            state.of(&self.user).held == 0 && state.waiting.iter().all(|waiting| waiting.user != self.user);
        if has_left {
            state.users.remove(&self.user);
        }
        self.shares.grant(&mut state);
    }
}

/// Counts a waiting request.
struct Counted<'a>(&'a Metrics);

impl<'a> Counted<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.upstream_waiting.increment(1.0);
        Self(metrics)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.upstream_waiting.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::task::JoinSet;

    use super::super::tests::metrics;
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn now(shares: &Arc<Shares>, name: &str, units: usize) -> Option<Share> {
        shares.acquire(&user(name), units).now_or_never().and_then(Result::ok)
    }

    #[tokio::test(start_paused = true)]
    async fn one_user_has_half_and_waits() {
        let shares = Shares::new(5, Seen::Several, metrics());
        let mut held: Vec<_> = (0..3).map(|_| now(&shares, "greedy", 1).unwrap()).collect();
        assert!(now(&shares, "greedy", 1).is_none());
        let others = [now(&shares, "modest", 1).unwrap(), now(&shares, "third", 1).unwrap()];
        assert!(now(&shares, "third", 1).is_none());
        let mut waiting = JoinSet::new();
        for _ in 0..MAX_WAITING {
            let shares = shares.clone();
            waiting.spawn(async move { shares.acquire(&user("greedy"), 1).await.is_ok() });
        }
        tokio::task::yield_now().await;
        assert_eq!(shares.acquire(&user("greedy"), 1).await.unwrap_err(), Refusal::overloaded());
        drop(held.pop());
        // Each one ends at once and gives its slot on.
        assert_eq!(waiting.join_all().await, [true; MAX_WAITING]);
        held.push(now(&shares, "greedy", 1).unwrap());
        let begun = tokio::time::Instant::now();
        assert_eq!(shares.acquire(&user("greedy"), 1).await.unwrap_err(), Refusal::overloaded());
        assert_eq!(begun.elapsed(), MAX_WAIT);
        drop((held, others));
        let state = shares.state.lock().unwrap();
        assert_eq!((state.free, state.users.len(), state.waiting.len()), (5, 0, 0));
    }

    #[tokio::test]
    async fn lone_user_has_all_until_another_comes() {
        let shares = Shares::new(4, Seen::Nobody, metrics());
        shares.meet(&user("alice"));
        let mut held: Vec<_> = (0..4).map(|_| now(&shares, "alice", 1).unwrap()).collect();
        assert!(now(&shares, "alice", 1).is_none());
        shares.meet(&user("alice"));
        drop(held.pop());
        held.push(now(&shares, "alice", 1).unwrap());
        shares.meet(&user("bob"));
        held.truncate(2);
        assert!(now(&shares, "alice", 1).is_none());
        let others = [now(&shares, "bob", 1).unwrap(), now(&shares, "bob", 1).unwrap()];
        // Nor does the first get more when the other is gone: the other may come again.
        drop(others);
        assert!(now(&shares, "alice", 1).is_none());
    }

    #[tokio::test]
    async fn waiting_users_take_turns() {
        let shares = Shares::new(2, Seen::Several, metrics());
        let mut held = vec![now(&shares, "a", 1).unwrap(), now(&shares, "b", 1).unwrap()];
        let (order, mut ended) = tokio::sync::mpsc::channel(8);
        let mut waiting = JoinSet::new();
        for name in ["a", "a", "c", "c", "d"] {
            let (shares, order) = (shares.clone(), order.clone());
            waiting.spawn(async move {
                let share = shares.acquire(&user(name), 1).await.unwrap();
                order.send((name, share)).await.unwrap();
            });
            tokio::task::yield_now().await;
        }
        let mut seen = Vec::new();
        while seen.len() < 5 {
            // The one that has it longest ends.
            drop(held.remove(0));
            let (name, share) = ended.recv().await.unwrap();
            seen.push(name);
            held.push(share);
        }
        assert_eq!(seen, ["c", "d", "a", "c", "a"]);
    }

    #[tokio::test]
    async fn large_share_is_not_passed_for_ever() {
        let shares = Shares::new(8, Seen::Several, metrics());
        let (small, other) = (now(&shares, "a", 3).unwrap(), now(&shares, "b", 3).unwrap());
        let (_place, mut large) = shares.enter(&user("c"), 4).unwrap();
        assert!(now(&shares, "d", 1).is_none(), "the large one waits longer");
        drop(small);
        assert!(large.try_recv().is_ok());
        assert!(now(&shares, "d", 1).is_some());
        drop(other);
    }
}
