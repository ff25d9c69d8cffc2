//! Records of requests with an `Idempotency-Key` and their answers.
//!
//! Answers are bounded in bytes. The key stays for its whole time, so that a dropped answer is never computed again.
//! Pure: the time is an argument. Expired records are removed when the next request with a key begins.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::server::turns::recorded::Recorded;

/// Retention after the end of the turn.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// Maximum keys of one user, and of all users: some 200 bytes each.
const MOST_OF_ONE: usize = 10_000;
const MOST: usize = 100_000;
/// Longest answer kept. A long text has some 100 KiB, as a stream ten times as much.
pub(super) const LONGEST: usize = 1 << 20;
/// Maximum bytes of all answers of one user, and of all users: the oldest are dropped beyond it.
const BYTES_OF_ONE: usize = 8 << 20;
const BYTES: usize = 64 << 20;

pub(super) type Digest = [u8; 32];

#[derive(Debug, PartialEq)]
pub(super) enum Lookup {
    /// New, and recorded from now on.
    New,
    /// Used with another request.
    Other,
    Running,
    /// The turn has ended; its answer is not available.
    NotKept,
    Answered(Recorded),
    /// New, but the maximum of keys of this user, or of all users, is reached.
    Full {
        of_one: bool,
    },
}

/// Whose key it is, and of which request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named {
    /// The user together with the caller's API key.
    pub(super) owner: Digest,
    pub(super) user: Digest,
    pub(super) request: Digest,
}

#[derive(Debug)]
struct Entry {
    named: Named,
    state: TurnState,
}

#[derive(Debug)]
enum TurnState {
    Running,
    NotKept,
    Answered(Recorded),
}

#[derive(Debug, Default)]
struct UserRecords {
    entries: usize,
    bytes: usize,
    /// Keys with an answer, oldest first; some may be outdated.
    answered: VecDeque<Digest>,
}

/// All records. Keys and owners are digests.
#[derive(Debug, Default)]
pub(super) struct Records {
    entries: HashMap<Digest, Entry>,
    shares: HashMap<Digest, UserRecords>,
    answered: VecDeque<Digest>,
    /// Expiry of keys of ended turns, earliest first.
    ends: VecDeque<(Instant, Digest)>,
    bytes: usize,
}

impl Records {
    /// Looks up a key and records a new one.
    pub(super) fn begin(&mut self, key: Digest, named: Named, now: Instant) -> Lookup {
        let owner = named.owner;
        while let Some((_, over)) = self.ends.front().filter(|(end, _)| *end <= now).copied() {
            self.ends.pop_front();
            self.forget(over);
        }
        if let Some(entry) = self.entries.get(&key) {
            return match &entry.state {
                _ if entry.named.request != named.request => Lookup::Other,
                TurnState::Running => Lookup::Running,
                TurnState::NotKept => Lookup::NotKept,
                TurnState::Answered(recorded) => Lookup::Answered(recorded.clone()),
            };
        }
        let own = self.shares.get(&owner).map_or(0, |share| share.entries);
        if own >= MOST_OF_ONE || self.entries.len() >= MOST {
            return Lookup::Full { of_one: own >= MOST_OF_ONE };
        }
        self.shares.entry(owner).or_default().entries += 1;
        self.entries.insert(key, Entry { named, state: TurnState::Running });
        Lookup::New
    }

    /// Records the end of the turn, with or without an answer.
    pub(super) fn end(&mut self, key: Digest, recorded: Option<Recorded>, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        self.ends.push_back((now + KEPT_FOR, key));
        let Some(recorded) = recorded.filter(|recorded| recorded.bytes() <= LONGEST) else {
            entry.state = TurnState::NotKept;
            return;
        };
        let (owner, bytes) = (entry.named.owner, recorded.bytes());
        entry.state = TurnState::Answered(recorded);
        self.bytes += bytes;
        self.answered.push_back(key);
        let share = self.shares.entry(owner).or_default();
        share.bytes += bytes;
        share.answered.push_back(key);
        while let Some(oldest) = self.oldest_of(&owner) {
            self.give_up(oldest);
        }
        while self.bytes > BYTES
            && let Some(oldest) = self.answered.pop_front()
        {
            self.give_up(oldest);
        }
    }

    fn oldest_of(&mut self, owner: &Digest) -> Option<Digest> {
        let share = self.shares.get_mut(owner)?;
        if share.bytes > BYTES_OF_ONE { share.answered.pop_front() } else { None }
    }

    /// Drops the answer and keeps the key.
    fn give_up(&mut self, key: Digest) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if let TurnState::Answered(recorded) = std::mem::replace(&mut entry.state, TurnState::NotKept) {
            let bytes = recorded.bytes();
            self.bytes -= bytes;
            if let Some(share) = self.shares.get_mut(&entry.named.owner) {
                share.bytes -= bytes;
            }
        }
    }

    /// Removes all keys of a user.
    pub(super) fn forget_user(&mut self, user: Digest) {
        let of_user = self.entries.iter().filter(|(_, entry)| entry.named.user == user);
        let keys: Vec<_> = of_user.map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.forget(key));
    }

    /// Removes a key that has expired or has no turn.
    pub(super) fn forget(&mut self, key: Digest) {
        self.give_up(key);
        let Some(entry) = self.entries.remove(&key) else { return };
        if let Some(share) = self.shares.get_mut(&entry.named.owner) {
            share.entries -= 1;
            share.answered.retain(|other| *other != key);
            if share.entries == 0 {
                self.shares.remove(&entry.named.owner);
            }
        }
        if self.answered.front() == Some(&key) {
            self.answered.pop_front();
        } else {
            self.answered.retain(|other| *other != key);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, StatusCode};
    use bytes::Bytes;

    use super::*;

    fn digest(number: usize) -> Digest {
        let mut digest = [0; 32];
        digest.iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
        digest
    }

    fn of(owner: Digest, request: Digest) -> Named {
        Named { owner, user: owner, request }
    }

    #[test]
    fn deleted_user_is_forgotten_and_no_other() {
        let (mut records, now) = (Records::default(), Instant::now());
        let (alice, bob) = (digest(1), digest(2));
        for (number, user) in [(10, alice), (11, alice), (12, bob)] {
            records.begin(digest(number), of(user, digest(3)), now);
            records.end(digest(number), answer(7), now);
        }
        // Another API key of the same user.
        let other_key = Named { owner: digest(4), user: alice, request: digest(3) };
        records.begin(digest(13), other_key, now);
        records.forget_user(alice);
        assert_eq!((records.entries.len(), records.bytes, records.shares.len()), (1, 7, 1));
        assert_eq!(records.begin(digest(10), of(alice, digest(3)), now), Lookup::New);
        // The turn of a forgotten key ends.
        records.end(digest(13), answer(5), now);
        assert_eq!(records.bytes, 7);
    }

    fn answer(length: usize) -> Option<Recorded> {
        let body = vec![Bytes::from(vec![b'x'; length])];
        Some(Recorded { status: StatusCode::OK, headers: HeaderMap::new(), body })
    }

    #[test]
    fn key_runs_once_even_without_answer() {
        let (mut records, now) = (Records::default(), Instant::now());
        let (key, alice, request) = (digest(1), digest(2), digest(3));
        assert_eq!(records.begin(key, of(alice, request), now), Lookup::New);
        assert_eq!(records.begin(key, of(alice, request), now), Lookup::Running);
        assert_eq!(records.begin(key, of(alice, digest(4)), now), Lookup::Other);
        records.end(key, answer(5), now);
        assert_eq!(records.begin(key, of(alice, request), now), Lookup::Answered(answer(5).unwrap()));
        assert_eq!(records.begin(key, of(alice, digest(4)), now), Lookup::Other);
        records.forget(key);
        assert_eq!(records.begin(key, of(alice, digest(4)), now), Lookup::New);
        for gone in [None, answer(LONGEST + 1)] {
            records.end(key, gone, now);
            assert_eq!(records.begin(key, of(alice, digest(4)), now), Lookup::NotKept);
        }
        records.forget(key);
        assert!(records.entries.is_empty() && records.shares.is_empty() && records.answered.is_empty());
        assert_eq!(records.bytes, 0);
    }

    #[test]
    fn oldest_answers_go_first_and_keys_stay() {
        let (mut records, now) = (Records::default(), Instant::now());
        let (alice, bob) = (digest(1), digest(2));
        records.begin(digest(1000), of(bob, bob), now);
        records.end(digest(1000), answer(LONGEST), now);
        for number in 0..20 {
            records.begin(digest(number), of(alice, alice), now);
            records.end(digest(number), answer(LONGEST), now);
        }
        let kept = |records: &mut Records, number| {
            matches!(records.begin(digest(number), of(alice, alice), now), Lookup::Answered(_))
        };
        assert_eq!(
            (0..20).filter(|number| kept(&mut records, *number)).collect::<Vec<_>>(),
            [12, 13, 14, 15, 16, 17, 18, 19]
        );
        assert_eq!(records.begin(digest(0), of(alice, alice), now), Lookup::NotKept);
        assert!(
            matches!(records.begin(digest(1000), of(bob, bob), now), Lookup::Answered(_)),
            "not at the cost of others"
        );
        // The total of all users is limited too.
        for number in 0..100 {
            let user = digest(5000 + number);
            records.begin(digest(2000 + number), of(user, user), now);
            records.end(digest(2000 + number), answer(LONGEST), now);
        }
        assert!(records.bytes <= BYTES);
        assert_eq!(records.begin(digest(1000), of(bob, bob), now), Lookup::NotKept);
    }

    #[test]
    fn keys_are_limited_per_user() {
        let (mut records, now) = (Records::default(), Instant::now());
        let (alice, bob) = (digest(1), digest(2));
        for number in 0..MOST_OF_ONE {
            assert_eq!(records.begin(digest(number), of(alice, alice), now), Lookup::New);
        }
        assert_eq!(records.begin(digest(MOST_OF_ONE), of(alice, alice), now), Lookup::Full { of_one: true });
        assert_eq!(records.begin(digest(MOST_OF_ONE), of(bob, bob), now), Lookup::New);
    }

    #[test]
    fn keys_expire() {
        let (mut records, start) = (Records::default(), Instant::now());
        let (alice, request) = (digest(1), digest(2));
        for number in 0..3 {
            records.begin(digest(number), of(alice, request), start);
        }
        records.end(digest(0), answer(5), start);
        records.end(digest(1), None, start + KEPT_FOR / 2);
        let just_before = start + KEPT_FOR - Duration::from_millis(1);
        assert_eq!(
            records.begin(digest(0), of(alice, request), just_before),
            Lookup::Answered(answer(5).unwrap())
        );
        assert_eq!(records.begin(digest(0), of(alice, digest(9)), start + KEPT_FOR), Lookup::New);
        assert_eq!(records.begin(digest(1), of(alice, request), start + KEPT_FOR), Lookup::NotKept);
        assert_eq!(records.bytes, 0);
        let later = start + KEPT_FOR * 2;
        assert_eq!(records.begin(digest(1), of(alice, request), later), Lookup::New);
        assert_eq!(
            records.begin(digest(2), of(alice, request), later),
            Lookup::Running,
            "a running turn has no time limit"
        );
        assert!(records.ends.is_empty());
    }
}
