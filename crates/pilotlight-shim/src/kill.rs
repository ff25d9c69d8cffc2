//! Reaps children, and kills the process tree until no descendant is left.
//!
//! The shim is a subreaper: the children of a dying process become its own. Killing and reaping its own children until
//! wait(2) returns ECHILD therefore kills all descendants. The pid of a child is stable until this thread reaps it.
//! Deeper descendants are killed through pidfds, to keep the tree from growing while its upper part dies.

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
    descendants,
    launch::Started,
    report::{ExitStatus, KillMethod, Report, SweepReport},
    rungs::namespaces::Namespace,
    sys,
};

/// Time after which surviving descendants are reported as stuck. The shim continues to kill them.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum wait between two passes; the exit of a child ends it earlier. Doubled each time up to the longest one: fifty shims
/// at the highest priority take the processor from the very processes that they wait for.
const PASS_INTERVAL: Duration = Duration::from_millis(5);
const LONGEST_INTERVAL: Duration = Duration::from_millis(50);
/// The same for stuck processes, which may wait for a dead file system for hours.
const STUCK_INTERVAL: Duration = Duration::from_millis(250);

/// Maximum number of processes of a namespace that are counted: it delays their end by a millisecond.
const MOST_COUNTED: usize = 64;

/// Default nice value of a process.
const DEFAULT_PRIORITY: i32 = 0;

/// The CLI and its descendants.
pub(crate) struct Tree<'a> {
    /// Readable when a child has exited.
    pub(crate) signals: BorrowedFd<'a>,
    pub(crate) cli: Pid,
    namespace: Option<Namespace>,
    /// Until the init process of the namespace is reaped; then nothing of it is left.
    init: Option<Pid>,
    /// Set when the CLI is reaped; from then on its pid is invalid.
    pub(crate) exit: Option<ExitStatus>,
    /// The deadline has passed, which is why the CLI ends.
    pub(crate) fenced: bool,
    killed: u64,
    sweeping: bool,
    report: fn(Report),
}

impl<'a> Tree<'a> {
    pub(crate) fn new(started: Started, signals: BorrowedFd<'a>, report: fn(Report)) -> Self {
        let Started { cli, namespace, .. } = started;
        let init = namespace.as_ref().map(|namespace| namespace.init);
        Self { signals, cli, namespace, init, exit: None, fenced: false, killed: 0, sweeping: false, report }
    }

    /// Reaps all exited children, the CLI and orphans alike. Returns false when no child is left.
    pub(crate) fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.cli && self.exit.is_none() => {
                    let exit = if self.fenced { ExitStatus::Fenced } else { exit_of(status) };
                    self.exit = Some(exit);
                    (self.report)(Report::Exited(exit));
                }
                Ok(Some((pid, _))) if Some(pid) == self.init => self.init = None,
                Ok(Some((_, status))) => {
                    let was_killed = status.terminating_signal() == Some(Signal::KILL.as_raw());
                    self.killed += u64::from(self.sweeping && was_killed);
                }
                Ok(None) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Sends a signal to the CLI unless it is reaped.
    pub(crate) fn signal_cli(&self, signal: Signal) {
        if self.exit.is_none() {
            // The pid of an unreaped child is valid; the only error is that it has exited.
            let _ended = kill_process(self.cli, signal);
        }
    }

    /// Kills the init process, and with it the namespace. The kernel reaps there, so the processes are counted before.
    fn kill_namespace(&mut self) {
        let Some(init) = self.init else { return };
        let mut family = Vec::new();
        descendants::children(getpid().as_raw_pid(), &mut family);
        descendants::add_up_to(MOST_COUNTED, &mut family);
        let own = [init, self.cli].map(Pid::as_raw_pid);
        let killed = family.iter().filter(|pid| !own.contains(pid)).count();
        self.killed += u64::try_from(killed).unwrap_or(u64::MAX);
        // The pid of an unreaped child is valid; the only error is that it has exited.
        let _ended = kill_process(init, Signal::KILL);
    }

    /// Kills the tree and reports the result. Returns when no descendant is left.
    pub(crate) fn sweep(&mut self, group: Option<Group>) {
        let started = now();
        self.kill_namespace();
        if self.exit.is_none() {
            // First of all: next to many forking processes, the following calls may wait for the processor.
            kill_children(getpid(), &[self.cli.as_raw_pid()]);
        }
        // Processes that exited before this point do not count as killed.
        let mut any = self.reap();
        self.sweeping = true;
        let method = match (&self.namespace, group.as_ref().map(Group::kill)) {
            (Some(_), _) => KillMethod::Namespace,
            (None, Some(Ok(()))) => KillMethod::Cgroup,
            _ => KillMethod::Walk,
        };
        let (mut reported, mut interval) = (false, PASS_INTERVAL);
        let (mut family, mut already_killed) = (Vec::new(), Vec::new());
        while any {
            let grew = kill_pass(&mut family, &mut already_killed);
            any = self.reap();
            if any && !reported && started.elapsed() > SWEEP_TIMEOUT {
                let stuck = u64::try_from(family.len()).unwrap_or(u64::MAX);
                (self.report)(Report::Swept(SweepReport {
                    method,
                    killed: self.killed,
                    took: started.elapsed(),
                    stuck,
                }));
                reported = true;
                // The wait may be long: other processes take precedence from now on.
                let _refused = setpriority_process(None, DEFAULT_PRIORITY);
            }
            if grew {
                // No wait while new processes appear: a fork bomb must be outrun.
                interval = PASS_INTERVAL;
            } else if any {
                if method != KillMethod::Walk {
                    // The kernel has killed all of it, and nothing new appears: what ends needs the processor more.
                    let _refused = setpriority_process(None, DEFAULT_PRIORITY);
                }
                pause(self.signals, if reported { STUCK_INTERVAL } else { interval });
                interval = (2 * interval).min(LONGEST_INTERVAL);
                any = self.reap();
            }
        }
        if let Some(group) = group {
            // Fails only if another program has put a process into the group.
            let _inhabited = group.remove();
        }
        if !reported {
            (self.report)(Report::Swept(SweepReport {
                method,
                killed: self.killed,
                took: started.elapsed(),
                stuck: 0,
            }));
        }
    }
}

/// Sends SIGKILL to the tree. Returns true if it found a process that no former pass had killed.
fn kill_pass(family: &mut Vec<i32>, already_killed: &mut Vec<i32>) -> bool {
    let me = getpid();
    descendants::children(me.as_raw_pid(), family);
    kill_children(me, family);
    let mut grew = family.iter().any(|pid| !already_killed.contains(pid));
    if !grew {
        // The upper part of the tree is dying, so this is the time for deeper levels.
        let own = family.len();
        descendants::add_descendants(family);
        kill_descendants(me, family.get(own..).unwrap_or_default());
        grew = family.iter().any(|pid| !already_killed.contains(pid));
    }
    already_killed.clone_from(family);
    grew
}

/// Sends SIGKILL to the shim's own children and to their process groups, which kills many forking processes at once.
///
/// It hits no process outside of the tree: a group belongs to one session, and each session of the tree was created in
/// the tree. An unreaped child, even a dead one, keeps the id of its group from being reused.
fn kill_children(me: Pid, children: &[i32]) {
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

fn kill_descendants(me: Pid, descendants: &[i32]) {
    for &raw in descendants {
        let Some(pid) = Pid::from_raw(raw) else { continue };
        // The pidfd is opened before the check of the ancestry, so the check cannot be about a reused pid.
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            && descendants::is_descendant(me.as_raw_pid(), raw)
        {
            let _ended = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }
}

fn exit_of(status: WaitStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        (None, None) => ExitStatus::Unknown,
    }
}

/// Waits for the exit of a child, with a time limit.
fn pause(signals: BorrowedFd<'_>, at_most: Duration) {
    let _woken = poll(&mut [PollFd::from_borrowed_fd(signals, PollFlags::IN)], Some(&timespec(at_most)));
    drain_signals(signals);
}

/// Drains the signal descriptor, which only shows that some child exited.
pub(crate) fn drain_signals(signals: impl AsFd) {
    // Larger than one signalfd_siginfo; SIGCHLD is never queued twice.
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
