//! The process table: identity and liveness of processes, and those that this demo started.

use procfs::process::{Process as Entry, all_processes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Environment variable that marks every process of one demo with its own value.
pub(super) const MARK: &str = "PILOTLIGHT_DEMO";
/// Maximum time from SIGKILL to the exit.
const DEATH_WITHIN: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// A process, distinguished from a later one with the same pid by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    started: u64,
}

impl Process {
    /// The running process with this pid; a zombie does not count.
    pub(super) fn of(pid: i32) -> Option<Self> {
        Self::read(&Entry::new(pid).ok()?).map(|(process, _)| process)
    }

    /// Reads a process and its parent's pid.
    fn read(entry: &Entry) -> Option<(Self, i32)> {
        let stat = entry.stat().ok()?;
        let is_alive = !matches!(stat.state, 'Z' | 'X' | 'x');
        is_alive.then_some((Self { pid: stat.pid, started: stat.starttime }, stat.ppid))
    }

    pub(super) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends SIGKILL and waits for the exit. The process is checked again behind an open pidfd, so that a reused pid is
    /// never hit.
    ///
    /// # Errors
    /// A description of the failure.
    pub(super) fn kill(self, mark: &str) -> Result<(), String> {
        let pid = Pid::from_raw(self.pid).ok_or("not a process number")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| error.to_string())?;
        if !self.is_alive() || !is_marked(self.pid, mark) {
            return Err(format!("process {} is not one that this demo started", self.pid));
        }
        pidfd_send_signal(&pidfd, Signal::KILL).map_err(|error| error.to_string())?;
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&DEATH_WITHIN));
        match ended {
            Ok(1..) => Ok(()),
            _ => Err(format!("process {} is still there", self.pid)),
        }
    }
}

/// Running processes that this demo started: marked in their environment, or descendants of this process.
pub(super) fn started_here(mark: &str) -> Vec<Process> {
    let own = std::process::id().cast_signed();
    let Ok(entries) = all_processes() else { return Vec::new() };
    let all: Vec<(Process, i32)> = entries
        .filter_map(|entry| Process::read(&entry.ok()?))
        .filter(|(process, _)| process.pid != own)
        .collect();
    let mut found: Vec<Process> =
        all.iter().filter(|(process, _)| is_marked(process.pid, mark)).map(|(process, _)| *process).collect();
    let mut ancestors = vec![own];
    while let Some(ancestor) = ancestors.pop() {
        for (process, _) in all.iter().filter(|(_, parent)| *parent == ancestor) {
            ancestors.push(process.pid);
            if !found.contains(process) {
                found.push(*process);
            }
        }
    }
    found
}

fn is_marked(pid: i32, mark: &str) -> bool {
    let environment = Entry::new(pid).and_then(|entry| entry.environ()).unwrap_or_default();
    environment
        .get(std::ffi::OsStr::new(MARK))
        .is_some_and(|value| value.as_encoded_bytes() == mark.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn sleeper(mark: &str) -> Child {
        Command::new("sleep").arg("600").env(MARK, mark).spawn().unwrap()
    }

    #[test]
    fn only_what_was_started_here_is_killed() {
        let (ours, others) = ("ours", "others");
        let mut children = [sleeper(ours), sleeper(others)];
        let [mine, stranger] =
            children.each_ref().map(|child| Process::of(child.id().cast_signed()).unwrap());
        assert!(started_here(ours).contains(&mine));
        assert!(stranger.kill(ours).unwrap_err().contains("not one that this demo started"));
        assert!(Process { started: mine.started + 1, ..mine }.kill(ours).is_err());
        mine.kill(ours).unwrap();
        assert!(!mine.is_alive() && stranger.is_alive());
        for child in &mut children {
            child.kill().ok();
            child.wait().unwrap();
        }
    }
}
