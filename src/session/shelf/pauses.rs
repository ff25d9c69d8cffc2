//! Pauses after spares that failed, for each kind by itself. Pure.

use tokio::time::{Duration, Instant};

use super::SpareKind;

/// The first pause after a failure, and the longest: each failure that follows another soon doubles it.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// A spare that lived this long has not failed because of what the next one would meet at once.
const LIVED: Duration = Duration::from_secs(60);
/// Kinds whose failures are remembered. Callers choose models, and with them kinds.
const MOST_KINDS: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Pauses(Vec<Pause>);

#[derive(Debug)]
struct Pause {
    kind: SpareKind,
    failures: u32,
    until: Instant,
}

impl Pauses {
    /// A spare of this kind that lived for `lived` has failed.
    pub(crate) fn failed(&mut self, kind: &SpareKind, lived: Duration, now: Instant) {
        let before = self.0.iter().position(|pause| pause.kind == *kind).map(|at| self.0.swap_remove(at));
        let failures = before.filter(|_| lived < LIVED).map_or(0, |pause| pause.failures).saturating_add(1);
        let pause = PAUSES.0.saturating_mul(1 << (failures - 1).min(16)).min(PAUSES.1);
        if self.0.len() == MOST_KINDS {
            let first = self.0.iter().enumerate().min_by_key(|(_, pause)| pause.until).map(|(at, _)| at);
            first.map(|at| self.0.swap_remove(at));
        }
        self.0.push(Pause { kind: kind.clone(), failures, until: now + pause });
    }

    /// A spare of this kind serves a session.
    pub(crate) fn worked(&mut self, kind: &SpareKind) {
        self.0.retain(|pause| pause.kind != *kind);
    }

    /// Whether one of this kind may start.
    pub(crate) fn are_over(&self, kind: &SpareKind, now: Instant) -> bool {
        self.0.iter().all(|pause| pause.kind != *kind || pause.until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(model: impl ToString) -> SpareKind {
        SpareKind { model: Some(model.to_string()), ..SpareKind::default() }
    }

    #[test]
    fn pauses_double_until_one_serves() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        let mut pause = |lived: u64| {
            pauses.failed(&kind("a"), Duration::from_secs(lived), now);
            (pauses.0[0].until - now).as_secs()
        };
        assert_eq!([0, 0, 0].map(&mut pause), [1, 2, 4]);
        assert_eq!([61, 0].map(&mut pause), [1, 2]);
        assert_eq!((0..100).map(|_| pause(0)).last(), Some(300));
        pauses.worked(&kind("a"));
        assert!(pauses.are_over(&kind("a"), now));
    }

    #[test]
    fn kinds_pause_by_themselves_and_are_bounded() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        pauses.failed(&kind("bad"), Duration::ZERO, now);
        pauses.failed(&kind("bad"), Duration::ZERO, now);
        assert!(!pauses.are_over(&kind("bad"), now) && pauses.are_over(&kind("good"), now));
        (0..1000).for_each(|number| pauses.failed(&kind(number), Duration::ZERO, now));
        assert_eq!(pauses.0.len(), MOST_KINDS);
        assert!(!pauses.are_over(&kind("bad"), now), "the longest pause is kept");
    }
}
