//! What all sessions of one system share, above the environment of a single child.

use std::sync::Arc;
#[cfg(feature = "failpoints")]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{
    actor_refs::ActorRefs, env::Env, expiry::Expired, quota, registry::Registry, shelf::Shelf,
    storage::Storage, sync::Syncer,
};
use crate::admission::Admission;
#[cfg(feature = "cluster")]
use crate::cluster::Grant;
use crate::error::TurnError;
use crate::journal::Waiting;
use crate::model::ids::{SessionHash, TurnId, UserId};
use crate::support::keyed_gates::{Gates, Inside};
use crate::support::keyed_locks::Locks;

/// The shared state of all sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(crate) env: Arc<Env>,
    pub(crate) registry: Registry,
    pub(crate) actor_refs: ActorRefs,
    /// Held from before the start of a session's child until nothing of it is left: at most one live child per session,
    /// also across a failed actor and its successor.
    pub(crate) slots: Locks<SessionHash>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) storage: Storage,
    /// Children that have no session yet.
    pub(crate) shelf: Shelf,
    /// Brings journals to the disk.
    pub(super) syncer: Arc<Syncer>,
    /// Bounds what journals keep in memory.
    pub(super) waiting: Arc<Waiting>,
    /// Held while the record of a session that is not in memory is read, begun or moved aside.
    pub(crate) records: Locks<SessionHash>,
    /// Held while a session is brought into memory or its directories are made, and while it is deleted. Acquired before
    /// its slot.
    pub(crate) arrivals: Locks<SessionHash>,
    pub(crate) expired: Expired,
    /// Held while a user's sessions are counted and one more begins: by who takes up the session, before a thread for it.
    pub(crate) beginnings: Locks<UserId>,
    /// Closed while a user is deleted. Who may create something of a user is inside.
    pub(crate) users: Gates<UserId>,
    /// Held while credentials of a session are compared with those on disk and written.
    pub(crate) credentials: Locks<SessionHash>,
    /// Counts of sessions' files at the ends of turns.
    pub(super) counts: Semaphore,
    /// One token per turn that has no outcome yet.
    pub(crate) open_turns: TaskTracker,
    turns: AtomicU64,
    /// Cancelled once no new turns are taken.
    draining: CancellationToken,
    /// Cancelled once attached clients end that are idle.
    pub(super) idle_clients_end: CancellationToken,
    /// The next start fails for want of file descriptors.
    #[cfg(feature = "failpoints")]
    pub(crate) fails_start: AtomicBool,
}

impl Sessions {
    pub(crate) fn new(env: Arc<Env>, admission: Arc<Admission>) -> Self {
        Self {
            registry: Registry::default(),
            actor_refs: ActorRefs::new(env.ended.clone()),
            slots: Locks::default(),
            admission,
            storage: Storage::default(),
            shelf: Shelf::default(),
            syncer: Arc::default(),
            waiting: Arc::default(),
            records: Locks::default(),
            arrivals: Locks::default(),
            expired: Expired::default(),
            beginnings: Locks::default(),
            users: Gates::default(),
            credentials: Locks::default(),
            counts: Semaphore::new(quota::COUNTS),
            open_turns: TaskTracker::new(),
            turns: AtomicU64::new(0),
            draining: CancellationToken::new(),
            idle_clients_end: CancellationToken::new(),
            #[cfg(feature = "failpoints")]
            fails_start: AtomicBool::new(false),
            env,
        }
    }

    /// Keeps the user from being deleted, and in a cluster from being given to another node, until the result is dropped.
    pub(crate) fn enter(&self, user: &UserId) -> Result<Inside<UserId>, TurnError> {
        let inside = self.users.enter(user);
        #[cfg(feature = "cluster")]
        if self.env.cluster.as_ref().is_some_and(|cluster| !cluster.has(user)) {
            return Err(TurnError::Moved);
        }
        inside.ok_or(TurnError::UserDeleted)
    }

    /// Keeps the user on this node of the cluster until the result is dropped; `None` without a cluster.
    #[cfg(feature = "cluster")]
    pub(crate) async fn stay(&self, user: &UserId) -> Result<Option<Grant>, TurnError> {
        let Some(cluster) = &self.env.cluster else { return Ok(None) };
        cluster.stay(user).await.map(Some).ok_or(TurnError::Moved)
    }

    pub(crate) fn next_turn(&self) -> TurnId {
        TurnId(self.turns.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Refuses new turns from now on.
    pub(crate) fn drain(&self) {
        self.draining.cancel();
        self.end_idle_clients();
    }

    /// Ends attached clients, each once it is idle. Until then they keep their users on this node of a cluster.
    pub(crate) fn end_idle_clients(&self) {
        self.idle_clients_end.cancel();
    }
}
