//! What the child does in the background between turns. Pure; owned by the dialogue.
//!
//! A child with such work is not idle: stopping it would end the work. A task whose end is never told counts no longer
//! than the longest turn would, so that it cannot keep a child for ever.

use tokio::time::{Duration, Instant};

use crate::cli::Task;

/// So many tasks are followed; a child with more keeps busy by these.
const MOST_TASKS: usize = 64;

/// The tasks of one child.
#[derive(Debug)]
pub(crate) struct Tasks {
    limit: Duration,
    open: Vec<(String, Instant)>,
}

impl Tasks {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, open: Vec::new() }
    }

    pub(crate) fn note(&mut self, task: Task, now: Instant) {
        match task {
            Task::Began(id) if self.open.iter().any(|(open, _)| *open == id) => {}
            Task::Began(id) if self.open.len() < MOST_TASKS => self.open.push((id, now + self.limit)),
            Task::Began(_) => {}
            Task::Ended(id) => self.open.retain(|(open, _)| *open != id),
        }
    }

    /// Forgets those that have taken too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.open.retain(|(_, until)| *until > now);
    }

    pub(crate) fn any(&self) -> bool {
        !self.open.is_empty()
    }

    /// When [`Tasks::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.open.iter().map(|(_, until)| *until).min()
    }
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
        tasks.note(Task::Ended("unknown".into()), start);
        tasks.note(Task::Ended("a".into()), start + second);
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
}
