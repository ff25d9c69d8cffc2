//! Restart decisions: whether and when a failed child is started again. Pure: no clock, no randomness of its own.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::RestartConfig;

/// Factor between two pauses: 0.1, 0.25, 0.63, 1.6, 3.9 s …
const GROWTH: f64 = 2.5;

/// The failures of one session that still count.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Failures {
    times: VecDeque<Instant>,
    /// The circuit was opened, and nothing has succeeded since: the next failure opens it again.
    half_open: bool,
}

/// Consequence of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartDecision {
    /// Start again after the pause (zero for the first failure).
    Restart(Duration),
    /// Open the circuit: start nothing during the pause.
    Open(Duration),
}

impl Failures {
    /// Records a failure. `jitter` in 0..1 spreads the pauses of many sessions that failed at the same time.
    pub(crate) fn failed(&mut self, now: Instant, jitter: f64, config: &RestartConfig) -> RestartDecision {
        while self.times.front().is_some_and(|first| now.duration_since(*first) > config.window) {
            self.times.pop_front();
        }
        self.times.push_back(now);
        if self.half_open || self.times.len() > config.intensity as usize {
            self.times.clear();
            self.half_open = true;
            return RestartDecision::Open(config.circuit_pause);
        }
        let earlier = self.times.len() - 1;
        RestartDecision::Restart(pause(earlier, config).mul_f64(jitter.clamp(0.0, 1.0)))
    }

    /// Records that a turn was answered: the circuit is closed. Failures in the window still count.
    pub(crate) fn succeeded(&mut self) {
        self.half_open = false;
    }

    /// The ages of the failures that still count, and whether the circuit is half open.
    #[cfg(test)]
    pub(super) fn summary(&self, now: Instant, window: Duration) -> (Vec<Duration>, bool) {
        let ages = self.times.iter().map(|time| now.duration_since(*time));
        (ages.filter(|age| *age <= window).collect(), self.half_open)
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
    fn pauses_grow_until_the_circuit_opens() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let decisions: Vec<_> = (0..6).map(|_| failures.failed(now, 1.0, &config())).collect();
        let millis = |ms: u64| RestartDecision::Restart(Duration::from_millis(ms));
        let expected =
            [0.0, 0.1, 0.25, 0.625, 1.5625].map(|s| RestartDecision::Restart(Duration::from_secs_f64(s)));
        assert_eq!(decisions[..5], expected);
        assert_eq!(decisions[0], millis(0));
        assert_eq!(decisions[5], RestartDecision::Open(Duration::from_secs(60)));
    }

    #[test]
    fn half_open_circuit_allows_one_failure() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for _ in 0..6 {
            failures.failed(now, 1.0, &config());
        }
        assert!(matches!(failures.failed(now, 1.0, &config()), RestartDecision::Open(_)));
        failures.succeeded();
        assert_eq!(failures.failed(now, 1.0, &config()), RestartDecision::Restart(Duration::ZERO));
    }

    #[test]
    fn failures_leave_the_window() {
        let (mut failures, mut now) = (Failures::default(), Instant::now());
        for _ in 0..100 {
            assert!(matches!(failures.failed(now, 1.0, &config()), RestartDecision::Restart(_)));
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
            let (mut failures, mut now) = (Failures::default(), Instant::now());
            let mut restarts: Vec<Instant> = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if let RestartDecision::Restart(pause) = failures.failed(now, 1.0, &config) {
                    prop_assert!(pause <= config.backoff_max);
                    restarts.push(now);
                    let recent = restarts.iter().filter(|at| now.duration_since(**at) <= config.window).count();
                    prop_assert!(recent <= intensity as usize);
                }
            }
        }
    }
}
