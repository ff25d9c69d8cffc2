//! Reading clocks and /proc.

use std::time::{Duration, Instant};

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    Full,
    /// For a hint.
    Quick,
}

impl Effort {
    /// A number of rounds, turns or sessions.
    pub(crate) fn of<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }

    pub(crate) fn rounds(self) -> usize {
        self.of(7, 2)
    }
}

/// Wall and processor time of a piece of work.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

pub(crate) struct Stopwatch {
    wall: Instant,
    cpu: Duration,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { wall: Instant::now(), cpu: own_cpu() }
    }

    pub(crate) fn stop(&self) -> Cost {
        Cost { wall: self.wall.elapsed(), cpu: own_cpu().saturating_sub(self.cpu) }
    }
}

/// Processor time of all threads of this process, without its children.
fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap())
}

/// A line of /proc/self/status, as a number (kB, or a count).
pub(crate) fn own_status(key: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

pub(crate) fn own_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Anonymous memory of another process, in kB.
pub(crate) fn anonymous_kb(pid: u32) -> f64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Living or dead children of this process, by state letter.
pub(crate) fn children(state: char) -> usize {
    let own = std::process::id();
    let of = |stat: String| {
        let rest = stat.rsplit_once(") ")?.1.to_owned();
        let mut fields = rest.split(' ');
        let (letter, parent) = (fields.next()?.chars().next()?, fields.next()?.parse::<u32>().ok()?);
        (parent == own && letter == state).then_some(())
    };
    let stats = std::fs::read_dir("/proc").unwrap().flatten();
    stats.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok()).filter_map(of).count()
}
