//! Which sessions are in memory. The hot path looks a session up here and passes no actor's mailbox. Never spawns.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use ractor::{ActorId, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::model::ids::{SessionHash, SessionKey, TurnId};
use crate::model::{PendingPermission, SessionState};
use crate::session::{RecordWriter, SessionMessage, SessionStatus};
use crate::support::lock::MutexExt;
use crate::telemetry::events::Exit;
use crate::workspace::Workspace;

/// All sessions of an instance that have an actor.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    sessions: DashMap<SessionKey, Arc<Entry>>,
    /// Whose actor it is: all that is known when an actor has ended.
    keys: DashMap<ActorId, SessionKey>,
}

/// What everyone may know of a session without asking its actor.
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
    /// The root of the child's tree (the shim); 0: none.
    pub(crate) tree: AtomicU32,
    /// What the tree used when it was last measured.
    pub(crate) memory: AtomicU64,
    pub(crate) writer: Arc<RecordWriter>,
    board: Mutex<Board>,
}

/// Written by the session's actor; what changes within a turn, and its end, as the child's dialogue tells it.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    pub(crate) state: SessionState,
    pub(crate) pid: Option<u32>,
    pub(crate) generation: u64,
    pub(crate) model: Option<String>,
    pub(crate) created: SystemTime,
    pub(crate) last_used: SystemTime,
    /// Monotonic twin of `last_used`: a change of the clock evicts nobody.
    pub(crate) quiet_since: Instant,
    pub(crate) child_since: Option<Instant>,
    pub(crate) turns: u64,
    pub(crate) restarts: u64,
    pub(crate) queue_depth: usize,
    pub(crate) cost_usd: f64,
    pub(crate) permissions: Vec<PendingPermission>,
    /// Turns of its own keep the child busy.
    pub(crate) active: bool,
    /// The turn that ended last; the actor may not have heard of it yet.
    pub(crate) ended: Option<TurnId>,
    /// How the last child ended.
    pub(crate) last_exit: Option<Exit>,
}

impl Board {
    /// A turn is over; what else it changes is shown by the session's actor.
    /// Gives the number of turns.
    pub(crate) fn turn_over(&mut self, turn: TurnId, cost_usd: f64) -> u64 {
        self.ended = Some(turn);
        self.turns = self.turns.saturating_add(1);
        self.cost_usd += cost_usd;
        self.quiet_since = Instant::now();
        if self.state == SessionState::Busy && self.queue_depth == 0 {
            self.state = SessionState::Idle;
        }
        self.turns
    }

    /// The CLI ran a turn of its own accord.
    pub(crate) fn spent(&mut self, cost_usd: f64) {
        self.cost_usd += cost_usd;
    }
}

impl Entry {
    pub(crate) fn new(
        key: SessionKey,
        workspace: Workspace,
        actor: ActorRef<SessionMessage>,
        turn_limit: usize,
        board: Board,
    ) -> Self {
        Self {
            hash: key.hash(),
            key,
            workspace,
            actor,
            turns: Arc::new(Semaphore::new(turn_limit)),
            turn_limit,
            tree: AtomicU32::new(0),
            memory: AtomicU64::new(0),
            writer: Arc::default(),
            board: Mutex::new(board),
        }
    }

    pub(crate) fn board(&self) -> Board {
        self.with_board(|board| board.clone())
    }

    pub(crate) fn with_board<T>(&self, look: impl FnOnce(&mut Board) -> T) -> T {
        // The board holds plain values: a panic elsewhere leaves it usable.
        look(&mut self.board.lock_unpoisoned())
    }

    pub(crate) fn status(&self) -> SessionStatus {
        let board = self.board();
        let now = Instant::now();
        let rests = board.state != SessionState::Busy;
        SessionStatus {
            state: board.state,
            pid: board.pid,
            generation: board.generation,
            model: board.model,
            created: board.created,
            last_used: board.last_used,
            idle: if rests { now.saturating_duration_since(board.quiet_since) } else { Duration::ZERO },
            uptime: board.child_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            turns: board.turns,
            restarts: board.restarts,
            memory_bytes: self.memory.load(Ordering::Relaxed),
            queue_depth: board.queue_depth,
            total_cost_usd: board.cost_usd,
            last_exit: board.last_exit,
        }
    }

    pub(crate) fn set_tree(&self, shim: Option<u32>) {
        self.tree.store(shim.unwrap_or(0), Ordering::Relaxed);
        if shim.is_none() {
            self.memory.store(0, Ordering::Relaxed);
        }
    }

    fn is_unused(&self) -> bool {
        self.turns.available_permits() == self.turn_limit
    }
}

/// Why a turn was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// The session is not in memory.
    Absent,
    /// Its queue is full.
    Full { limit: usize },
}

impl Registry {
    /// Takes a place in the session's queue. Done under the session's lock, so that it cannot be forgotten in between.
    pub(crate) fn admit(&self, key: &SessionKey) -> Result<(Arc<Entry>, OwnedSemaphorePermit), NotAdmitted> {
        let entry = self.sessions.get(key).ok_or(NotAdmitted::Absent)?;
        let permit = entry.turns.clone().try_acquire_owned();
        let permit = permit.map_err(|_| NotAdmitted::Full { limit: entry.turn_limit })?;
        Ok((entry.clone(), permit))
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
