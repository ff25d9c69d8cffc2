//! The lines that the shim sends to the server: one file for both ends.
//!
//! `started PID`, or `failed ERRNO` and no more; `exited code N` or `exited signal N` the moment the CLI ends;
//! `swept RUNG KILLED MICROS STUCK` once its tree is gone. The other way go single bytes, see [`TERMINATE`] and
//! [`KILL`]; the end of file is the order to end everything.

use std::{fmt::Write as _, time::Duration};

/// Asks the shim to send SIGTERM to the CLI.
pub const TERMINATE: u8 = b't';
/// Asks the shim to kill the whole tree now.
pub const KILL: u8 = b'k';

/// Longest line: a word, a rung and three 20-digit numbers.
pub const MAX_LINE: usize = 96;

/// How the CLI ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It is gone, but nobody can say how: the shim died first.
    Unknown,
}

/// The means by which a tree was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// `cgroup.kill`, then the walk: nothing can escape.
    Cgroup,
    /// The walk over the shim's own children: a process that forks faster than it is found may stay.
    Walk,
    /// The search for the marker in the environments: what cleared its environment stays.
    Marker,
}

impl Rung {
    /// The name on the wire and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Walk => "walk",
            Self::Marker => "marker",
        }
    }
}

/// What became of the CLI's descendants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// The strongest means used.
    pub rung: Rung,
    /// Descendants other than the CLI that had to be killed.
    pub killed: u64,
    /// How long it took until none was left.
    pub took: Duration,
    /// Descendants that would not die in time. The shim stays and goes on trying.
    pub stuck: u64,
}

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The CLI could not be put into the group that it was to have: its tree is ended by the walk. Comes before
    /// `Started`.
    Ungrouped,
    /// The CLI runs under this pid.
    Started(u32),
    /// The CLI could not be started: raw errno.
    Failed(i32),
    /// The CLI ended.
    Exited(Exit),
    /// Its tree ended.
    Swept(Swept),
}

impl Report {
    /// The line, with its end.
    pub(crate) fn encode(self) -> Line {
        let mut line = Line { bytes: [0; MAX_LINE], len: 0 };
        // Cannot fail: MAX_LINE holds the longest one, as the test shows.
        let _fits = match self {
            Self::Ungrouped => writeln!(line, "ungrouped"),
            Self::Started(pid) => writeln!(line, "started {pid}"),
            Self::Failed(errno) => writeln!(line, "failed {errno}"),
            Self::Exited(Exit::Code(code)) => writeln!(line, "exited code {code}"),
            Self::Exited(Exit::Signal(signal)) => writeln!(line, "exited signal {signal}"),
            Self::Exited(Exit::Unknown) => writeln!(line, "exited unknown 0"),
            Self::Swept(Swept { rung, killed, took, stuck }) => {
                writeln!(line, "swept {} {killed} {} {stuck}", rung.as_str(), took.as_micros())
            }
        };
        line
    }

    /// Reads a line without its end; `None` if it is none of ours.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        let report = match words.next()? {
            "ungrouped" => Self::Ungrouped,
            "started" => Self::Started(words.next()?.parse().ok()?),
            "failed" => Self::Failed(words.next()?.parse().ok()?),
            "exited" => {
                let kind = words.next()?;
                let number = words.next()?.parse().ok()?;
                Self::Exited(match kind {
                    "code" => Exit::Code(number),
                    "signal" => Exit::Signal(number),
                    "unknown" => Exit::Unknown,
                    _ => return None,
                })
            }
            "swept" => Self::Swept(Swept {
                rung: match words.next()? {
                    "cgroup" => Rung::Cgroup,
                    "walk" => Rung::Walk,
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

/// A line in place: the shim formats without the heap.
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
    fn every_report_survives_the_wire() {
        let longest = Swept {
            rung: Rung::Cgroup,
            killed: u64::MAX,
            took: Duration::from_micros(u64::MAX),
            stuck: u64::MAX,
        };
        for report in [
            Report::Ungrouped,
            Report::Started(4_194_304),
            Report::Failed(libc::ENOEXEC),
            Report::Exited(Exit::Code(255)),
            Report::Exited(Exit::Signal(9)),
            Report::Exited(Exit::Unknown),
            Report::Swept(longest),
            Report::Swept(Swept { rung: Rung::Walk, killed: 0, took: Duration::ZERO, stuck: 0 }),
        ] {
            let line = report.encode();
            let (end, text) = line.as_bytes().split_last().unwrap();
            assert_eq!(*end, b'\n');
            assert_eq!(Report::parse(text), Some(report));
        }
    }

    #[test]
    fn anything_else_is_not_a_report() {
        for line in
            ["", "started", "started x", "exited code", "swept walk 1 2", "swept other 1 2 3", "failed 1 2"]
        {
            assert_eq!(Report::parse(line.as_bytes()), None, "accepted {line:?}");
        }
        assert_eq!(Report::parse(b"started \xff"), None);
    }
}
