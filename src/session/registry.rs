//! The sessions that are in memory. A turn finds its session here without passing an actor's mailbox.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use dashmap::DashMap;
use ractor::{ActorId, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Record, RecordWriter, SessionMessage, status::StatusCell};
use crate::error::TurnError;
use crate::journal::Journal;
use crate::model::ids::{SessionHash, SessionKey};
use crate::support::live::Live;
use crate::support::lock::MutexExt as _;
use crate::workspace::Workspace;

/// All sessions that have an actor.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    sessions: DashMap<SessionKey, Arc<Entry>>,
    /// The sessions by actor: an ended actor is known by its id alone.
    keys: DashMap<ActorId, SessionKey>,
}

/// A session and a place in its queue.
pub(crate) type Admitted = (Arc<Entry>, OwnedSemaphorePermit);

/// One session in memory.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: SessionKey,
    /// The key's, for the log of every turn.
    pub(crate) hash: SessionHash,
    pub(crate) workspace: Workspace,
    pub(crate) actor: ActorRef<SessionMessage>,
    /// One permit per turn that runs or may wait.
    turns: Arc<Semaphore>,
    turn_limit: usize,
    pub(crate) status: StatusCell,
    /// For those who watch its turns.
    pub(crate) live: Arc<Live>,
    pub(crate) writer: Arc<RecordWriter>,
    /// The journal of the last child.
    pub(super) journal: Mutex<Option<Arc<Journal>>>,
    /// A count of the session's files waits.
    pub(super) counting: AtomicBool,
}

impl Entry {
    pub(crate) fn new(
        key: SessionKey,
        workspace: Workspace,
        actor: ActorRef<SessionMessage>,
        turn_limit: usize,
        record: &Record,
    ) -> Self {
        Self {
            hash: key.hash(),
            key,
            workspace,
            actor,
            turns: Arc::new(Semaphore::new(turn_limit)),
            turn_limit,
            status: StatusCell::new(record),
            live: Arc::default(),
            writer: Arc::default(),
            journal: Mutex::default(),
            counting: AtomicBool::new(false),
        }
    }

    /// The journal of the last child, if it is open.
    pub(crate) fn open_journal(&self) -> Option<Arc<Journal>> {
        self.journal.lock_unpoisoned().clone()
    }

    /// Whether nothing of the journal waits in memory. Tries to write it.
    pub(super) fn has_written_journal(&self) -> bool {
        self.open_journal().is_none_or(|journal| journal.is_written())
    }

    /// Whether no turn runs or waits.
    pub(crate) fn is_unused(&self) -> bool {
        self.turns.available_permits() == self.turn_limit
    }
}

impl Registry {
    /// Takes a place in the session's queue; `None` if the session is not in memory. Done under the session's lock, so
    /// that it cannot be forgotten in between.
    pub(crate) fn admit(&self, key: &SessionKey) -> Result<Option<Admitted>, TurnError> {
        let Some(entry) = self.sessions.get(key) else { return Ok(None) };
        let permit = entry.turns.clone().try_acquire_owned();
        let permit = permit.map_err(|_| TurnError::QueueFull { limit: entry.turn_limit })?;
        Ok(Some((entry.clone(), permit)))
    }

    pub(crate) fn get(&self, key: &SessionKey) -> Option<Arc<Entry>> {
        self.sessions.get(key).map(|entry| entry.clone())
    }

    pub(crate) fn insert(&self, entry: Arc<Entry>) {
        self.keys.insert(entry.actor.get_id(), entry.key.clone());
        self.sessions.insert(entry.key.clone(), entry);
    }

    /// Forgets a session, unless a turn was let in meanwhile or another actor has taken its place.
    pub(crate) fn forget_unused(&self, entry: &Entry) -> bool {
        let same = |other: &Arc<Entry>| other.actor.get_id() == entry.actor.get_id();
        let forgotten =
            self.sessions.remove_if(&entry.key, |_, other| same(other) && other.is_unused()).is_some();
        if forgotten {
            self.keys.remove(&entry.actor.get_id());
        }
        forgotten
    }

    /// Forgets the session of an actor that is no more.
    pub(crate) fn forget_actor(&self, actor: ActorId) -> Option<Arc<Entry>> {
        let (_, key) = self.keys.remove(&actor)?;
        self.sessions.remove_if(&key, |_, entry| entry.actor.get_id() == actor).map(|(_, entry)| entry)
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// All entries at this moment, without holding any lock afterwards.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.sessions.iter().map(|entry| entry.clone()).collect()
    }
}
