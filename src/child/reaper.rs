//! Reaps shims on one thread of the process, and kills the trees of shims that could not do so.
//!
//! A thread instead of a task: a shim must be reaped even when its handle is dropped together with the runtime. The
//! runtime's orphan handling needs a living runtime (measured: most dropped children stayed zombies). The thread waits
//! for given children only, never for any child. It starts on demand and ends when idle. It is global to the process,
//! because children belong to the process.

use std::path::PathBuf;
use std::process::Child;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;

use super::{cgroup, host::now, sweep::Sweep};
use pilotlight_shim::{descendants, report::KillMethod};

use crate::support::lock::MutexExt;

/// First pause between two checks. A shim closes its socket just before the kernel lets it be reaped, and the next
/// child of its session waits for that.
const SHORTEST_PAUSE: Duration = Duration::from_micros(50);
/// Longest pause between two checks, for slow shims.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// Idle time after which the thread ends: a series of exits starts it once.
const LINGER: Duration = Duration::from_secs(2);
/// Time between waking a shim and killing it: its CLI may have stopped it.
const AFTER_NUDGE: Duration = Duration::from_secs(2);

/// A shim, and how to kill its tree without it.
#[derive(Debug)]
pub(super) struct Ward {
    child: Child,
    /// Identifies the shim together with the pid, also when the host reaps all children itself.
    start_time: Option<u64>,
    cgroup: Option<PathBuf>,
    /// Groups of version 1 that limit it.
    limited_by: Vec<PathBuf>,
    /// `KEY=VALUE` in the environment of this tree only.
    marker: String,
    stage: Stage,
    reply: Option<oneshot::Sender<Aftermath>>,
}

#[derive(Debug)]
enum Stage {
    /// Works; left alone until this moment.
    Trusted(Option<Instant>),
    /// Woken; killed at this moment.
    Nudged(Instant),
    Killed,
    /// Reaped; what it has left is killed. The number of processes that its groups had.
    Sweeping(Box<Sweep>, Option<usize>),
}

/// Kill in place of a shim that died: the method, and the number of processes.
pub(super) type Aftermath = Option<(KillMethod, usize)>;

impl Ward {
    pub(super) fn new(
        child: Child,
        cgroup: Option<PathBuf>,
        limited_by: Vec<PathBuf>,
        marker: String,
    ) -> Self {
        let start_time = descendants::start_time(child.id().cast_signed());
        Self { child, start_time, cgroup, limited_by, marker, stage: Stage::Trusted(None), reply: None }
    }

    pub(super) fn shim_pid(&self) -> u32 {
        self.child.id()
    }

    /// Hands the shim to the thread. After `patience` it is woken, then killed; `None` waits without limit.
    pub(super) fn hand_over(mut self, patience: Option<Duration>) -> oneshot::Receiver<Aftermath> {
        let (reply, receiver) = oneshot::channel();
        self.stage = Stage::Trusted(patience.map(|patience| now() + patience));
        self.reply = Some(reply);
        Reaper::take(self);
        receiver
    }

    /// Does what is due, without a wait: others are to be reaped. Whether nothing is left to do.
    fn look(&mut self) -> bool {
        if let Stage::Sweeping(sweep, in_groups) = &mut self.stage {
            if !sweep.go_on() {
                return false;
            }
            let killed = in_groups.unwrap_or_default() + sweep.killed();
            let method = if in_groups.is_some() { KillMethod::Cgroup } else { KillMethod::Marker };
            self.reply(Some((method, killed)));
            return true;
        }
        let status = match self.child.try_wait() {
            Ok(None) => {
                self.press();
                return false;
            }
            Ok(Some(status)) => Some(status),
            // The host ignores SIGCHLD or waits for any child: the exit status is lost.
            Err(_) => None,
        };
        // Exit codes of a shim: 0 = swept, 1 = nothing was started.
        let orderly = matches!(status.and_then(|status| status.code()), Some(0 | 1));
        if orderly {
            self.reply(None);
        } else {
            let in_groups = self.kill_groups();
            self.stage = Stage::Sweeping(Box::new(Sweep::new(&self.marker, &[])), in_groups);
        }
        orderly
    }

    fn reply(&mut self, aftermath: Aftermath) {
        if let Some(reply) = self.reply.take() {
            // A dropped handle has no receiver.
            let _dropped = reply.send(aftermath);
        }
    }

    fn press(&mut self) {
        match self.stage {
            Stage::Trusted(Some(until)) if now() >= until => {
                self.signal(Signal::CONT);
                self.stage = Stage::Nudged(now() + AFTER_NUDGE);
            }
            Stage::Nudged(until) if now() >= until => {
                self.signal(Signal::KILL);
                self.stage = Stage::Killed;
            }
            _ => {}
        }
    }

    /// Only if the pid still belongs to the shim: the host may reap children itself.
    pub(super) fn signal(&self, signal: Signal) {
        let pid = self.child.id().cast_signed();
        if let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            && self.start_time.is_some()
            && descendants::start_time(pid) == self.start_time
        {
            let _ended = pidfd_send_signal(pidfd, signal);
        }
    }

    /// Kills the groups of a CLI that died with its shim; returns the number of processes, if it had any.
    fn kill_groups(&self) -> Option<usize> {
        let in_group = self.cgroup.as_deref().filter(|dir| dir.is_dir()).map(cgroup::kill_and_remove);
        let in_limits: usize = self.limited_by.iter().map(|dir| cgroup::kill_v1(dir)).sum();
        let any = in_group.or((in_limits > 0).then_some(0));
        any.map(|in_group| in_group + in_limits)
    }
}

/// Starts the thread if it is needed and could not start before.
pub(super) fn ensure_running() {
    Reaper::lock().ensure_running();
}

/// Shims to reap, and whether the thread runs.
struct Reaper {
    wards: Vec<Ward>,
    running: bool,
}

static REAPER: Mutex<Reaper> = Mutex::new(Reaper { wards: Vec::new(), running: false });
static ARRIVAL: Condvar = Condvar::new();

impl Reaper {
    fn lock() -> MutexGuard<'static, Self> {
        // List and flag are consistent between any two statements.
        REAPER.lock_unpoisoned()
    }

    fn take(ward: Ward) {
        Self::lock().wards.push(ward);
        ARRIVAL.notify_one();
        ensure_running();
    }

    fn ensure_running(&mut self) {
        if self.running || self.wards.is_empty() {
            return;
        }
        let thread = std::thread::Builder::new().name("pilotlight-reap".into()).stack_size(256 * 1024);
        // If no thread can start, the shims stay in the list until the next attempt.
        self.running = thread.spawn(Self::work).is_ok();
    }

    fn work() {
        let mut pause = SHORTEST_PAUSE;
        loop {
            // Without the lock: sweeping takes milliseconds, and a handle may be dropped on the runtime.
            let mut wards = std::mem::take(&mut Self::lock().wards);
            wards.retain_mut(|ward| !ward.look());
            let mut reaper = Self::lock();
            let arrived = !reaper.wards.is_empty();
            reaper.wards.append(&mut wards);
            if arrived {
                pause = SHORTEST_PAUSE;
                continue;
            }
            let idle = reaper.wards.is_empty();
            let had = reaper.wards.len();
            let wait = if idle { LINGER } else { pause };
            let (mut reaper, _) = ARRIVAL.wait_timeout(reaper, wait).unwrap_or_else(PoisonError::into_inner);
            if reaper.wards.is_empty() {
                reaper.running = false;
                return;
            }
            pause = if reaper.wards.len() > had { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        }
    }
}
