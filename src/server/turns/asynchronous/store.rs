//! Asynchronous turns by their id: those that run, and the answers of those that have ended.
//!
//! Answers are bounded in time, in bytes per user and in all, and in number per user and in all. What is dropped is
//! remembered for a time, so that a late caller learns why it gets nothing. Pure: the time is an argument.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::ids::UserId;

/// Retention of an answer after the end of its turn, as with an `Idempotency-Key`.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(600);
/// Retention of the id of a dropped answer after that.
const REMEMBERED_FOR: Duration = Duration::from_secs(3600);
/// Longest answer that is kept. Nearly all are texts of some KiB; one with files of the workspace may be longer.
pub(super) const LONGEST: usize = 8 << 20;
/// Maximum bytes of all kept answers of one user, and of all users: the oldest are dropped beyond it.
const BYTES_OF_ONE: usize = 16 << 20;
const BYTES: usize = 128 << 20;
/// Maximum ended turns of one user, and of all users, some 500 bytes each: the oldest are forgotten beyond it.
const MOST_OF_ONE: usize = 1000;
const MOST: usize = 20_000;

/// What there is of a turn: `L` while it runs, `A` is its answer.
#[derive(Debug, PartialEq)]
pub(super) enum State<L, A> {
    Running(L),
    Answered(A),
    /// It has ended, and its answer was dropped.
    NotKept,
}

#[derive(Debug)]
pub(super) struct Entry<T, L, A> {
    user: UserId,
    session: String,
    pub(super) turn: T,
    pub(super) state: State<L, A>,
    bytes: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Share {
    ended: usize,
    bytes: usize,
}

#[derive(Debug)]
pub(super) struct Store<T, L, A> {
    entries: HashMap<String, Entry<T, L, A>>,
    /// Ended turns within the retention of their answers, then those beyond it: the oldest first, with the time of the
    /// next step.
    kept: VecDeque<(Instant, String)>,
    over: VecDeque<(Instant, String)>,
    shares: HashMap<UserId, Share>,
    bytes: usize,
}

impl<T, L, A> Default for Store<T, L, A> {
    fn default() -> Self {
        let (entries, shares) = (HashMap::new(), HashMap::new());
        Self { entries, kept: VecDeque::new(), over: VecDeque::new(), shares, bytes: 0 }
    }
}

impl<T, L, A> Store<T, L, A> {
    /// Adds a turn that runs. Running turns are bounded by those who start them.
    pub(super) fn begin(&mut self, id: String, user: UserId, session: String, turn: T, live: L) {
        let state = State::Running(live);
        self.entries.insert(id, Entry { user, session, turn, state, bytes: 0 });
    }

    pub(super) fn get(&self, id: &str) -> Option<&Entry<T, L, A>> {
        self.entries.get(id)
    }

    /// Records the end of a turn, with an answer and its bytes. A turn that was removed meanwhile has none.
    pub(super) fn end(&mut self, id: &str, answer: Option<(A, usize)>, now: Instant) {
        self.sweep(now);
        let Some(entry) = self.entries.get_mut(id) else { return };
        let user = entry.user.clone();
        let answer = answer.filter(|(_, bytes)| *bytes <= LONGEST);
        (entry.state, entry.bytes) = match answer {
            Some((answer, bytes)) => (State::Answered(answer), bytes),
            None => (State::NotKept, 0),
        };
        let share = self.shares.entry(user.clone()).or_default();
        share.ended += 1;
        share.bytes += entry.bytes;
        self.bytes += entry.bytes;
        self.kept.push_back((now + KEPT_FOR, id.to_owned()));
        while self.shares.get(&user).is_some_and(|share| share.bytes > BYTES_OF_ONE)
            && self.give_up_of(Some(&user))
        {}
        while self.bytes > BYTES && self.give_up_of(None) {}
        if self.shares.get(&user).is_some_and(|share| share.ended > MOST_OF_ONE) {
            self.forget_oldest(Some(&user));
        }
        if self.kept.len() + self.over.len() > MOST {
            self.forget_oldest(None);
        }
    }

    /// Drops answers that are too old, and forgets their ids some time later.
    pub(super) fn sweep(&mut self, now: Instant) {
        while let Some(id) = due(&mut self.kept, now) {
            self.give_up(&id);
            self.over.push_back((now + REMEMBERED_FOR, id));
        }
        while let Some(id) = due(&mut self.over, now) {
            self.drop_entry(&id);
        }
    }

    /// Drops the oldest answer, of this user or of any. Returns whether there was one.
    fn give_up_of(&mut self, user: Option<&UserId>) -> bool {
        let is_meant = |entry: &Entry<T, L, A>| {
            matches!(entry.state, State::Answered(_)) && user.is_none_or(|user| entry.user == *user)
        };
        let mut ids = self.kept.iter().map(|(_, id)| id);
        let oldest = ids.find(|id| self.entries.get(*id).is_some_and(is_meant)).cloned();
        oldest.is_some_and(|id| {
            self.give_up(&id);
            true
        })
    }

    fn give_up(&mut self, id: &str) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.state = State::NotKept;
        let bytes = std::mem::take(&mut entry.bytes);
        self.bytes -= bytes;
        if let Some(share) = self.shares.get_mut(&entry.user) {
            share.bytes -= bytes;
        }
    }

    fn forget_oldest(&mut self, user: Option<&UserId>) {
        let mut ids = self.over.iter().chain(&self.kept).map(|(_, id)| id);
        let is_meant = |entry: &Entry<T, L, A>| user.is_none_or(|user| entry.user == *user);
        if let Some(id) = ids.find(|id| self.entries.get(*id).is_some_and(is_meant)).cloned() {
            self.remove(&id);
        }
    }

    /// Forgets a turn, whether it runs or not.
    pub(super) fn remove(&mut self, id: &str) {
        self.drop_entry(id);
        self.kept.retain(|(_, other)| other != id);
        self.over.retain(|(_, other)| other != id);
    }

    /// Forgets all turns of a deleted user, or of one of the user's sessions.
    pub(super) fn forget(&mut self, user: &UserId, session: Option<&str>) {
        let is_meant = |entry: &Entry<T, L, A>| {
            entry.user == *user && session.is_none_or(|session| entry.session == session)
        };
        let found = self.entries.iter().filter(|(_, entry)| is_meant(entry));
        let ids: Vec<_> = found.map(|(id, _)| id.clone()).collect();
        ids.iter().for_each(|id| self.drop_entry(id));
        self.kept.retain(|(_, id)| self.entries.contains_key(id));
        self.over.retain(|(_, id)| self.entries.contains_key(id));
    }

    fn drop_entry(&mut self, id: &str) {
        let Some(entry) = self.entries.remove(id) else { return };
        if matches!(entry.state, State::Running(_)) {
            return;
        }
        self.bytes -= entry.bytes;
        if let Some(share) = self.shares.get_mut(&entry.user) {
            share.ended -= 1;
            share.bytes -= entry.bytes;
            if share.ended == 0 {
                self.shares.remove(&entry.user);
            }
        }
    }
}

fn due(queue: &mut VecDeque<(Instant, String)>, now: Instant) -> Option<String> {
    queue.front().filter(|(until, _)| *until <= now)?;
    queue.pop_front().map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Tried = Store<(), (), usize>;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn ended(store: &mut Tried, id: usize, of: &str, bytes: usize, now: Instant) {
        store.begin(id.to_string(), user(of), "s".into(), (), ());
        store.end(&id.to_string(), Some((id, bytes)), now);
    }

    fn state(store: &Tried, id: usize) -> Option<&State<(), usize>> {
        store.get(&id.to_string()).map(|entry| &entry.state)
    }

    #[test]
    fn answer_is_kept_then_remembered_then_gone() {
        let (mut store, now) = (Tried::default(), Instant::now());
        store.begin("1".into(), user("a"), "s".into(), (), ());
        assert_eq!(state(&store, 1), Some(&State::Running(())));
        store.end("1", Some((1, 5)), now);
        store.sweep(now + KEPT_FOR / 2);
        assert_eq!(state(&store, 1), Some(&State::Answered(1)));
        store.sweep(now + KEPT_FOR);
        assert_eq!((state(&store, 1), store.bytes), (Some(&State::NotKept), 0));
        store.sweep(now + KEPT_FOR + REMEMBERED_FOR);
        assert_eq!(state(&store, 1), None);
        assert!(store.shares.is_empty() && store.kept.is_empty() && store.over.is_empty());
    }

    #[test]
    fn oldest_answers_go_beyond_the_limits() {
        let (mut store, now) = (Tried::default(), Instant::now());
        ended(&mut store, 0, "a", LONGEST + 1, now);
        assert_eq!(state(&store, 0), Some(&State::NotKept), "too long");
        ended(&mut store, 1, "b", LONGEST, now);
        for id in 2..5 {
            ended(&mut store, id, "a", LONGEST, now);
        }
        let states = [1, 2, 3, 4].map(|id| matches!(state(&store, id), Some(State::Answered(_))));
        assert_eq!(states, [true, false, true, true], "the oldest of that user");
        for id in 0..BYTES / LONGEST {
            ended(&mut store, 100 + id, &format!("user {id}"), LONGEST, now);
        }
        assert!(store.bytes <= BYTES);
        assert_eq!(state(&store, 1), Some(&State::NotKept), "the oldest of all");
    }

    #[test]
    fn ended_turns_are_bounded_in_number() {
        let (mut store, now) = (Tried::default(), Instant::now());
        for id in 0..2 * MOST_OF_ONE {
            ended(&mut store, id, "a", 1, now);
        }
        assert_eq!((store.entries.len(), store.bytes), (MOST_OF_ONE, MOST_OF_ONE));
        assert_eq!(state(&store, 0), None);
        for id in 0..MOST {
            ended(&mut store, 10_000 + id, &format!("user {id}"), 1, now);
        }
        assert_eq!(store.entries.len(), MOST);
    }

    #[test]
    fn forgotten_turns_leave_nothing() {
        let (mut store, now) = (Tried::default(), Instant::now());
        for (id, of) in [(1, "a"), (2, "a"), (3, "b"), (4, "b")] {
            ended(&mut store, id, of, 7, now);
        }
        store.begin("5".into(), user("a"), "other".into(), (), ());
        store.forget(&user("a"), Some("s"));
        assert!(state(&store, 1).is_none() && state(&store, 5).is_some());
        store.forget(&user("a"), None);
        assert!(state(&store, 5).is_none());
        // The turn of a forgotten id ends.
        store.end("5", Some((5, 7)), now);
        store.remove("3");
        assert_eq!((store.entries.len(), store.bytes, store.kept.len()), (1, 7, 1));
        store.remove("4");
        assert!(store.shares.is_empty() && store.bytes == 0);
    }
}
