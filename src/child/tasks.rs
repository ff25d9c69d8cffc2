//! What the child does in the background between turns. Pure; owned by the protocol.
//!
//! A child with such work is not idle: stopping it would end the work. A task whose end is never announced counts no
//! longer than the longest turn would, so that it cannot keep a child for ever.
//!
//! The end of a task is followed by a turn of the CLI's own, at once or after the turns that wait: until that turn is
//! over the child owes it, and what the child writes may belong to it. It does not come if the CLI has put the notice
//! into a turn that was running.

use tokio::time::{Duration, Instant};

use crate::adapter::Task;

/// Maximum number of followed tasks. A child with more stays active through these.
const MOST_TASKS: usize = 64;

/// A child that waits for input begins the turn of its own for a task within some 20 ms of the task's end, if it does at
/// all. This leaves room for a busy machine.
const SETTLES: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Tasks {
    limit: Duration,
    open: Vec<(String, Instant)>,
    /// Ended at that time, and not yet followed by a turn of the CLI's own.
    owed: Vec<(String, Instant)>,
    /// There were more of them than are followed.
    owes_more: bool,
    /// Since then the child waits for input.
    waits: Option<Instant>,
}

impl Tasks {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, open: Vec::new(), owed: Vec::new(), owes_more: false, waits: None }
    }

    pub(crate) fn note(&mut self, task: Task, now: Instant) {
        match task {
            Task::Began(id) if self.open.iter().any(|(open, _)| *open == id) => {}
            Task::Began(id) if self.open.len() < MOST_TASKS => self.open.push((id, now + self.limit)),
            Task::Began(_) => {}
            Task::Ended(id) => {
                self.open.retain(|(open, _)| *open != id);
                if self.owed.iter().any(|(owed, _)| *owed == id) {
                } else if self.owed.len() < MOST_TASKS {
                    self.owed.push((id, now));
                } else {
                    self.owes_more = true;
                }
            }
        }
    }

    /// A turn of the CLI's own is over: that of the task which ended first.
    pub(crate) fn served(&mut self) {
        if !self.owed.is_empty() {
            self.owed.remove(0);
        }
    }

    /// A turn of the CLI's own may come, or run.
    pub(crate) fn owes(&self) -> bool {
        !self.owed.is_empty() || self.owes_more
    }

    pub(crate) fn works(&mut self) {
        self.waits = None;
    }

    /// The child waits for input: a turn of its own that is still to come has to come soon.
    pub(crate) fn waits(&mut self, now: Instant) {
        self.waits.get_or_insert(now);
    }

    /// Forgets those that have taken too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.open.retain(|(_, until)| *until > now);
        let (limit, waits) = (self.limit, self.waits);
        self.owed.retain(|(_, ended)| ends(*ended, limit, waits) > now);
        self.owes_more &= !self.owed.is_empty();
    }

    pub(crate) fn any(&self) -> bool {
        !self.open.is_empty() || self.owes()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let owed = self.owed.iter().map(|(_, ended)| ends(*ended, self.limit, self.waits));
        self.open.iter().map(|(_, until)| *until).chain(owed).min()
    }
}

/// Until when a turn is owed for a task that ended at `ended`.
fn ends(ended: Instant, limit: Duration, waits: Option<Instant>) -> Instant {
    waits.map_or(ended + limit, |since| since.max(ended) + SETTLES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counts_until_its_end_or_its_limit() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut tasks = Tasks::new(10 * second);
        tasks.note(Task::Began("a".into()), start);
        tasks.note(Task::Began("b".into()), start + second);
        tasks.note(Task::Ended("a".into()), start + second);
        tasks.served();
        assert!(tasks.any());
        assert_eq!(tasks.deadline(), Some(start + 11 * second));
        tasks.expire(start + 10 * second);
        assert!(tasks.any());
        tasks.expire(start + 11 * second);
        assert!(!tasks.any() && tasks.deadline().is_none());
        for number in 0..1000 {
            tasks.note(Task::Began(number.to_string()), start);
        }
        assert_eq!(tasks.open.len(), MOST_TASKS);
    }

    fn ended(id: &str) -> Task {
        Task::Ended(id.into())
    }

    #[test]
    fn each_end_owes_one_own_turn() {
        let now = Instant::now();
        let mut tasks = Tasks::new(Duration::from_secs(100));
        for id in ["a", "b", "a"] {
            tasks.note(ended(id), now);
        }
        tasks.served();
        // The second notice of the same end comes right before its turn.
        tasks.note(ended("b"), now);
        assert!(tasks.owes() && tasks.any());
        tasks.served();
        tasks.served();
        assert!(!tasks.owes() && !tasks.any() && tasks.deadline().is_none());
    }

    #[test]
    fn an_own_turn_is_owed_while_the_child_works() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut tasks = Tasks::new(100 * second);
        tasks.waits(start);
        tasks.note(ended("a"), start + 50 * second);
        // It had waited for long when the task ended.
        tasks.expire(start + 51 * second);
        assert!(tasks.owes());
        tasks.works();
        tasks.expire(start + 99 * second);
        assert!(tasks.owes());
        tasks.waits(start + 99 * second);
        assert_eq!(tasks.deadline(), Some(start + 99 * second + SETTLES));
        tasks.expire(start + 99 * second + SETTLES);
        assert!(!tasks.owes());
    }

    #[test]
    fn more_than_are_followed_are_owed_as_well() {
        let now = Instant::now();
        let mut tasks = Tasks::new(Duration::from_secs(100));
        for number in 0..=MOST_TASKS {
            tasks.note(ended(&number.to_string()), now);
        }
        assert_eq!(tasks.owed.len(), MOST_TASKS);
        for _ in 0..MOST_TASKS {
            tasks.served();
        }
        assert!(tasks.owes());
        tasks.expire(now);
        assert!(!tasks.owes());
    }
}
