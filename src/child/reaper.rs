//! The end of every shim: one thread of the process, started when needed, reaps them and makes good for those
//! that could not do their work.
//!
//! A thread and not a task, because a shim has to be reaped also when its handle is dropped together with the
//! runtime; the runtime's own orphan handling needs a runtime that lives (measured: most of the dropped children
//! were still zombies afterwards). It waits for the given children only, never for "any child", and ends when it
//! has had nothing to do for a while. It is the one thing in the crate that belongs to the process instead of
//! an instance, as children do.

use std::{
    path::PathBuf,
    process::Child,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;

use super::{cgroup, host::now, sweep::sweep_marked};
use pilotlight_shim::{descendants, report::KillMethod};

use crate::support::lock::MutexExt;

/// First pause between two looks; most shims are gone by then.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
/// Longest pause: for those that take their time.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// How long the thread stays without work, so that a series of ends starts it once.
const LINGER: Duration = Duration::from_secs(2);
/// After a shim was woken in vain it is killed: it may be stopped by its CLI.
const AFTER_NUDGE: Duration = Duration::from_secs(2);

/// A shim and what is needed to end its tree without it.
#[derive(Debug)]
pub(super) struct Ward {
    child: Child,
    /// With the pid it names the shim for ever, also when the host reaps all children by itself.
    start_time: Option<u64>,
    cgroup: Option<PathBuf>,
    /// `KEY=VALUE`, in the environment of this tree alone.
    marker: String,
    stage: Stage,
    reply: Option<oneshot::Sender<Aftermath>>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// It is at work; nothing is done to it before this moment.
    Trusted(Option<Instant>),
    /// It was woken; if it is still there at this moment it is killed.
    Nudged(Instant),
    Killed,
}

/// What was found when a shim was reaped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Aftermath {
    /// What was done in place of a shim that had not done it: the means, and how many it hit.
    pub(super) swept: Option<(KillMethod, usize)>,
}

impl Ward {
    pub(super) fn new(child: Child, cgroup: Option<PathBuf>, marker: String) -> Self {
        let start_time = descendants::start_time(child.id().cast_signed());
        Self { child, start_time, cgroup, marker, stage: Stage::Trusted(None), reply: None }
    }

    pub(super) fn shim_pid(&self) -> u32 {
        self.child.id()
    }

    /// Hands it to the thread. A shim not gone within `patience` is woken, then killed; `None` waits for ever.
    pub(super) fn hand_over(mut self, patience: Option<Duration>) -> oneshot::Receiver<Aftermath> {
        let (reply, receiver) = oneshot::channel();
        self.stage = Stage::Trusted(patience.map(|patience| now() + patience));
        self.reply = Some(reply);
        Reaper::take(self);
        receiver
    }

    /// One look; true when it is over.
    fn look(&mut self) -> bool {
        let status = match self.child.try_wait() {
            Ok(None) => {
                self.press();
                return false;
            }
            Ok(Some(status)) => Some(status),
            // The host ignores SIGCHLD or waits for any child: gone, nobody knows how.
            Err(_) => None,
        };
        // A shim that ends by itself says so by its code: 0 = swept, 1 = nothing was started.
        let orderly = matches!(status.and_then(|status| status.code()), Some(0 | 1));
        let swept = if orderly { None } else { Some(self.sweep_in_its_place()) };
        if let Some(reply) = self.reply.take() {
            // Nobody waits when the handle was dropped.
            let _dropped = reply.send(Aftermath { swept });
        }
        true
    }

    fn press(&mut self) {
        self.stage = match self.stage {
            Stage::Trusted(Some(until)) if now() >= until => {
                self.signal(Signal::CONT);
                Stage::Nudged(now() + AFTER_NUDGE)
            }
            Stage::Nudged(until) if now() >= until => {
                self.signal(Signal::KILL);
                Stage::Killed
            }
            stage => stage,
        };
    }

    /// Only if the pid still means our shim, which is uncertain where the host reaps children by itself.
    fn signal(&self, signal: Signal) {
        let pid = self.child.id().cast_signed();
        if let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            && self.start_time.is_some()
            && descendants::start_time(pid) == self.start_time
        {
            let _ended = pidfd_send_signal(pidfd, signal);
        }
    }

    /// The CLI died with its shim; its descendants did not.
    fn sweep_in_its_place(&self) -> (KillMethod, usize) {
        let in_group = self.cgroup.as_deref().filter(|dir| dir.is_dir()).map(cgroup::kill_and_remove);
        let marked = sweep_marked(&self.marker, &[]);
        match in_group {
            Some(in_group) => (KillMethod::Cgroup, in_group + marked),
            None => (KillMethod::Marker, marked),
        }
    }
}

/// Starts the thread if there is work and the system refused one before.
pub(super) fn ensure_running() {
    Reaper::lock().ensure_running();
}

/// The wards, and whether the thread runs.
struct Reaper {
    wards: Vec<Ward>,
    running: bool,
}

static REAPER: Mutex<Reaper> = Mutex::new(Reaper { wards: Vec::new(), running: false });
static ARRIVAL: Condvar = Condvar::new();

impl Reaper {
    fn lock() -> MutexGuard<'static, Self> {
        // No invariant spans a panic: a list and a flag.
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
        // Where no thread can be had the wards stay in the list until the next try.
        self.running = thread.spawn(Self::work).is_ok();
    }

    fn work() {
        let mut pause = SHORTEST_PAUSE;
        loop {
            // Not under the lock: sweeping takes milliseconds, and a handle may be dropped on the runtime.
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
