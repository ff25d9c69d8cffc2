//! Kills processes with a marker in their environment: the leftovers of shims that were killed.
//!
//! Best effort: misses processes that cleared their environment, and without privilege those of other users. Blocks for
//! some milliseconds; never called on the runtime.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Bytes of an environment that are read. The kernel usually allows 2 MiB, but the marker is near the beginning.
const MAX_ENVIRON: u64 = 1024 * 1024;
/// Maximum number of passes: each one finds processes forked during the previous one.
const MAX_PASSES: usize = 20;
/// Maximum wait for a killed process to exit before the next pass.
const DEATH_WAIT: Duration = Duration::from_millis(200);

/// Kills every process with exactly `entry` (`KEY=VALUE`) in its environment, except this one and `except`, until none is
/// found. Returns the number of killed processes.
pub(crate) fn sweep_marked(entry: &str, except: &[u32]) -> usize {
    let mut killed = HashSet::new();
    let mut environ = Vec::new();
    for _ in 0..MAX_PASSES {
        let mut dying = Vec::new();
        for pid in all_pids() {
            let spared = pid.as_raw_pid().cast_unsigned();
            if spared == std::process::id() || except.contains(&spared) {
                continue;
            }
            if let Some(pidfd) = kill_if_marked(pid, entry, &mut environ) {
                killed.insert(pid);
                dying.push(pidfd);
            }
        }
        if dying.is_empty() {
            break;
        }
        dying.iter().for_each(wait_for_death);
    }
    killed.len()
}

fn all_pids() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))
}

/// The marker is checked again after opening the pidfd: then the pidfd belongs to a marked process, or that process is gone.
/// A process with a reused pid is never killed.
fn kill_if_marked(pid: Pid, entry: &str, environ: &mut Vec<u8>) -> Option<OwnedFd> {
    if !is_marked(pid, entry, environ) {
        return None;
    }
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    if !is_marked(pid, entry, environ) {
        return None;
    }
    pidfd_send_signal(&pidfd, Signal::KILL).ok().map(|()| pidfd)
}

fn is_marked(pid: Pid, entry: &str, environ: &mut Vec<u8>) -> bool {
    environ.clear();
    let path = format!("/proc/{}/environ", pid.as_raw_pid());
    File::open(path).and_then(|file| file.take(MAX_ENVIRON).read_to_end(environ)).is_ok()
        && environ.split(|byte| *byte == 0).any(|have| have == entry.as_bytes())
}

fn wait_for_death(pidfd: &OwnedFd) {
    let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(DEATH_WAIT.subsec_nanos()) };
    let _too_slow = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn sleeper(entry: &str) -> Child {
        let (key, value) = entry.split_once('=').unwrap();
        Command::new("sleep").arg("600").env(key, value).spawn().unwrap()
    }

    #[test]
    fn only_what_carries_the_exact_entry_is_killed() {
        let mark = format!("PILOTLIGHT_SWEEP_TEST={}", std::process::id());
        let mut marked = [sleeper(&mark), sleeper(&mark)];
        let mut longer = sleeper(&format!("{mark}0"));
        let mut spared = sleeper(&mark);
        assert_eq!(sweep_marked(&mark, &[spared.id()]), 2);
        for child in &mut marked {
            assert!(!child.wait().unwrap().success());
        }
        for child in [&mut longer, &mut spared] {
            assert!(child.try_wait().unwrap().is_none(), "a stranger was killed");
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(sweep_marked(&mark, &[]), 0);
    }
}
