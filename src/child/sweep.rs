//! Kills processes with a marker in their environment: the leftovers of shims that were killed.
//!
//! Best effort: misses processes that cleared their environment, and without privilege those of other users. Blocks for
//! some milliseconds; never called on the runtime.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use procfs::process::{Process, StatFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::host::now;

/// Bytes of an environment that are read. The kernel usually allows 2 MiB, but the marker is near the beginning.
const MAX_ENVIRON: u64 = 1024 * 1024;
/// Maximum time of a sweep: each pass finds processes forked during the previous one.
const MOST: Duration = Duration::from_secs(4);
/// Maximum wait for processes without memory. The end of a namespace takes milliseconds.
const MOST_BARE: Duration = Duration::from_secs(2);
/// First and longest pause between two passes.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(200)];

/// Kills every process with exactly `entry` (`KEY=VALUE`) in its environment, except this one and `except`, until none is
/// found. Returns the number of killed processes, which have ended then.
///
/// A process that is just ending or executes a program has no memory, hence no environment. It is waited for: it may be
/// one of them.
pub(crate) fn sweep_marked(entry: &str, except: &[u32]) -> usize {
    let mut sweep = Sweep::new(entry, except);
    let [mut pause, longest] = PAUSES;
    while !sweep.go_on() {
        sweep.wait(pause);
        pause = (pause * 2).min(longest);
    }
    sweep.killed()
}

fn all_pids() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))
}

/// A sweep that is done in passes. None of them waits.
#[derive(Debug)]
pub(super) struct Sweep {
    entry: Vec<u8>,
    except: Vec<u32>,
    killed: HashSet<Pid>,
    found: Found,
    began: Instant,
    /// Since when nothing but processes without memory is left.
    bare_since: Option<Instant>,
}

/// What one pass has found.
#[derive(Debug, Default)]
struct Found {
    dying: Vec<OwnedFd>,
    /// Without memory.
    bare: Vec<(Pid, OwnedFd)>,
}

enum Mark {
    Marked,
    Unmarked,
    /// Not to be known now.
    Bare,
}

impl Sweep {
    pub(super) fn new(entry: &str, except: &[u32]) -> Self {
        Self {
            entry: entry.as_bytes().to_vec(),
            except: except.to_vec(),
            killed: HashSet::new(),
            found: Found::default(),
            began: now(),
            bare_since: None,
        }
    }

    /// The number of killed processes.
    pub(super) fn killed(&self) -> usize {
        self.killed.len()
    }

    /// Makes a pass. Whether the sweep is over: nothing is left, or its time is up.
    pub(super) fn go_on(&mut self) -> bool {
        let bare: Vec<_> = self.found.bare.iter().map(|(pid, _)| *pid).collect();
        self.found = match bare.is_empty() || !self.found.dying.is_empty() {
            true => self.look(all_pids()),
            false => self.look(bare.into_iter()),
        };
        if !self.found.dying.is_empty() {
            self.bare_since = None;
            return self.began.elapsed() >= MOST;
        }
        let is_late = |since: Instant| since.elapsed() >= MOST_BARE;
        self.found.bare.is_empty() || is_late(*self.bare_since.get_or_insert_with(now))
    }

    /// Waits until all that the last pass has found have ended, up to a limit.
    fn wait(&self, limit: Duration) {
        let bare = self.found.bare.iter().map(|(_, pidfd)| pidfd);
        wait_for_deaths(self.found.dying.iter().chain(bare), limit);
    }

    /// Kills the marked ones of `pids`.
    fn look(&mut self, pids: impl Iterator<Item = Pid>) -> Found {
        let mut found = Found::default();
        for pid in pids {
            let spared = pid.as_raw_pid().cast_unsigned();
            if spared == std::process::id() || self.except.contains(&spared) {
                continue;
            }
            self.look_at(pid, &mut found);
        }
        found
    }

    /// The marker is read again after opening the pidfd: then the pidfd belongs to a marked process, or that process is
    /// gone. A process with a reused pid is never killed.
    fn look_at(&mut self, pid: Pid, found: &mut Found) {
        if matches!(self.mark(pid), Mark::Unmarked) {
            return;
        }
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        match self.mark(pid) {
            Mark::Marked => {
                if pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
                    self.killed.insert(pid);
                    found.dying.push(pidfd);
                }
            }
            Mark::Bare => found.bare.push((pid, pidfd)),
            Mark::Unmarked => {}
        }
    }

    fn mark(&self, pid: Pid) -> Mark {
        let mut environ = Vec::new();
        let path = format!("/proc/{}/environ", pid.as_raw_pid());
        let read = File::open(path).and_then(|file| file.take(MAX_ENVIRON).read_to_end(&mut environ));
        match read {
            Ok(0) if is_bare(pid) => Mark::Bare,
            // How kernels since 6.16 say so.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) && is_bare(pid) => Mark::Bare,
            Ok(_) if environ.split(|byte| *byte == 0).any(|have| have == self.entry) => Mark::Marked,
            _ => Mark::Unmarked,
        }
    }
}

/// Whether a process with an empty environment is between two programs, or before its end. A program that was started
/// without an environment is neither.
fn is_bare(pid: Pid) -> bool {
    let stat = Process::new(pid.as_raw_pid()).and_then(|process| process.stat());
    stat.is_ok_and(|stat| {
        let is_kernels = StatFlags::from_bits_truncate(stat.flags).contains(StatFlags::PF_KTHREAD);
        let has_ended = matches!(stat.state, 'Z' | 'X');
        !is_kernels && !has_ended && stat.env_start.is_none_or(|start| start == 0)
    })
}

/// Waits until all have ended, up to a limit.
fn wait_for_deaths<'a>(pidfds: impl Iterator<Item = &'a OwnedFd>, limit: Duration) {
    let until = now() + limit;
    for pidfd in pidfds {
        let left = until.saturating_duration_since(now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let _too_slow = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilotlight_test_support::SOON;
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

    /// The init process of a namespace has no memory any more while it waits for the end of all others in it.
    #[test]
    fn an_end_without_memory_is_waited_for() {
        let probe = Command::new("unshare").args(["--pid", "--fork", "true"]).status();
        if !probe.is_ok_and(|status| status.success()) {
            pilotlight_test_support::installed::left_out("no namespace of processes can be made here");
            return;
        }
        let mark = format!("PILOTLIGHT_SWEEP_TEST=bare-{}", std::process::id());
        let (key, value) = mark.split_once('=').unwrap();
        let mut outside = Command::new("unshare")
            .args(["--pid", "--fork", "sleep", "600"])
            .env(key, value)
            .spawn()
            .unwrap();
        let init = child_of(&outside, "sleep");
        let mut entered =
            Command::new("nsenter").args(["--target", &init, "--pid", "sleep", "600"]).spawn().unwrap();
        child_of(&entered, "sleep");
        // Stopped, it does not reap its child, which the end of the namespace waits for.
        let parent = Pid::from_raw(entered.id().cast_signed()).unwrap();
        rustix::process::kill_process(parent, Signal::STOP).unwrap();
        let sweep = std::thread::spawn(move || sweep_marked(&mark, &[]));
        let environ = format!("/proc/{init}/environ");
        let began = tokio::time::Instant::now();
        while std::fs::read(&environ).is_ok_and(|environ| !environ.is_empty()) {
            assert!(began.elapsed() < SOON, "the process keeps its memory");
            std::thread::yield_now();
        }
        // Longer than every pause: only the wait for processes without memory is left.
        super::super::host::pause(2 * PAUSES[1]);
        rustix::process::kill_process(parent, Signal::CONT).unwrap();
        assert_eq!(sweep.join().unwrap(), 2);
        let state = Process::new(init.parse().unwrap()).and_then(|init| init.stat()).map(|stat| stat.state);
        assert!(state.is_err() || state.is_ok_and(|state| state == 'Z'), "the init process is left");
        outside.wait().unwrap();
        entered.wait().unwrap();
    }

    /// The only child, once it executes `program`.
    fn child_of(parent: &Child, program: &str) -> String {
        let mut children = Vec::new();
        let began = tokio::time::Instant::now();
        loop {
            assert!(began.elapsed() < SOON, "no child of this name");
            pilotlight_shim::descendants::children(parent.id().cast_signed(), &mut children);
            if let [child] = children[..]
                && std::fs::read_to_string(format!("/proc/{child}/comm"))
                    .is_ok_and(|comm| comm.trim() == program)
            {
                return child.to_string();
            }
            std::thread::yield_now();
        }
    }
}
