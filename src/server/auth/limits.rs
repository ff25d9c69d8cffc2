//! A caller's share: how many requests in a minute, how many turns at the same time.
//!
//! Both are checked before anything costs much and long before a child sees anything. Counted in memory only; what is
//! remembered of callers that have gone quiet is forgotten. Owned by [`crate::server::app::App`].

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};

use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::server::auth::caller::Caller;
use crate::support::lock::{MutexExt, RwLockExt};

/// Requests after which quiet callers are forgotten: between two sweeps no more new ones than this can be added, some
/// hundred bytes each.
const SWEEP_EVERY: u32 = 4096;
/// When to try again after too many turns at once: one of them is likely to end by then.
const TURN_PAUSE: Duration = Duration::from_secs(1);

/// Callers are told apart by a hash of their key's id or their name, with a seed of this process: nobody can aim at
/// another's.
type Limiter = DefaultKeyedRateLimiter<u64>;

/// Requests per caller.
pub(crate) struct RateLimits {
    /// For callers whose key says nothing else. None: no limit.
    usual: Option<NonZeroU32>,
    /// One for each limit in use; keys have few different ones.
    limiters: RwLock<HashMap<NonZeroU32, Arc<Limiter>>>,
    requests: AtomicU32,
    seed: RandomState,
    clock: DefaultClock,
}

impl std::fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimits").field("usual", &self.usual).finish_non_exhaustive()
    }
}

impl RateLimits {
    /// At most `per_minute` requests of each caller; 0 is no limit.
    pub(crate) fn new(per_minute: u32) -> Self {
        Self {
            usual: NonZeroU32::new(per_minute),
            limiters: RwLock::default(),
            requests: AtomicU32::new(0),
            seed: RandomState::new(),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a request by what is known of its caller from the headers: its key, else the user that it names. One of
    /// whom neither is known is counted with [`RateLimits::count_user`] once it is known who it is.
    pub(crate) fn count(&self, caller: &Caller) -> Result<(), ApiError> {
        match (caller.key_id(), caller.named()) {
            (Some(id), _) => {
                let limit = caller.limits().requests_per_minute.or(self.usual);
                self.check(limit, self.seed.hash_one(("key", id)))
            }
            (None, Some(user)) => self.count_user(user),
            (None, None) => caller.default_user().map_or(Ok(()), |user| self.count_user(user)),
        }
    }

    /// Counts a request of a user without a key.
    pub(crate) fn count_user(&self, user: &UserId) -> Result<(), ApiError> {
        self.check(self.usual, self.seed.hash_one(("user", user.as_bytes())))
    }

    fn check(&self, limit: Option<NonZeroU32>, caller: u64) -> Result<(), ApiError> {
        let Some(limit) = limit else { return Ok(()) };
        if self.requests.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.sweep();
        }
        self.limiter(limit).check_key(&caller).map_err(|until| {
            let message = format!(
                "more than {limit} requests in a minute (http.requests_per_minute, or the key's own)"
            );
            ApiError::limited("too_many_requests", message, until.wait_time_from(self.clock.now()))
        })
    }

    fn limiter(&self, limit: NonZeroU32) -> Arc<Limiter> {
        let known = self.limiters.read_unpoisoned().get(&limit).cloned();
        known.unwrap_or_else(|| {
            let mut limiters = self.limiters.write_unpoisoned();
            limiters
                .entry(limit)
                .or_insert_with(|| Arc::new(Limiter::keyed(Quota::per_minute(limit))))
                .clone()
        })
    }

    /// Forgets callers that have their full share again, and limits that no key has any more.
    fn sweep(&self) {
        let mut limiters = self.limiters.write_unpoisoned();
        limiters.retain(|_, limiter| {
            limiter.retain_recent();
            limiter.shrink_to_fit();
            !limiter.is_empty()
        });
    }
}

/// Turns that run or wait, by user.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<UserId, u32>>);

impl Turns {
    /// One more turn of `user`, if it has fewer than `limit`.
    pub(crate) fn permit(self: &Arc<Self>, user: &UserId, limit: u32) -> Result<TurnPermit, ApiError> {
        let mut running = self.0.lock_unpoisoned();
        let mine = running.entry(user.clone()).or_default();
        if *mine >= limit {
            let message =
                format!("{limit} turns of this user run already (http.turns_per_user, or the key's own)");
            return Err(ApiError::limited("too_many_turns", message, TURN_PAUSE));
        }
        *mine += 1;
        Ok(TurnPermit { turns: self.clone(), user: user.clone() })
    }
}

/// One turn's place; free again when this is dropped.
#[derive(Debug)]
pub(crate) struct TurnPermit {
    turns: Arc<Turns>,
    user: UserId,
}

impl Drop for TurnPermit {
    fn drop(&mut self) {
        let mut running = self.turns.0.lock_unpoisoned();
        if let Some(mine) = running.get_mut(&self.user) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                running.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::auth::keys::{Entry, KeyLimits, Role};

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn with_key(id: &str, per_minute: Option<u32>) -> Caller {
        let requests_per_minute = per_minute.and_then(NonZeroU32::new);
        let limits = KeyLimits { requests_per_minute, ..KeyLimits::default() };
        Caller::of_key(Arc::new(Entry::new(id.into(), [0; 32], Role::Service, None, limits)), None)
    }

    #[test]
    fn each_caller_has_its_own_share() {
        let rate_limits = RateLimits::new(2);
        let error = |caller: &Caller| rate_limits.count(caller).err().map(|error| error.code());
        let (alice, bob) = (Caller::trusted(true, Some(user("a"))), Caller::trusted(true, Some(user("b"))));
        for caller in [&alice, &bob, &with_key("a", None)] {
            assert_eq!(
                [error(caller), error(caller), error(caller)],
                [None, None, Some("too_many_requests")]
            );
        }
        let (small, large) = (with_key("s", Some(1)), with_key("l", Some(3)));
        assert_eq!([error(&small), error(&small)], [None, Some("too_many_requests")]);
        assert_eq!([error(&large), error(&large), error(&large)], [None; 3]);
        // Nobody knows yet who this is.
        assert_eq!((0..9).find_map(|_| error(&Caller::trusted(true, None))), None);
        let unlimited = RateLimits::new(0);
        assert!((0..9).all(|_| unlimited.count(&alice).is_ok()));
    }

    #[test]
    fn callers_that_went_quiet_are_forgotten() {
        // So many that a request's share is back at once.
        let rate_limits = RateLimits::new(u32::MAX);
        for number in 0..3 * SWEEP_EVERY {
            rate_limits.count_user(&user(&format!("user {number}"))).unwrap();
        }
        let limiters = rate_limits.limiters.read().unwrap();
        assert!(limiters.values().map(|limiter| limiter.len()).sum::<usize>() <= SWEEP_EVERY as usize);
    }

    #[test]
    fn a_turns_place_is_free_again_when_it_ends() {
        let turns = Arc::new(Turns::default());
        let (first, _second) = (turns.permit(&user("a"), 2).unwrap(), turns.permit(&user("a"), 2).unwrap());
        assert_eq!(turns.permit(&user("a"), 2).unwrap_err().code(), "too_many_turns");
        let other = turns.permit(&user("b"), 2).unwrap();
        drop((first, other));
        assert!(turns.permit(&user("a"), 2).is_ok());
        assert_eq!(turns.0.lock().unwrap().len(), 1, "users without turns are forgotten");
    }
}
