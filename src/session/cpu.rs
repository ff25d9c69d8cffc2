//! Processor time of a child over the last samples of what its session does now: one turn, or none. Pure.
//!
//! What a turn has used says nothing of the time after it, so each turn and each pause has samples of its own.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Pauses between samples that make a window: one minute, unless `metrics.sample_interval` is changed.
const WINDOW: usize = 12;
/// Steps of a processor that are distinguished: finer ones would change with each sample.
const STEPS: f64 = 20.0;

/// The last samples of a child.
#[derive(Debug, Clone, Default)]
pub(super) struct CpuWindow {
    samples: VecDeque<(Instant, Duration)>,
    /// Whether a turn runs, and how many ran before.
    doing: (bool, u64),
}

impl CpuWindow {
    /// Takes in what the child's tree has used in all; gives how many processors it kept busy, once that is known of a whole
    /// window.
    pub(super) fn sampled(&mut self, doing: (bool, u64), at: Instant, used: Duration) -> Option<f64> {
        if std::mem::replace(&mut self.doing, doing) != doing {
            self.samples.clear();
        }
        if self.samples.len() > WINDOW {
            self.samples.pop_front();
        }
        self.samples.push_back((at, used));
        let (began, before) = *self.samples.front().filter(|_| self.samples.len() > WINDOW)?;
        let passed = at.saturating_duration_since(began).as_secs_f64();
        // A process that ended without a wait for it takes its time along.
        let cores = used.saturating_sub(before).as_secs_f64() / passed;
        cores.is_finite().then(|| (cores * STEPS).round() / STEPS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn cpu_is_known_of_whole_windows() {
        let (mut window, start) = (CpuWindow::default(), Instant::now());
        let mut sampled = |doing, second: u32, millis| {
            window.sampled(doing, start + second * SECOND, Duration::from_millis(millis))
        };
        for second in 0..12 {
            assert_eq!(sampled((false, 1), second, 500 * u64::from(second)), None, "{second}");
        }
        assert_eq!(sampled((false, 1), 12, 6000), Some(0.5));
        assert_eq!(sampled((false, 1), 13, 18_500), Some(1.5));
        assert_eq!(sampled((false, 1), 14, 0), Some(0.0), "a process has gone");
        assert_eq!(sampled((true, 1), 15, 100_000), None, "a turn begins");
        assert_eq!(sampled((true, 2), 16, 100_000), None, "another turn");
        assert_eq!(sampled((true, 2), 16, 100_000), None);
    }

    #[test]
    fn cpu_samples_are_bounded() {
        let (mut window, start) = (CpuWindow::default(), Instant::now());
        for _ in 0..1000 {
            // Without time between them nothing is known.
            assert_eq!(window.sampled((false, 0), start, SECOND), None);
        }
        assert_eq!(window.samples.len(), WINDOW + 1);
    }
}
