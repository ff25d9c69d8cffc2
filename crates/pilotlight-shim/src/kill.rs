//! Reaping, and killing a tree until nothing is left of it.
//!
//! The subreaper makes this simple: when a process dies, its children become ours. So whoever kills its own
//! children and reaps them until the kernel says that there are none (ECHILD) has killed everything. A child
//! cannot lose its pid to a stranger before it is reaped, and only this thread reaps; those further down are
//! struck as well, through pidfds, so that the tree does not grow on while its upper part dies.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpgid, getpid, kill_process, kill_process_group,
        pidfd_open, pidfd_send_signal, setpriority_process, wait,
    },
};

use super::{
    cgroup::Group,
    family,
    report::{Exit, Report, Rung, Swept},
    sys,
};

/// After this long what is left is reported as stuck. The hunt for it goes on: nobody else would end it.
const SWEEP_LIMIT: Duration = Duration::from_secs(3);
/// Pause between two passes when all that was found is struck already: a death wakes us earlier.
const PASS_PAUSE: Duration = Duration::from_millis(5);
/// The same, for what will not die (in a dead file system, say): it must not cost anything to wait for it.
const STUCK_PAUSE: Duration = Duration::from_millis(250);

/// What a process has by default.
const ORDINARY_PRIORITY: i32 = 0;

/// The CLI and everything that descends from it.
pub(crate) struct Tree<'a> {
    /// Readable when a child has ended.
    pub(crate) signals: BorrowedFd<'a>,
    pub(crate) cli: Pid,
    /// Set once the CLI is reaped; its pid means nothing from then on.
    pub(crate) exit: Option<Exit>,
    killed: u64,
    sweeping: bool,
    tell: fn(Report),
}

impl<'a> Tree<'a> {
    pub(crate) fn new(cli: Pid, signals: BorrowedFd<'a>, tell: fn(Report)) -> Self {
        Self { signals, cli, exit: None, killed: 0, sweeping: false, tell }
    }

    /// Reaps all that has ended, the CLI and orphans alike; false once there is no child any more.
    pub(crate) fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.cli && self.exit.is_none() => {
                    let exit = exit_of(status);
                    self.exit = Some(exit);
                    (self.tell)(Report::Exited(exit));
                }
                Ok(Some((_, status))) => {
                    let struck = status.terminating_signal() == Some(Signal::KILL.as_raw());
                    self.killed += u64::from(self.sweeping && struck);
                }
                Ok(None) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Signals the CLI, as long as it is there.
    pub(crate) fn signal_cli(&self, signal: Signal) {
        if self.exit.is_none() {
            // It is our child and not reaped: the pid is its own, and the only error is that it ended.
            let _ended = kill_process(self.cli, signal);
        }
    }

    /// Kills everything and reports it. Returns when nothing is left.
    pub(crate) fn sweep(&mut self, group: Option<Group>) {
        let begun = now();
        if self.exit.is_none() {
            // Before all else: in a crowd that forks, the next call may have to wait for the processor.
            strike_own(getpid(), &[self.cli.as_raw_pid()]);
        }
        // What ended by itself before this moment did not have to be killed.
        let mut any = self.reap();
        self.sweeping = true;
        let rung = match group.as_ref().map(Group::kill) {
            Some(Ok(())) => Rung::Cgroup,
            _ => Rung::Walk,
        };
        let mut reported = false;
        let (mut family, mut struck) = (Vec::new(), Vec::new());
        while any {
            let grew = strike(&mut family, &mut struck);
            any = self.reap();
            if any && !reported && begun.elapsed() > SWEEP_LIMIT {
                let stuck = u64::try_from(family.len()).unwrap_or(u64::MAX);
                (self.tell)(Report::Swept(Swept { rung, killed: self.killed, took: begun.elapsed(), stuck }));
                reported = true;
                // This may last: from now on nobody may suffer from it.
                let _refused = setpriority_process(None, ORDINARY_PRIORITY);
            }
            // One that forks has to be outrun: no pause as long as somebody new turns up.
            if any && !grew {
                pause(self.signals, if reported { STUCK_PAUSE } else { PASS_PAUSE });
                any = self.reap();
            }
        }
        if let Some(group) = group {
            // Fails only if a stranger was put into it, which is not ours to end.
            let _inhabited = group.remove();
        }
        if !reported {
            (self.tell)(Report::Swept(Swept { rung, killed: self.killed, took: begun.elapsed(), stuck: 0 }));
        }
    }
}

/// Sends SIGKILL to the tree; true if one was found that was not struck before.
fn strike(family: &mut Vec<i32>, struck: &mut Vec<i32>) -> bool {
    let me = getpid();
    family::children(me.as_raw_pid(), family);
    strike_own(me, family);
    let mut grew = family.iter().any(|pid| !struck.contains(pid));
    if !grew {
        // The upper part of the tree is dying: now there is time to look at what is below it.
        let own = family.len();
        family::add_descendants(family);
        strike_below(me, family.get(own..).unwrap_or_default());
        grew = family.iter().any(|pid| !struck.contains(pid));
    }
    struck.clone_from(family);
    grew
}

/// Our own children, each with its whole process group. That strikes many at one instant, which a process that
/// forks cannot get ahead of; who leaves the group to do so comes to us as a child.
///
/// It hits no stranger: a group lives within one session, and every session of the tree was begun in the tree. An
/// unreaped child, even a dead one, keeps the number of its group from being used again.
fn strike_own(me: Pid, children: &[i32]) {
    let leads_session = sys::leads_session(me);
    let mut last = None;
    for child in children.iter().filter_map(|child| Pid::from_raw(*child)) {
        let _ended = kill_process(child, Signal::KILL);
        if let Ok(group) = getpgid(Some(child))
            && leads_session
            && group != me
            && last != Some(group)
        {
            let _ended = kill_process_group(group, Signal::KILL);
            last = Some(group);
        }
    }
}

fn strike_below(me: Pid, descendants: &[i32]) {
    for &raw in descendants {
        let Some(pid) = Pid::from_raw(raw) else { continue };
        // The descriptor is opened before the look at its ancestry: it is of this process or of nobody.
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            && family::descends(me.as_raw_pid(), raw)
        {
            let _ended = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }
}

fn exit_of(status: WaitStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Unknown,
    }
}

/// Waits for the end of a child, at most so long.
fn pause(signals: BorrowedFd<'_>, at_most: Duration) {
    let _woken = poll(&mut [PollFd::from_borrowed_fd(signals, PollFlags::IN)], Some(&timespec(at_most)));
    forget_wakeup(signals);
}

/// Empties the signal descriptor: it says only that somebody ended, the reaping finds out who.
pub(crate) fn forget_wakeup(signals: impl AsFd) {
    // Larger than the kernel's record of one signal; SIGCHLD is never queued twice.
    let mut record = [0_u8; 256];
    let _nothing_there = rustix::io::read(signals, &mut record);
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the shim has no tokio and no paused clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
