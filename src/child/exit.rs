//! How a child ended: [`ChildExit`], built once, which labels, restarts and errors are derived from.
//!
//! Decisions only. The one effect is the reading of the kernel's counter of out-of-memory kills.

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use tokio::time::Instant;

use super::host;
use super::running_turn::{Job, RunningTurn};
use super::spawn::Sweep;
use crate::adapter::LaunchRefusal;
use crate::telemetry::metrics::{ExitReason, RestartCause};
pub(crate) use pilotlight_shim::report::ExitStatus as Exit;

/// The kernel's way to end a process.
const SIGKILL: i32 = 9;

/// The end of one child, once nothing of its tree is left or can be killed.
#[derive(Debug, Default)]
pub(crate) struct ChildExit {
    pub(crate) cause: ExitCause,
    pub(crate) ready: bool,
    pub(crate) requested: bool,
    /// This process had the child's tree killed.
    pub(crate) forced: bool,
    pub(crate) stop_began: Option<Instant>,
    /// Why the CLI did not open the conversation.
    pub(crate) refusal: Option<LaunchRefusal>,
    pub(crate) stderr: String,
    /// The turn without an answer.
    pub(crate) unfinished: Option<Box<RunningTurn>>,
    /// A turn that was not written to the child yet.
    pub(crate) unseen: Option<Box<Job>>,
    /// How the tree ended; `None`: it survived SIGKILL.
    pub(crate) sweep: Option<Sweep>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ExitCause {
    Killed(KillReason),
    Code(i32),
    Signal(i32),
    /// The kernel killed it because memory was out.
    OutOfMemory,
    /// Its exit status was not seen.
    #[default]
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillReason {
    NeverReady,
    /// Its shim ended it, because this node no longer held its sessions.
    Fenced,
    /// It no longer answered.
    Hung,
    /// Its tree used more memory than this limit in bytes.
    MemoryLimit(u64),
    /// The files of its session exceed this limit.
    WorkspaceLimit {
        limit: u64,
        what: &'static str,
    },
    Protocol(&'static str),
}

impl ExitCause {
    /// Blames memory only for a SIGKILL that this process did not send, while the kernel's count of such kills went up.
    /// The count may be of another process: a strong hint and no proof.
    pub(super) fn classify(exit: Exit, forced: bool, kills: &OomKills) -> Self {
        match exit {
            Exit::Signal(SIGKILL) if !forced && kills.grew() => Self::OutOfMemory,
            Exit::Signal(signal) => Self::Signal(signal),
            Exit::Fenced => Self::Killed(KillReason::Fenced),
            Exit::Code(code) => Self::Code(code),
            Exit::Unknown => Self::Unknown,
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(KillReason::Hung) => f.write_str("it no longer answered and was killed"),
            Self::Killed(KillReason::Protocol(what)) => f.write_str(what),
            Self::Killed(KillReason::Fenced) => {
                f.write_str("this node lost its contact to the cluster, and its deadline passed")
            }
            Self::Killed(KillReason::NeverReady) => f.write_str("it was not ready in time"),
            Self::Killed(KillReason::MemoryLimit(limit)) => {
                write!(f, "its tree used more than {limit} bytes of memory (limits.memory_per_session)")
            }
            Self::Killed(KillReason::WorkspaceLimit { limit, what }) => {
                write!(f, "the files of its session exceed {limit} {what}")
            }
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::OutOfMemory => f.write_str("killed by the kernel: out of memory"),
            Self::Unknown => f.write_str("ended in an unknown way"),
        }
    }
}

impl From<ExitCause> for ExitReason {
    fn from(cause: ExitCause) -> Self {
        match cause {
            ExitCause::Killed(KillReason::Hung | KillReason::NeverReady) => Self::Hang,
            ExitCause::Killed(KillReason::Protocol(_)) => Self::Protocol,
            ExitCause::Killed(KillReason::Fenced) => Self::Fenced,
            ExitCause::Killed(KillReason::MemoryLimit(_)) => Self::MemoryLimit,
            ExitCause::Killed(KillReason::WorkspaceLimit { .. }) => Self::WorkspaceLimit,
            ExitCause::Code(0) => Self::Clean,
            ExitCause::Code(_) => Self::Crash,
            ExitCause::Signal(_) => Self::Signal,
            ExitCause::OutOfMemory => Self::Oom,
            ExitCause::Unknown => Self::StatusUnknown,
        }
    }
}

impl From<&ChildExit> for RestartCause {
    fn from(exit: &ChildExit) -> Self {
        match exit.cause {
            ExitCause::Killed(KillReason::Hung) => Self::Hang,
            ExitCause::Killed(KillReason::Protocol(_)) => Self::Protocol,
            _ if exit.ready => Self::Crash,
            _ => Self::NotStarted,
        }
    }
}

/// Processes that the kernel has killed for want of memory, since a child was started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct OomKills {
    /// Of the group of all children, if it counts them.
    events: Option<PathBuf>,
    /// The count at the start; `None` where the kernel does not say.
    before: Option<u64>,
}

impl OomKills {
    /// Begins to count. `group`: that of the child. It is removed before its count is read, so that above it is used.
    pub(super) fn begin(group: Option<&Path>) -> Self {
        let events = group.and_then(Path::parent).map(|base| base.join("memory.events"));
        let events = events.filter(|events| events.exists());
        Self { before: count(events.as_deref()), events }
    }

    /// Whether there were any. Costs a read of a small file.
    pub(super) fn grew(&self) -> bool {
        matches!((self.before, count(self.events.as_deref())), (Some(before), Some(after)) if after > before)
    }
}

/// The count of this group, else of this process's memory group if there is one, else of the whole machine.
fn count(events: Option<&Path>) -> Option<u64> {
    match events {
        Some(events) => count_in(&fs::read_to_string(events).ok()?),
        None => host::group_oom_kills().or_else(|| count_in(&fs::read_to_string("/proc/vmstat").ok()?)),
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
        let base = tempfile::tempdir().unwrap();
        let events = base.path().join("memory.events");
        let set = |count: u32| fs::write(&events, format!("oom 9\noom_kill {count}\n")).unwrap();
        set(3);
        let kills = OomKills::begin(Some(&base.path().join("child")));
        let of = |exit, forced| ExitCause::classify(exit, forced, &kills);
        assert_eq!(of(Exit::Signal(9), false), ExitCause::Signal(9));
        set(4);
        assert_eq!(of(Exit::Signal(9), false), ExitCause::OutOfMemory);
        assert_eq!(of(Exit::Signal(9), true), ExitCause::Signal(9));
        assert_eq!(of(Exit::Signal(11), false), ExitCause::Signal(11));
        assert_eq!(of(Exit::Code(137), false), ExitCause::Code(137));
        assert_eq!(of(Exit::Unknown, false), ExitCause::Unknown);
        assert_eq!(of(Exit::Fenced, false), ExitCause::Killed(KillReason::Fenced));
        let silent = OomKills { before: None, ..kills.clone() };
        assert_eq!(ExitCause::classify(Exit::Signal(9), false, &silent), ExitCause::Signal(9));
        fs::remove_file(&events).unwrap();
        assert_eq!(of(Exit::Signal(9), false), ExitCause::Signal(9));
    }

    #[test]
    fn the_counter_is_found_in_all_three_files() {
        assert_eq!(count_in("pgfault 1\noom_kill 12\nother 3\n"), Some(12));
        assert_eq!(count_in("oom 5\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(count_in("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(count_in("pgfault 1\n"), None);
    }
}
