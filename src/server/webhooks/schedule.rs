//! Messages that wait for an attempt, in the order of their time. Pure: time and jitter are arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Growth of the delay from one attempt to the next.
const GROWTH: u32 = 4;
/// Longest delay between two attempts.
const MAX_DELAY: Duration = Duration::from_secs(15 * 60);

/// A message with the number of its failed attempts.
#[derive(Debug, PartialEq)]
pub(super) struct Waiting<M> {
    pub(super) message: M,
    pub(super) failed: u32,
}

#[derive(Debug)]
pub(super) struct Schedule<M> {
    waiting: BTreeMap<(Instant, u64), Waiting<M>>,
    number: u64,
    backoff: Duration,
    attempts: u32,
}

impl<M> Schedule<M> {
    /// At most `attempts` of each message, with a delay of `backoff` before the second.
    pub(super) fn new(backoff: Duration, attempts: u32) -> Self {
        Self { waiting: BTreeMap::new(), number: 0, backoff, attempts }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Adds a new message: its first attempt is due now.
    pub(super) fn add(&mut self, message: M, now: Instant) {
        self.insert(now, Waiting { message, failed: 0 });
    }

    /// Adds a message again after a failed attempt. `jitter` is from 0 to 1. Returns the message if that was the last.
    pub(super) fn retry(&mut self, mut waiting: Waiting<M>, jitter: f64, now: Instant) -> Option<M> {
        waiting.failed += 1;
        if waiting.failed >= self.attempts {
            return Some(waiting.message);
        }
        let growth = GROWTH.saturating_pow(waiting.failed - 1);
        let delay = self.backoff.saturating_mul(growth).min(MAX_DELAY);
        // Half to the whole of it: messages that failed together do not come together again.
        self.insert(now + delay.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0), waiting);
        None
    }

    fn insert(&mut self, due: Instant, waiting: Waiting<M>) {
        self.number += 1;
        self.waiting.insert((due, self.number), waiting);
    }

    /// Time of the next attempt.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.keys().next().map(|(due, _)| *due)
    }

    /// Takes the next message, whether it is due or not.
    pub(super) fn take(&mut self) -> Option<Waiting<M>> {
        self.waiting.pop_first().map(|(_, waiting)| waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_limit_and_end() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::from_secs(5), 7);
        schedule.add("a", now);
        let mut delays = Vec::new();
        loop {
            let waiting = schedule.take().unwrap();
            if let Some(message) = schedule.retry(waiting, 1.0, now) {
                assert_eq!(message, "a");
                break;
            }
            delays.push((schedule.due().unwrap() - now).as_secs());
        }
        assert_eq!(delays, [5, 20, 80, 320, 900, 900]);
        assert_eq!((schedule.len(), schedule.due()), (0, None));
    }

    #[test]
    fn new_message_does_not_wait_for_a_failed_one() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::from_secs(4), 3);
        schedule.add("dead", now);
        let dead = schedule.take().unwrap();
        assert_eq!(schedule.retry(dead, 0.0, now), None);
        assert_eq!(schedule.due(), Some(now + Duration::from_secs(2)), "half of the delay");
        schedule.add("new", now + Duration::from_secs(1));
        assert_eq!(schedule.take().unwrap(), Waiting { message: "new", failed: 0 });
        assert_eq!(schedule.take().unwrap(), Waiting { message: "dead", failed: 1 });
    }
}
