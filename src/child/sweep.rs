//! The search for processes by a marker in their environment: for what is left when no shim is there to ask, after
//! the server was killed together with its shims, or when a single shim was killed.
//!
//! Best effort: a process that cleared its environment is not found, and without privilege those of other users
//! are not seen. Blocks for some milliseconds; never called on the runtime.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Read as _,
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// Environments are read up to this size; the kernel allows 2 MiB on common settings, a marker comes early.
const MAX_ENVIRON: u64 = 1024 * 1024;
/// Passes over all processes: each finds what the ones before it forked meanwhile.
const MAX_PASSES: usize = 20;
/// How long one killed process may take to go before the next pass.
const DEATH_WAIT: Duration = Duration::from_millis(200);

/// Kills every process with exactly `entry` (`KEY=VALUE`) in its environment, except this one and `except`, until
/// none is found. Returns how many there were.
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

/// The second look happens behind the open pidfd: if it still shows the marker, either the pidfd is of this very
/// process or its process is gone and the signal goes nowhere. A stranger with a reused pid cannot be hit.
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
