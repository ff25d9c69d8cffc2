//! What all parts of one running instance share. No global: several instances may live in one process.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::OwnedMutexGuard;
use tokio_util::task::TaskTracker;

use crate::adapter::Adapter;
use crate::admission::Admission;
use crate::child::{CgroupBase, ShimProgram, UNKILLABLE};
use crate::config::Config;
use crate::installation::program::Program;
use crate::installation::versions::Installed;
use crate::model::ids::{SessionHash, TurnId, UserId};
use crate::session::ImportAbility;
use crate::session::registry::Registry;
use crate::session::storage::Storage;
use crate::supervisor::Helpers;
use crate::support::keyed_locks::Locks;
use crate::telemetry::events::EventLog;
use crate::telemetry::metrics::Metrics;
use crate::workspace::user_env::UserEnv;

/// See the module.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) config: Arc<Config>,
    pub(crate) adapter: &'static dyn Adapter,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) registry: Registry,
    pub(crate) admission: Arc<Admission>,
    pub(crate) shim: ShimProgram,
    pub(crate) program: Program,
    /// Which executable the program is, and what is known of it. A trial start shares it with the server.
    pub(crate) installed: Arc<Installed>,
    pub(crate) cgroups: Option<CgroupBase>,
    pub(crate) user_env: UserEnv,
    /// `NAME=value` in the environment of everything that this data directory's instances start.
    pub(crate) marker: Marker,
    /// It is there for one trial start.
    is_trial: bool,
    /// Every task of this instance. Shutdown waits for it to be empty.
    pub(crate) tasks: TaskTracker,
    /// One token per turn that has no outcome yet.
    pub(crate) open_turns: TaskTracker,
    pub(crate) slots: Slots,
    pub(crate) helpers: Helpers,
    pub(crate) storage: Storage,
    /// Held while the record of a session that is not in memory is read, begun or moved aside.
    pub(crate) records: Locks<SessionHash>,
    /// Held while a user's sessions are counted and one more begins.
    pub(crate) beginnings: Locks<UserId>,
    /// Held while credentials are compared with those on disk and written. Not across a wait.
    pub(crate) credentials: Mutex<()>,
    /// The CLI that does not resume an imported conversation.
    pub(crate) import_ability: ImportAbility,
    /// The groups that were found at the start do not work.
    groups_lost: AtomicBool,
    turns: AtomicU64,
    draining: AtomicBool,
}

/// An environment variable that everything inherits and that tells whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) name: &'static str,
    pub(crate) value: String,
}

impl Instance {
    #[expect(clippy::too_many_arguments, reason = "the one place where the parts are put together")]
    pub(crate) fn new(
        config: Arc<Config>,
        adapter: &'static dyn Adapter,
        metrics: Arc<Metrics>,
        admission: Arc<Admission>,
        shim: ShimProgram,
        program: Program,
        installed: Arc<Installed>,
        cgroups: Option<CgroupBase>,
        user_env: UserEnv,
        marker: Marker,
        is_trial: bool,
    ) -> Self {
        Self {
            config,
            adapter,
            metrics,
            events: Arc::default(),
            registry: Registry::default(),
            admission,
            shim,
            program,
            installed,
            cgroups,
            user_env,
            marker,
            is_trial,
            tasks: TaskTracker::new(),
            open_turns: TaskTracker::new(),
            slots: Slots::default(),
            helpers: Helpers::default(),
            storage: Storage::default(),
            records: Locks::default(),
            beginnings: Locks::default(),
            credentials: Mutex::default(),
            import_ability: ImportAbility::default(),
            groups_lost: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            draining: AtomicBool::new(false),
        }
    }

    pub(crate) fn next_turn(&self) -> TurnId {
        TurnId(self.turns.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The strongest means by which trees are ended here, now: groups may be taken away while we run.
    pub(crate) fn rung(&self) -> &'static str {
        if self.cgroups.as_ref().is_some_and(|base| !base.is_there()) {
            self.note_groups(false);
        }
        let has_groups = self.cgroups.is_some() && !self.groups_lost.load(Ordering::Relaxed);
        if has_groups { "cgroup" } else { "walk" }
    }

    /// Notes whether children can be put into groups, as the last start or a look has shown. Each change is logged once.
    pub(crate) fn note_groups(&self, work: bool) {
        if self.cgroups.is_none() || self.groups_lost.swap(!work, Ordering::Relaxed) != work {
            return;
        }
        if work {
            tracing::info!("children are in cgroups again: their trees end by cgroup.kill");
        } else {
            tracing::warn!(
                "children cannot be put into cgroups any more: their trees are ended by walking the process table, which \
                 a hostile one can escape; see that the group of this service is writable and still delegated to it"
            );
        }
    }

    /// Whether it is there for one trial start, which has no user's settings and decides whether a version starts.
    pub(crate) fn is_trial(&self) -> bool {
        self.is_trial
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// No new turns from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// No orderly stop of a child takes longer.
    pub(crate) fn longest_stop(&self) -> Duration {
        let limits = &self.config.session;
        // The steps, then a tree that does not die (waited for twice, see the driver), then the answer.
        limits.stop_interrupt + limits.stop_eof + limits.stop_term + 2 * UNKILLABLE + Duration::from_secs(5)
    }

    /// Spawns a task that shutdown knows of.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }
}

/// At most one live child per session, also across a failed actor and its successor: whoever wants a child holds the
/// session's slot from before the start until nothing of the child is left.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: DashMap<SessionHash, Arc<tokio::sync::Mutex<()>>>,
}

/// See [`Slots`].
pub(crate) struct Slot {
    guard: Option<OwnedMutexGuard<()>>,
    instance: Arc<Instance>,
    session: SessionHash,
}

impl Slot {
    /// Waits until the session has no child.
    pub(crate) async fn of(instance: &Arc<Instance>, session: &SessionHash) -> Self {
        let mutex = instance.slots.slots.entry(session.clone()).or_default().clone();
        let guard = Some(mutex.lock_owned().await);
        Self { guard, instance: instance.clone(), session: session.clone() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.guard = None;
        // Nobody waits: only the map holds it. Checked under the map's lock, which whoever wants it has to pass.
        self.instance.slots.slots.remove_if(&self.session, |_, mutex| Arc::strong_count(mutex) == 1);
    }
}

/// A value that is taken once, from whichever side comes first.
#[derive(Debug)]
pub(crate) struct Once<T>(Mutex<Option<T>>);

impl<T> Once<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(Some(value)))
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
