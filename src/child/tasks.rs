//! What a child still does when its turn is over: tools that were sent into the background. Pure; owned by the driver.
//!
//! A task counts until the child says that it has ended, and for no longer than a turn may take: one whose end was never
//! said must not keep its child for ever.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::cli::TaskNews;

/// More than any model starts at once. Those beyond do not count.
const MOST_TASKS: usize = 64;

/// The tasks that are running.
#[derive(Debug)]
pub(super) struct Tasks {
    limit: Duration,
    until: HashMap<String, Instant>,
}

impl Tasks {
    /// `limit`: how long one counts.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, until: HashMap::new() }
    }

    pub(super) fn heard(&mut self, news: TaskNews, now: Instant) {
        match news {
            TaskNews::Began(id) if self.until.len() < MOST_TASKS => {
                self.until.insert(id, now + self.limit);
            }
            TaskNews::Began(_) => {}
            TaskNews::Ended(id) => drop(self.until.remove(&id)),
        }
    }

    /// Forgets those that have counted for long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        self.until.retain(|_, until| *until > now);
    }

    /// When [`Tasks::expire`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }

    pub(super) fn are_running(&self) -> bool {
        !self.until.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_counts_until_its_end_or_its_limit() {
        let (now, limit) = (Instant::now(), Duration::from_secs(10));
        let mut tasks = Tasks::new(limit);
        let (began, ended) = (|id: &str| TaskNews::Began(id.into()), |id: &str| TaskNews::Ended(id.into()));
        assert!(!tasks.are_running() && tasks.deadline().is_none());
        tasks.heard(began("a"), now);
        tasks.heard(began("b"), now + limit / 2);
        tasks.heard(ended("never began"), now);
        tasks.heard(ended("b"), now);
        assert_eq!((tasks.are_running(), tasks.deadline()), (true, Some(now + limit)));
        tasks.expire(now + limit / 2);
        assert!(tasks.are_running());
        tasks.expire(now + limit);
        assert!(!tasks.are_running());
        for number in 0..1000 {
            tasks.heard(began(&number.to_string()), now);
        }
        assert_eq!(tasks.until.len(), MOST_TASKS);
    }
}
