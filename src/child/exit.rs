//! How a child ended, and whether the kernel ended it for want of memory. Decisions only; the one effect is the
//! reading of a counter.

use std::{fmt, fs};

use super::host;
pub(crate) use pilotlight_shim::report::ExitStatus;

/// The kernel's way to end a process.
const SIGKILL: i32 = 9;

/// What a child's end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It returned this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// The kernel killed it because memory was out.
    OutOfMemory,
    /// It is gone; nobody saw how.
    Unknown,
}

impl Ending {
    /// Memory is blamed only for a SIGKILL that we did not send, while the kernel's count of such kills went up.
    /// Another process may have been meant by that count, so this is a strong hint and no proof.
    pub(crate) fn classify(
        exit: ExitStatus,
        killed_by_us: bool,
        kills: OomKills,
        kills_now: OomKills,
    ) -> Self {
        match exit {
            ExitStatus::Signal(SIGKILL) if !killed_by_us && kills.grew_to(kills_now) => Self::OutOfMemory,
            ExitStatus::Signal(signal) => Self::Signal(signal),
            ExitStatus::Code(code) => Self::Code(code),
            ExitStatus::Unknown => Self::Unknown,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::OutOfMemory => f.write_str("killed by the kernel: out of memory"),
            Self::Unknown => f.write_str("ended in an unknown way"),
        }
    }
}

/// How many processes the kernel has killed for want of memory so far; `None` where it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct OomKills(Option<u64>);

impl OomKills {
    /// Of our memory group if there is one, else of the whole machine. Costs a read of a small file.
    pub(crate) fn now() -> Self {
        Self(host::group_oom_kills().or_else(|| count_in(&fs::read_to_string("/proc/vmstat").ok()?)))
    }

    fn grew_to(self, later: Self) -> bool {
        matches!((self.0, later.0), (Some(before), Some(after)) if after > before)
    }
}

/// The `oom_kill` line of vmstat, memory.events and memory.oom_control alike.
pub(super) fn count_in(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_blamed_only_when_everything_points_to_it() {
        let (three, four, silent) = (OomKills(Some(3)), OomKills(Some(4)), OomKills(None));
        let killed = ExitStatus::Signal(9);
        assert_eq!(Ending::classify(killed, false, three, four), Ending::OutOfMemory);
        assert_eq!(Ending::classify(killed, true, three, four), Ending::Signal(9));
        assert_eq!(Ending::classify(killed, false, three, three), Ending::Signal(9));
        assert_eq!(Ending::classify(killed, false, silent, four), Ending::Signal(9));
        assert_eq!(Ending::classify(ExitStatus::Signal(11), false, three, four), Ending::Signal(11));
        assert_eq!(Ending::classify(ExitStatus::Code(137), false, three, four), Ending::Code(137));
        assert_eq!(Ending::classify(ExitStatus::Unknown, false, three, four), Ending::Unknown);
    }

    #[test]
    fn the_counter_is_found_in_all_three_files() {
        assert_eq!(count_in("pgfault 1\noom_kill 12\nother 3\n"), Some(12));
        assert_eq!(count_in("oom 5\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(count_in("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(count_in("pgfault 1\n"), None);
    }
}
