//! Limits per caller: requests per minute and concurrent turns.
//!
//! Both are checked early, before any cost. Counters live in memory only; idle callers are removed.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, NotUntil, Quota};

use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::server::auth::caller::Caller;
use crate::support::lock::MutexExt;

mod quota;

pub(crate) use quota::{RequestQuota, names as quota_headers};

/// Requests between two sweeps of idle callers, which bounds new entries of some hundred bytes each.
const SWEEP_EVERY: u32 = 4096;
/// Retry delay after too many turns: one of them is likely to end by then.
const TURN_PAUSE: Duration = Duration::from_secs(1);

/// Keyed by a hash of key id or user, seeded per process, so that no caller can aim at another's entry.
type Limiter = DefaultKeyedRateLimiter<u64, StateInformationMiddleware>;

/// A request beyond its caller's quota.
#[derive(Debug)]
pub(crate) struct Exceeded {
    pub(crate) quota: RequestQuota,
    pub(crate) error: ApiError,
}

impl From<Exceeded> for ApiError {
    fn from(exceeded: Exceeded) -> Self {
        exceeded.error
    }
}

/// What is left of the caller's quota; nothing where it has none.
type Counted = Result<Option<RequestQuota>, Exceeded>;

pub(crate) struct RateLimits {
    /// Default limit; 0 is unlimited.
    usual: AtomicU32,
    /// One limiter per limit in use; keys have few different ones.
    limiters: Mutex<HashMap<NonZeroU32, Arc<Limiter>>>,
    /// Of requests with unknown OAuth tokens, with its limit; `None` is unlimited.
    new_users: Mutex<(u32, Option<Arc<DefaultDirectRateLimiter>>)>,
    requests: AtomicU32,
    seed: RandomState,
    clock: DefaultClock,
}

impl RateLimits {
    /// At most `per_minute` requests per caller, and `new_users` with unknown tokens in a minute; 0 is unlimited.
    pub(crate) fn new(per_minute: u32, new_users: u32) -> Self {
        Self {
            usual: AtomicU32::new(per_minute),
            limiters: Mutex::default(),
            new_users: Mutex::new((new_users, direct(new_users))),
            requests: AtomicU32::new(0),
            seed: RandomState::new(),
            clock: DefaultClock::default(),
        }
    }

    /// Takes over other limits. A caller whose limit changes begins with a full one.
    pub(crate) fn reconfigure(&self, per_minute: u32, new_users: u32) {
        self.usual.store(per_minute, Ordering::Relaxed);
        let mut former = self.new_users.lock_unpoisoned();
        if former.0 != new_users {
            *former = (new_users, direct(new_users));
        }
    }

    fn usual(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.usual.load(Ordering::Relaxed))
    }

    /// Counts a request by key, else by the named user. Requests with neither are counted by [`RateLimits::count_user`]
    /// once the user is known.
    pub(crate) fn count(&self, caller: &Caller) -> Counted {
        match (caller.key_id(), caller.named()) {
            (Some(id), _) => {
                let limit = caller.limits().requests_per_minute.or_else(|| self.usual());
                self.check(limit, self.seed.hash_one(("key", id)))
            }
            (None, Some(user)) => self.count_user(user),
            (None, None) => caller.default_user().map_or(Ok(None), |user| self.count_user(user)),
        }
    }

    /// Counts a request of a user without a key.
    pub(crate) fn count_user(&self, user: &UserId) -> Counted {
        self.check(self.usual(), self.seed.hash_one(("user", user.as_bytes())))
    }

    /// Counts a request whose OAuth tokens are neither in the index nor in the file of a session: any text is one. It
    /// begins a user, who is stored.
    pub(crate) fn count_unknown_tokens(&self) -> Result<(), ApiError> {
        let new_users = self.new_users.lock_unpoisoned().1.clone();
        let counted = new_users.map_or(Ok(()), |new_users| new_users.check());
        counted.map_err(|until| {
            let message = "too many requests with unknown OAuth tokens in a minute (http.new_users_per_minute); users whose \
                           tokens are known are served";
            ApiError::limited("too_many_new_users", message, self.wait(&until))
        })
    }

    /// Counts a user whom the caller's key begins.
    pub(crate) fn count_new_user(&self, caller: &Caller, limit: NonZeroU32) -> Result<(), ApiError> {
        let counted = self.counted(limit, self.seed.hash_one(("new users", caller.key_id())));
        counted.map(drop).map_err(|wait| {
            let message = format!(
                "this key names more than {limit} users without a session in a minute (its new_users_per_minute); users \
                 who have one are served"
            );
            ApiError::limited("too_many_new_users", message, wait)
        })
    }

    fn wait(&self, until: &NotUntil<<DefaultClock as governor::clock::Clock>::Instant>) -> Duration {
        until.wait_time_from(self.clock.now())
    }

    fn check(&self, limit: Option<NonZeroU32>, caller: u64) -> Counted {
        let Some(limit) = limit else { return Ok(None) };
        match self.counted(limit, caller) {
            Ok(remaining) => Ok(Some(RequestQuota { limit, remaining })),
            Err(wait) => {
                let message = format!(
                    "more than {limit} requests in a minute (http.requests_per_minute, or the key's own)"
                );
                let error = ApiError::limited("too_many_requests", message, wait);
                Err(Exceeded { quota: RequestQuota { limit, remaining: 0 }, error })
            }
        }
    }

    /// Counts something of the caller and returns what remains, or when to try again.
    fn counted(&self, limit: NonZeroU32, caller: u64) -> Result<u32, Duration> {
        if self.requests.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.sweep();
        }
        let counted = self.limiter(limit).check_key(&caller);
        counted.map(|left| left.remaining_burst_capacity()).map_err(|until| self.wait(&until))
    }

    fn limiter(&self, limit: NonZeroU32) -> Arc<Limiter> {
        let mut limiters = self.limiters.lock_unpoisoned();
        let new = || Arc::new(DefaultKeyedRateLimiter::keyed(Quota::per_minute(limit)).with_middleware());
        limiters.entry(limit).or_insert_with(new).clone()
    }

    /// Removes callers with a full quota, and limits without callers.
    fn sweep(&self) {
        let mut limiters = self.limiters.lock_unpoisoned();
        limiters.retain(|_, limiter| {
            limiter.retain_recent();
            limiter.shrink_to_fit();
            !limiter.is_empty()
        });
    }
}

/// A limit without callers; `None` is unlimited.
fn direct(per_minute: u32) -> Option<Arc<DefaultDirectRateLimiter>> {
    NonZeroU32::new(per_minute)
        .map(|most| Arc::new(DefaultDirectRateLimiter::direct(Quota::per_minute(most))))
}

/// Running and queued turns per user.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<UserId, u32>>);

impl Turns {
    /// A permit for one more turn, if the user has fewer than `limit`.
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

/// Permit of one turn, released on drop.
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
    fn each_caller_has_its_own_quota() {
        let rate_limits = RateLimits::new(2, 0);
        let error = |caller: &Caller| rate_limits.count(caller).err().map(|it| it.error.code());
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
        // The user is not known yet.
        assert_eq!((0..9).find_map(|_| error(&Caller::trusted(true, None))), None);
        let unlimited = RateLimits::new(0, 0);
        assert!((0..9).all(|_| unlimited.count(&alice).is_ok()));
    }

    #[test]
    fn remaining_requests_are_known() {
        let rate_limits = RateLimits::new(2, 0);
        let alice = Caller::trusted(true, Some(user("a")));
        let left = || match rate_limits.count(&alice) {
            Ok(quota) => quota.map(|quota| (quota.limit.get(), quota.remaining)),
            Err(exceeded) => Some((exceeded.quota.limit.get(), exceeded.quota.remaining)),
        };
        assert_eq!([left(), left(), left()], [Some((2, 1)), Some((2, 0)), Some((2, 0))]);
        assert_eq!(RateLimits::new(0, 0).count(&alice).unwrap(), None);
        let rate_limits = RateLimits::new(2, 0);
        assert_eq!(rate_limits.count(&with_key("l", Some(9))).unwrap().unwrap().limit.get(), 9);
    }

    #[test]
    fn new_users_have_one_quota() {
        let rate_limits = RateLimits::new(0, 2);
        let refused = || rate_limits.count_unknown_tokens().err().map(|error| error.code());
        assert_eq!([refused(), refused(), refused()], [None, None, Some("too_many_new_users")]);
        assert!((0..9).all(|_| RateLimits::new(1, 0).count_unknown_tokens().is_ok()));
    }

    #[test]
    fn new_users_of_a_key_are_not_its_requests() {
        let rate_limits = RateLimits::new(2, 0);
        let (key, limit) = (with_key("a", None), NonZeroU32::new(2).unwrap());
        let refused = |key: &Caller| rate_limits.count_new_user(key, limit).err().map(|error| error.code());
        assert_eq!([refused(&key), refused(&key), refused(&key)], [None, None, Some("too_many_new_users")]);
        assert!(rate_limits.count(&key).is_ok());
        assert_eq!(refused(&with_key("b", None)), None);
    }

    #[test]
    fn idle_callers_are_removed() {
        // A limit so high that the quota is full at once.
        let rate_limits = RateLimits::new(u32::MAX, 0);
        for number in 0..3 * SWEEP_EVERY {
            rate_limits.count_user(&user(&format!("user {number}"))).unwrap();
        }
        let limiters = rate_limits.limiters.lock().unwrap();
        assert!(limiters.values().map(|limiter| limiter.len()).sum::<usize>() <= SWEEP_EVERY as usize);
    }

    #[test]
    fn turn_permit_is_released_on_drop() {
        let turns = Arc::new(Turns::default());
        let (first, _second) = (turns.permit(&user("a"), 2).unwrap(), turns.permit(&user("a"), 2).unwrap());
        assert_eq!(turns.permit(&user("a"), 2).unwrap_err().code(), "too_many_turns");
        let other = turns.permit(&user("b"), 2).unwrap();
        drop((first, other));
        assert!(turns.permit(&user("a"), 2).is_ok());
        assert_eq!(turns.0.lock().unwrap().len(), 1, "users without turns are removed");
    }
}
