//! The visible status of a session: what any reader may know without asking its actor.
//!
//! [`StatusCell`] is its one owner. Each change is a named transition. What changes within a turn, and the end of a
//! turn, is set by the child's connection, before a reader receives it; all else by the session's actor.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::cpu::CpuWindow;
use super::past::{ChildEnd, Past, PastTurn};
use super::store::Record;
use crate::model::{PendingPermission, PermissionRequest, SessionState, Usage, ids::TurnId};
use crate::support::lock::MutexExt;
use crate::telemetry::events::Exit;

/// A session as an operator sees it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SessionStatus {
    /// What the session does.
    pub state: SessionState,
    /// The CLI's process id, while it has one.
    pub pid: Option<u32>,
    /// Number of children so far.
    pub generation: u64,
    /// The model, where one was asked for.
    pub model: Option<String>,
    /// When the conversation began.
    pub created: SystemTime,
    /// When the session was last used.
    pub last_used: SystemTime,
    /// Time since the last activity; zero while a turn runs.
    pub idle: Duration,
    /// The age of the child.
    pub uptime: Duration,
    /// Turns of the conversation so far.
    pub turns: u64,
    /// Children started again because one had died unasked.
    pub restarts: u64,
    /// Memory of the child's tree when it was last measured.
    pub memory_bytes: u64,
    /// How many processors the child's tree kept busy over the last twelve samples (`metrics.sample_interval`) of the turn that
    /// runs, or of the time since the last one; `None` before there are twelve.
    pub cpu_cores: Option<f64>,
    /// Turns that wait.
    pub queue_depth: usize,
    /// Cost of the conversation so far, in US dollars.
    pub total_cost_usd: f64,
    /// Tokens that went to the model so far, those from its cache among them.
    pub input_tokens: u64,
    /// Tokens that came from the model so far.
    pub output_tokens: u64,
    /// The first words of the conversation.
    pub title: Option<String>,
    /// Permissions and questions that wait for an answer.
    pub pending_permissions: usize,
    /// Whether the child is frozen because it has been idle for `session.hibernate_after`.
    pub frozen: bool,
    /// How the last child ended, if one has since the session came into memory.
    pub last_exit: Option<Exit>,
}

impl SessionStatus {
    /// The status of a session that is only on disk.
    pub(crate) fn on_disk(record: &Record) -> Self {
        let idle = SystemTime::now().duration_since(record.last_used).unwrap_or_default();
        Self { idle, ..Visible::new(record).status(Instant::now()) }
    }
}

/// Everything that is visible at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Visible {
    /// As of the last change: the ages are filled in when it is read.
    pub(crate) status: SessionStatus,
    /// The root of the child's process tree.
    pub(crate) shim: Option<u32>,
    /// When the start of the child was requested; `None` without a process.
    pub(crate) child_since: Option<Instant>,
    /// Monotonic twin of `last_used`: a change of the clock evicts no session.
    pub(crate) quiet_since: Instant,
    /// When it came into memory, until it is used.
    pub(crate) unused_since: Option<Instant>,
    /// When it was asked to leave memory for another session, since it was used last.
    pub(crate) makes_way: Option<Instant>,
    /// When an open circuit may be tried again. Until then the session stays in memory.
    circuit_until: Option<Instant>,
    /// Tools that wait for permission.
    pub(crate) permissions: Vec<PendingPermission>,
    /// The CLI works of its own accord.
    pub(crate) active: bool,
    /// The CLI waits for results of the caller's tools, for `session.tool_timeout` at most.
    pub(crate) awaits_caller: bool,
    /// The last turns and children.
    pub(crate) past: Past,
    cpu: CpuWindow,
    /// The actor may not know of its end yet.
    last_ended: Option<TurnId>,
}

/// The actor's state after each message.
#[derive(Debug)]
pub(super) struct ActorView<'a> {
    pub(super) state: SessionState,
    pub(super) running: Option<TurnId>,
    pub(super) queue_depth: usize,
    pub(super) circuit_until: Option<Instant>,
    pub(super) record: &'a Record,
}

impl Visible {
    fn new(record: &Record) -> Self {
        let status = SessionStatus {
            state: SessionState::Dormant,
            pid: None,
            generation: record.generation,
            model: record.settings.model.clone(),
            created: record.created,
            last_used: record.last_used,
            idle: Duration::ZERO,
            uptime: Duration::ZERO,
            turns: record.turns,
            restarts: record.restarts,
            memory_bytes: 0,
            cpu_cores: None,
            queue_depth: 0,
            total_cost_usd: record.cost_usd,
            input_tokens: record.input_tokens,
            output_tokens: record.output_tokens,
            title: record.title.clone(),
            pending_permissions: 0,
            frozen: false,
            last_exit: None,
        };
        Self {
            status,
            shim: None,
            child_since: None,
            quiet_since: Instant::now(),
            unused_since: Some(Instant::now()),
            makes_way: None,
            circuit_until: None,
            permissions: Vec::new(),
            active: false,
            awaits_caller: false,
            past: Past::default(),
            cpu: CpuWindow::default(),
            last_ended: None,
        }
    }

    /// Whether the child may go: it runs no turn, none waits, and it does not work of its own accord.
    pub(crate) fn is_idle(&self) -> bool {
        self.status.state == SessionState::Idle && !self.active
    }

    /// Whether the session may leave memory: it has no child, and none is on its way.
    pub(crate) fn is_at_rest(&self, now: Instant) -> bool {
        match self.status.state {
            SessionState::Dormant => true,
            SessionState::Failed => self.circuit_until.is_some_and(|until| until <= now),
            _ => false,
        }
    }

    /// Whether a turn finds a child that is ready.
    pub(crate) fn is_warm(&self) -> bool {
        matches!(self.status.state, SessionState::Idle | SessionState::Busy)
    }

    fn status(&self, now: Instant) -> SessionStatus {
        let age = |since: Instant| now.saturating_duration_since(since);
        SessionStatus {
            idle: if self.status.state == SessionState::Busy {
                Duration::ZERO
            } else {
                age(self.quiet_since)
            },
            uptime: self.child_since.map_or(Duration::ZERO, age),
            pending_permissions: self.permissions.len(),
            ..self.status.clone()
        }
    }
}

/// Owner of a session's visible status.
#[derive(Debug)]
pub(crate) struct StatusCell(Mutex<Visible>);

impl StatusCell {
    /// The status of a session that has just come into memory.
    pub(super) fn new(record: &Record) -> Self {
        Self(Mutex::new(Visible::new(record)))
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&Visible) -> T) -> T {
        look(&self.0.lock_unpoisoned())
    }

    pub(crate) fn status(&self) -> SessionStatus {
        self.read(|visible| visible.status(Instant::now()))
    }

    /// The session is used.
    pub(super) fn touch(&self) {
        self.change(|visible| {
            visible.quiet_since = Instant::now();
            (visible.unused_since, visible.makes_way) = (None, None);
        });
    }

    /// The session is asked to leave memory for another one.
    pub(crate) fn makes_way(&self) {
        self.change(|visible| visible.makes_way = Some(Instant::now()));
    }

    /// The actor has handled a message. Turns and cost are counted where turns end.
    pub(super) fn actor_moved(&self, view: &ActorView<'_>) {
        self.change(|visible| {
            // The end of a turn is visible before the actor receives it.
            let is_over =
                view.running.is_some() && view.running == visible.last_ended && view.queue_depth == 0;
            visible.status.state = if is_over { SessionState::Idle } else { view.state };
            visible.status.queue_depth = view.queue_depth;
            visible.circuit_until = view.circuit_until;
            visible.status.generation = view.record.generation;
            visible.status.restarts = view.record.restarts;
            visible.status.last_used = view.record.last_used;
            if visible.status.model != view.record.settings.model {
                visible.status.model.clone_from(&view.record.settings.model);
            }
            if visible.status.title != view.record.title {
                visible.status.title.clone_from(&view.record.title);
            }
        });
    }

    /// A process runs; its start was requested at `since`.
    pub(super) fn child_started(&self, pid: u32, shim: u32, since: Instant) {
        self.change(|visible| {
            (visible.status.pid, visible.shim, visible.child_since) = (Some(pid), Some(shim), Some(since));
        });
    }

    /// Nothing of the child is left.
    pub(super) fn child_ended(&self) {
        self.change(|visible| {
            (visible.status.pid, visible.shim, visible.child_since) = (None, None, None);
            visible.status.memory_bytes = 0;
            (visible.status.cpu_cores, visible.cpu) = (None, CpuWindow::default());
            visible.permissions.clear();
            (visible.active, visible.awaits_caller) = (false, false);
            visible.status.frozen = false;
        });
    }

    /// A turn has ended. Returns the number of turns.
    pub(super) fn turn_ended(&self, turn: TurnId, cost_usd: f64, usage: &Usage) -> u64 {
        self.change(|visible| {
            visible.last_ended = Some(turn);
            visible.status.turns = visible.status.turns.saturating_add(1);
            visible.status.total_cost_usd += cost_usd;
            let status = &mut visible.status;
            status.input_tokens = status.input_tokens.saturating_add(usage.all_input());
            status.output_tokens = status.output_tokens.saturating_add(usage.output_tokens);
            visible.quiet_since = Instant::now();
            // A client that is attached stays.
            let is_of_session = turn != TurnId::default();
            if is_of_session && visible.status.state == SessionState::Busy && visible.status.queue_depth == 0
            {
                visible.status.state = SessionState::Idle;
            }
            visible.status.turns
        })
    }

    /// Cost of what was no turn of the session: a turn of the CLI's own, or one without an end.
    pub(super) fn spent(&self, cost_usd: f64) {
        self.change(|visible| visible.status.total_cost_usd += cost_usd);
    }

    /// The CLI works of its own accord, or has stopped doing so.
    pub(super) fn activity_changed(&self, active: bool) {
        self.change(|visible| visible.active = active);
    }

    /// The CLI waits for results of the caller's tools, or no longer.
    pub(super) fn wait_changed(&self, awaits_caller: bool) {
        self.change(|visible| visible.awaits_caller = awaits_caller);
    }

    /// The child was frozen, or thawed.
    pub(super) fn frozen_changed(&self, frozen: bool) {
        self.change(|visible| visible.status.frozen = frozen);
    }

    /// Returns the requests that were not there before.
    pub(super) fn permissions_changed<'a>(
        &self,
        pending: &'a [PendingPermission],
    ) -> Vec<&'a PermissionRequest> {
        self.change(|visible| {
            let id = |it: &PendingPermission| it.request.request_id.clone();
            let former: HashSet<String> = visible.permissions.iter().map(id).collect();
            pending.clone_into(&mut visible.permissions);
            let new = pending.iter().map(|it| &it.request).filter(|it| !former.contains(&it.request_id));
            new.collect()
        })
    }

    /// A child has ended; `stderr` is the end of its standard error.
    pub(super) fn exited(&self, generation: u64, exit: Exit, stderr: String) {
        self.change(|visible| {
            let lived = visible.child_since.map(|since| since.elapsed());
            visible.status.last_exit = Some(exit.clone());
            visible.past.child_ended(ChildEnd { generation, lived, exit, stderr });
        });
    }

    /// A turn has ended for its reader.
    pub(crate) fn turn_passed(&self, turn: PastTurn) {
        self.change(|visible| visible.past.turn_ended(turn));
    }

    /// The tree of `shim` was measured. A tree that is gone meanwhile uses nothing.
    pub(crate) fn measured(&self, shim: u32, memory_bytes: u64) {
        self.change(|visible| {
            if visible.shim == Some(shim) {
                visible.status.memory_bytes = memory_bytes;
            }
        });
    }

    /// The processor time of the tree of `shim` was read, all that it has used.
    pub(crate) fn cpu_sampled(&self, shim: u32, at: Instant, used: Duration) {
        self.change(|visible| {
            if visible.shim == Some(shim) {
                let status = &mut visible.status;
                let doing = (status.state == SessionState::Busy, status.turns);
                status.cpu_cores = visible.cpu.sampled(doing, at, used);
            }
        });
    }

    fn change<T>(&self, transition: impl FnOnce(&mut Visible) -> T) -> T {
        transition(&mut self.0.lock_unpoisoned())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::ids::{SessionKey, UserId};
    use crate::workspace::Workspace;

    fn record() -> Record {
        let key = SessionKey::new(UserId::new("a").unwrap(), "default").unwrap();
        let workspace = Workspace::begin(Path::new("/nowhere"), &key.hash());
        let mut record = Record::new(&key, &workspace);
        (record.turns, record.cost_usd) = (4, 1.0);
        record
    }

    fn busy(cell: &StatusCell, record: &Record, turn: u64, queue_depth: usize) {
        let running = Some(TurnId(turn));
        cell.actor_moved(&ActorView {
            state: SessionState::Busy,
            running,
            queue_depth,
            circuit_until: None,
            record,
        });
    }

    #[test]
    fn turn_end_is_visible_before_actor_hears() {
        let (record, cell) = (record(), StatusCell::new(&record()));
        busy(&cell, &record, 1, 0);
        assert_eq!(cell.turn_ended(TurnId(1), 0.5, &Usage::default()), 5);
        // The actor handles another message first, and still has the turn as running.
        busy(&cell, &record, 1, 0);
        let status = cell.status();
        assert_eq!((status.state, status.turns, status.total_cost_usd), (SessionState::Idle, 5, 1.5));
        busy(&cell, &record, 2, 0);
        assert_eq!(cell.status().state, SessionState::Busy, "the next turn");
    }

    #[test]
    fn turn_end_with_waiting_turns_stays_busy() {
        let (record, cell) = (record(), StatusCell::new(&record()));
        busy(&cell, &record, 1, 1);
        cell.turn_ended(TurnId(1), 0.0, &Usage::default());
        assert_eq!(cell.status().state, SessionState::Busy);
        busy(&cell, &record, 1, 1);
        assert_eq!(cell.status().state, SessionState::Busy);
    }

    #[test]
    fn measure_of_a_gone_tree_is_dropped() {
        let cell = StatusCell::new(&record());
        cell.child_started(2, 1, Instant::now());
        cell.measured(1, 77);
        assert_eq!((cell.status().memory_bytes, cell.status().pid), (77, Some(2)));
        cell.activity_changed(true);
        cell.child_ended();
        cell.measured(1, 88);
        let status = cell.status();
        assert_eq!((status.memory_bytes, status.pid, status.uptime), (0, None, Duration::ZERO));
        for second in 0..20 {
            let at = Instant::now() + Duration::from_secs(second);
            cell.cpu_sampled(1, at, Duration::from_secs(second));
        }
        assert_eq!(cell.status().cpu_cores, None, "of a tree that is gone");
        assert!(cell.read(|visible| !visible.active && visible.permissions.is_empty()));
    }

    #[test]
    fn session_on_disk_shows_its_record() {
        let mut record = record();
        record.last_used = SystemTime::now() - Duration::from_secs(60);
        let status = SessionStatus::on_disk(&record);
        assert_eq!((status.state, status.turns), (SessionState::Dormant, 4));
        assert!(status.idle >= Duration::from_secs(60));
    }
}
