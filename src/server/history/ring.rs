//! Buckets and failures, bounded. Pure.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::model::ids::{SessionKey, UserId};
use crate::telemetry::events::{EventKind, SessionEvent};

/// Buckets that are kept: six hours. Some 100 bytes each.
const MAX_BUCKETS: usize = 6 * 240;
/// Failures that are kept: what an operator reads.
const MAX_FAILURES: usize = 64;
/// Latencies of one bucket that its percentiles are made of. Beyond it, each new one takes the place of another.
const MAX_LATENCIES: usize = 512;

/// What is no event, at the end of a bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) ends_at: SystemTime,
    pub(crate) children: usize,
    pub(crate) busy: usize,
    pub(crate) waiting: usize,
    pub(crate) memory_bytes: u64,
    /// Since the start of the service.
    pub(crate) charged_usd: f64,
}

/// A bucket that has ended. Latencies are in seconds, `None` without any.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    /// Seconds since 1970.
    pub(crate) ends_at: u64,
    pub(crate) answered: u32,
    pub(crate) failed: u32,
    pub(crate) refused: u32,
    pub(crate) crashed: u32,
    pub(crate) started: u32,
    pub(crate) turn_p50: Option<f32>,
    pub(crate) turn_p95: Option<f32>,
    pub(crate) ready_p50: Option<f32>,
    pub(crate) ready_p95: Option<f32>,
    pub(crate) children: u32,
    pub(crate) busy: u32,
    pub(crate) waiting: u32,
    pub(crate) memory_bytes: u64,
    /// What all users were charged in it.
    pub(crate) spent_usd: f64,
}

/// Something that went wrong in a session.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) at: SystemTime,
    pub(crate) session: SessionKey,
    /// The type of the event.
    pub(crate) kind: &'static str,
    pub(crate) detail: String,
}

#[derive(Debug, Default)]
pub(crate) struct Ring {
    buckets: VecDeque<Bucket>,
    failures: VecDeque<Failure>,
    open: Open,
    /// Charged before the open bucket.
    charged_usd: f64,
}

/// The bucket that has not ended.
#[derive(Debug, Default)]
struct Open {
    answered: u32,
    failed: u32,
    refused: u32,
    crashed: u32,
    turns: Latencies,
    ready: Latencies,
}

#[derive(Debug, Default)]
struct Latencies {
    seen: usize,
    kept: Vec<f32>,
}

impl Latencies {
    fn add(&mut self, took: Duration) {
        self.seen += 1;
        let took = took.as_secs_f32();
        if self.kept.len() < MAX_LATENCIES {
            self.kept.push(took);
        } else if let Some(kept) = self.kept.get_mut(fastrand::usize(..self.seen)) {
            *kept = took;
        }
    }

    fn percentiles(&mut self) -> (Option<f32>, Option<f32>) {
        self.kept.sort_unstable_by(f32::total_cmp);
        let at = |percent: usize| {
            let last = self.kept.len().checked_sub(1)?;
            self.kept.get((last * percent).div_ceil(100)).copied()
        };
        (at(50), at(95))
    }
}

impl Ring {
    /// Counts an event.
    pub(crate) fn record(&mut self, event: &SessionEvent) {
        let open = &mut self.open;
        let failure = match &event.kind {
            EventKind::Ready { took } => {
                open.ready.add(*took);
                None
            }
            EventKind::TurnEnded { outcome, took } => match *outcome {
                "ok" => {
                    open.answered = open.answered.saturating_add(1);
                    open.turns.add(*took);
                    None
                }
                "cancelled" => None,
                outcome => {
                    open.failed = open.failed.saturating_add(1);
                    Some(("turn_failed", outcome.to_owned()))
                }
            },
            EventKind::Refused { .. } => {
                open.refused = open.refused.saturating_add(1);
                None
            }
            EventKind::Crashed(exit) => {
                open.crashed = open.crashed.saturating_add(1);
                Some(("crashed", exit.detail.clone()))
            }
            EventKind::NotStarted { reason } => Some(("not_started", (*reason).to_owned())),
            EventKind::Paused => Some(("paused", String::new())),
            EventKind::ContextLost { kind } => Some(("context_lost", (*kind).to_owned())),
            _ => None,
        };
        if let Some((kind, detail)) = failure {
            if self.failures.len() == MAX_FAILURES {
                self.failures.pop_front();
            }
            let session = event.session.clone();
            self.failures.push_back(Failure { at: event.at, session, kind, detail });
        }
    }

    /// Ends the bucket.
    pub(crate) fn close(&mut self, sample: Sample) {
        let mut open = std::mem::take(&mut self.open);
        let (turn_p50, turn_p95) = open.turns.percentiles();
        let (ready_p50, ready_p95) = open.ready.percentiles();
        let spent_usd = sample.charged_usd - std::mem::replace(&mut self.charged_usd, sample.charged_usd);
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        if self.buckets.len() == MAX_BUCKETS {
            self.buckets.pop_front();
        }
        self.buckets.push_back(Bucket {
            ends_at: sample.ends_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            answered: open.answered,
            failed: open.failed,
            refused: open.refused,
            crashed: open.crashed,
            started: small(open.ready.seen),
            turn_p50,
            turn_p95,
            ready_p50,
            ready_p95,
            children: small(sample.children),
            busy: small(sample.busy),
            waiting: small(sample.waiting),
            memory_bytes: sample.memory_bytes,
            spent_usd,
        });
    }

    pub(crate) fn buckets(&self, since: u64) -> Vec<Bucket> {
        self.buckets.iter().filter(|bucket| bucket.ends_at > since).copied().collect()
    }

    pub(super) fn forget(&mut self, user: &UserId) {
        self.failures.retain(|failure| failure.session.user() != user);
    }

    pub(super) fn forget_session(&mut self, user: &UserId, name: &str) {
        self.failures
            .retain(|failure| failure.session.user() != user || failure.session.conversation() != name);
    }

    pub(crate) fn failures(&self) -> Vec<Failure> {
        self.failures.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind) -> SessionEvent {
        let session = SessionKey::new(UserId::new("a").unwrap(), "default").unwrap();
        SessionEvent { number: 1, at: UNIX_EPOCH, session, kind }
    }

    fn sample(second: u64) -> Sample {
        let ends_at = UNIX_EPOCH + Duration::from_secs(second);
        Sample { ends_at, children: 2, busy: 1, waiting: 0, memory_bytes: 5, charged_usd: second as f64 }
    }

    fn ended(outcome: &'static str, millis: u64) -> SessionEvent {
        event(EventKind::TurnEnded { outcome, took: Duration::from_millis(millis) })
    }

    #[test]
    fn bucket_has_rates_and_percentiles() {
        let mut ring = Ring::default();
        (1..=100).for_each(|millis| ring.record(&ended("ok", millis)));
        ring.record(&ended("timeout", 9));
        ring.record(&ended("cancelled", 9));
        ring.record(&event(EventKind::Ready { took: Duration::from_secs(1) }));
        ring.close(sample(15));
        ring.close(sample(30));
        let bucket = ring.buckets(0)[0];
        assert_eq!((bucket.answered, bucket.failed, bucket.started, bucket.children), (100, 1, 1, 2));
        let near = |found: Option<f32>, wanted: f32| (found.unwrap() - wanted).abs() < 0.0015;
        assert!(near(bucket.turn_p50, 0.050) && near(bucket.turn_p95, 0.095), "{bucket:?}");
        let empty = ring.buckets(15)[0];
        assert!((empty.spent_usd - 15.0).abs() < 1e-9, "{empty:?}");
        assert_eq!((empty.answered, empty.turn_p50, ring.buckets(30).len()), (0, None, 0));
    }

    #[test]
    fn latest_failures_come_first() {
        let mut ring = Ring::default();
        (0..2 * MAX_FAILURES).for_each(|_| ring.record(&ended("error", 1)));
        ring.record(&event(EventKind::NotStarted { reason: "eacces" }));
        let failures = ring.failures();
        ring.forget(&UserId::new("another").unwrap());
        assert_eq!(ring.failures().len(), failures.len());
        ring.forget(&UserId::new("a").unwrap());
        assert_eq!(ring.failures().len(), 0);
        assert_eq!(
            (failures.len(), failures[0].kind, failures[0].detail.as_str()),
            (64, "not_started", "eacces")
        );
    }

    #[test]
    fn ring_is_bounded() {
        let mut ring = Ring::default();
        (0..3 * MAX_LATENCIES as u64).for_each(|millis| ring.record(&ended("ok", millis)));
        assert_eq!(ring.open.turns.kept.len(), MAX_LATENCIES);
        (0..2 * MAX_BUCKETS as u64).for_each(|second| ring.close(sample(second)));
        assert_eq!(ring.buckets(0).len(), MAX_BUCKETS);
    }
}
