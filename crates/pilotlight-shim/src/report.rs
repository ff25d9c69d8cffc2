//! The protocol of the control socket: lines from the shim, single bytes from the server.
//!
//! ```text
//! [ungrouped]                          only if the CLI did not get its cgroup
//! [listening]                          only with a private network; carries the listening socket
//! [unisolated RUNG ERRNO]              a rung of the isolation could not be applied; `failed` follows
//! started PID   or   failed ERRNO      nothing follows `failed`
//! exited code N   or   exited signal N    as soon as the CLI exits
//! exited fenced 0                      the same, because the deadline passed
//! swept METHOD KILLED MICROS STUCK     as soon as its tree is gone
//! ```
//!
//! The server sends [`FREEZE`], [`THAW`], [`TERMINATE`] and [`KILL`]; the end of file also makes the shim kill the tree.

use std::{fmt::Write as _, time::Duration};

use super::isolation::Rung;

/// Makes the shim freeze the whole tree. Of orders that arrive together, the later of freeze and thaw counts.
pub const FREEZE: u8 = b'f';
/// Makes the shim thaw the whole tree.
pub const THAW: u8 = b'c';
/// Makes the shim send SIGTERM to the CLI, after it has thawed the tree.
pub const TERMINATE: u8 = b't';
/// Makes the shim kill the whole tree at once.
pub const KILL: u8 = b'k';

/// Raw errno of `failed` if the deadline had passed before the start. No call of a start gives it.
pub const DEADLINE_PASSED: i32 = libc::ETIME;

/// Maximum length of a line: a word, a method and three 20-digit numbers.
pub const MAX_LINE: usize = 96;

/// How the CLI exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Exit code.
    Code(i32),
    /// Signal that killed it.
    Signal(i32),
    /// The shim ended it, because the deadline had passed ([`crate::fence`]).
    Fenced,
    /// Not known, because the shim died first.
    Unknown,
}

/// Method that killed a process tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillMethod {
    /// The kill of the init process of the CLI's PID namespace, in which the kernel includes every member: no process
    /// escapes.
    Namespace,
    /// `cgroup.kill`, then the walk: no process escapes.
    Cgroup,
    /// The walk over the shim's own children: a process that forks faster than the walk may escape.
    Walk,
    /// The search for a marker in environments: a process that cleared its environment escapes.
    Marker,
}

impl KillMethod {
    /// Name in a line and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Cgroup => "cgroup",
            Self::Walk => "walk",
            Self::Marker => "marker",
        }
    }
}

/// Result of killing the CLI's descendants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepReport {
    /// Strongest method used.
    pub method: KillMethod,
    /// Killed descendants, without the CLI. Of a namespace, some dozens are counted at most.
    pub killed: u64,
    /// Time until no descendant was left.
    pub took: Duration,
    /// Descendants that survived the time limit. The shim continues to kill them.
    pub stuck: u64,
}

/// A line from the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The CLI is not in its cgroup, hence its tree will be killed by the walk. Precedes `Started`.
    Ungrouped,
    /// The socket that listens in the CLI's private network, as ancillary data of this line. Precedes `Started`.
    Listening,
    /// The rung could not be applied, with the raw errno of the call. `Failed` follows: a CLI never starts with less
    /// isolation than requested.
    Unisolated(Rung, i32),
    /// The CLI runs with this pid.
    Started(u32),
    /// The CLI did not start: raw errno.
    Failed(i32),
    /// The CLI exited.
    Exited(ExitStatus),
    /// Its descendants were killed.
    Swept(SweepReport),
}

impl Report {
    /// Formats the line, with its line feed.
    pub(crate) fn encode(self) -> Line {
        let mut line = Line { bytes: [0; MAX_LINE], len: 0 };
        // Cannot fail: MAX_LINE fits the longest line, see the tests.
        let _fits = match self {
            Self::Ungrouped => writeln!(line, "ungrouped"),
            Self::Listening => writeln!(line, "listening"),
            Self::Unisolated(rung, errno) => writeln!(line, "unisolated {} {errno}", rung.as_str()),
            Self::Started(pid) => writeln!(line, "started {pid}"),
            Self::Failed(errno) => writeln!(line, "failed {errno}"),
            Self::Exited(ExitStatus::Code(code)) => writeln!(line, "exited code {code}"),
            Self::Exited(ExitStatus::Signal(signal)) => writeln!(line, "exited signal {signal}"),
            Self::Exited(ExitStatus::Fenced) => writeln!(line, "exited fenced 0"),
            Self::Exited(ExitStatus::Unknown) => writeln!(line, "exited unknown 0"),
            Self::Swept(SweepReport { method, killed, took, stuck }) => {
                writeln!(line, "swept {} {killed} {} {stuck}", method.as_str(), took.as_micros())
            }
        };
        line
    }

    /// Parses a line without its line feed; `None` for any other text.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        let report = match words.next()? {
            "ungrouped" => Self::Ungrouped,
            "listening" => Self::Listening,
            "unisolated" => Self::Unisolated(Rung::parse(words.next()?)?, words.next()?.parse().ok()?),
            "started" => Self::Started(words.next()?.parse().ok()?),
            "failed" => Self::Failed(words.next()?.parse().ok()?),
            "exited" => {
                let kind = words.next()?;
                let number = words.next()?.parse().ok()?;
                Self::Exited(match kind {
                    "code" => ExitStatus::Code(number),
                    "signal" => ExitStatus::Signal(number),
                    "fenced" => ExitStatus::Fenced,
                    "unknown" => ExitStatus::Unknown,
                    _ => return None,
                })
            }
            "swept" => Self::Swept(SweepReport {
                method: match words.next()? {
                    "namespace" => KillMethod::Namespace,
                    "cgroup" => KillMethod::Cgroup,
                    "walk" => KillMethod::Walk,
                    _ => return None,
                },
                killed: words.next()?.parse().ok()?,
                took: Duration::from_micros(words.next()?.parse().ok()?),
                stuck: words.next()?.parse().ok()?,
            }),
            _ => return None,
        };
        words.next().is_none().then_some(report)
    }
}

/// Line buffer on the stack.
pub(crate) struct Line {
    bytes: [u8; MAX_LINE],
    len: usize,
}

impl Line {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_report_parses_to_itself() {
        let longest = SweepReport {
            method: KillMethod::Namespace,
            killed: u64::MAX,
            took: Duration::from_micros(u64::MAX),
            stuck: u64::MAX,
        };
        for report in [
            Report::Ungrouped,
            Report::Listening,
            Report::Unisolated(Rung::Namespaces, libc::ENOSYS),
            Report::Unisolated(Rung::Landlock, -1),
            Report::Started(4_194_304),
            Report::Failed(libc::ENOEXEC),
            Report::Exited(ExitStatus::Code(255)),
            Report::Exited(ExitStatus::Signal(9)),
            Report::Exited(ExitStatus::Fenced),
            Report::Exited(ExitStatus::Unknown),
            Report::Swept(longest),
            Report::Swept(SweepReport {
                method: KillMethod::Walk,
                killed: 0,
                took: Duration::ZERO,
                stuck: 0,
            }),
        ] {
            let line = report.encode();
            let (end, text) = line.as_bytes().split_last().unwrap();
            assert_eq!(*end, b'\n');
            assert_eq!(Report::parse(text), Some(report));
        }
    }

    #[test]
    fn other_lines_parse_to_none() {
        for line in [
            "",
            "started",
            "started x",
            "exited code",
            "swept walk 1 2",
            "swept other 1 2 3",
            "failed 1 2",
            "listening 3",
            "unisolated",
            "unisolated landlock",
            "unisolated moat 1",
            "unisolated uid 1 2",
        ] {
            assert_eq!(Report::parse(line.as_bytes()), None, "accepted {line:?}");
        }
        assert_eq!(Report::parse(b"started \xff"), None);
    }
}
