//! Whether and when a failed child is started again. Pure: no clock, no randomness of its own.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::RestartConfig;

/// Each pause is so many times the one before: 0.1, 0.25, 0.63, 1.6, 3.9 s …
const GROWTH: f64 = 2.5;

/// The failures of one session that still count.
#[derive(Debug, Default)]
pub(crate) struct History {
    failures: VecDeque<Instant>,
    /// The circuit was opened, and nothing has succeeded since: the next failure opens it again.
    half_open: bool,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start again after the pause (zero for the first failure).
    Restart(Duration),
    /// Too many failures: start nothing for so long.
    Open(Duration),
}

impl History {
    /// Notes a failure. `jitter` in 0..1 spreads the pauses of many sessions that failed at the same time.
    pub(crate) fn failed(&mut self, now: Instant, jitter: f64, config: &RestartConfig) -> Verdict {
        while self.failures.front().is_some_and(|first| now.duration_since(*first) > config.window) {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        if self.half_open || self.failures.len() > config.intensity as usize {
            self.failures.clear();
            self.half_open = true;
            return Verdict::Open(config.circuit_pause);
        }
        let earlier = self.failures.len() - 1;
        Verdict::Restart(pause(earlier, config).mul_f64(jitter.clamp(0.0, 1.0)))
    }

    /// Notes that a turn was answered: the circuit is closed. Failures in the window still count.
    pub(crate) fn succeeded(&mut self) {
        self.half_open = false;
    }
}

/// The longest pause after a failure that had `earlier` others before it in the window.
fn pause(earlier: usize, config: &RestartConfig) -> Duration {
    let Some(steps) = earlier.checked_sub(1) else { return Duration::ZERO };
    // More steps than this reach any maximum; the power must not overflow.
    let factor = GROWTH.powi(i32::try_from(steps.min(64)).unwrap_or(64));
    let seconds = (config.backoff.as_secs_f64() * factor).min(config.backoff_max.as_secs_f64());
    Duration::from_secs_f64(seconds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config() -> RestartConfig {
        RestartConfig::default()
    }

    #[test]
    fn the_pauses_grow_geometrically_and_then_the_circuit_opens() {
        let (mut history, now) = (History::default(), Instant::now());
        let verdicts: Vec<_> = (0..6).map(|_| history.failed(now, 1.0, &config())).collect();
        let millis = |ms: u64| Verdict::Restart(Duration::from_millis(ms));
        let expected = [0.0, 0.1, 0.25, 0.625, 1.5625].map(|s| Verdict::Restart(Duration::from_secs_f64(s)));
        assert_eq!(verdicts[..5], expected);
        assert_eq!(verdicts[0], millis(0));
        assert_eq!(verdicts[5], Verdict::Open(Duration::from_secs(60)));
    }

    #[test]
    fn half_open_allows_one_failure_until_something_succeeds() {
        let (mut history, now) = (History::default(), Instant::now());
        for _ in 0..6 {
            history.failed(now, 1.0, &config());
        }
        assert!(matches!(history.failed(now, 1.0, &config()), Verdict::Open(_)));
        history.succeeded();
        assert_eq!(history.failed(now, 1.0, &config()), Verdict::Restart(Duration::ZERO));
    }

    #[test]
    fn failures_leave_the_window() {
        let (mut history, mut now) = (History::default(), Instant::now());
        for _ in 0..100 {
            assert!(matches!(history.failed(now, 1.0, &config()), Verdict::Restart(_)));
            now += Duration::from_secs(15);
        }
    }

    proptest! {
        #[test]
        fn never_more_restarts_in_a_window_than_allowed(
            gaps in prop::collection::vec(0u64..90_000, 1..200),
            intensity in 0u32..10,
        ) {
            let config = RestartConfig { intensity, ..config() };
            let (mut history, mut now) = (History::default(), Instant::now());
            let mut restarts: Vec<Instant> = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if let Verdict::Restart(pause) = history.failed(now, 1.0, &config) {
                    prop_assert!(pause <= config.backoff_max);
                    restarts.push(now);
                    let recent = restarts.iter().filter(|at| now.duration_since(**at) <= config.window).count();
                    prop_assert!(recent <= intensity as usize);
                }
            }
        }
    }
}
