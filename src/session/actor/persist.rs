//! The record's way to disk, and the session's out of memory.

use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::SessionActorState;
use crate::session::message::SessionMessage;
use crate::support::atomic_file::Durability;

/// Interval of writing counters. A power cut may take them.
const COUNTERS_WITHIN: Duration = Duration::from_secs(10);

/// Time in which the changes of a start are gathered: generation, model and first turn are one write, and none before
/// the child is ready. The journal has each turn before that.
const START_WITHIN: Duration = Duration::from_secs(1);

/// A write that is to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Due {
    at: Instant,
    durability: Durability,
}

impl SessionActorState {
    /// Counters and the checkpoint of the last turns: they outlive this process, but not a power cut.
    pub(super) fn save_counters(&mut self) {
        self.save_within(COUNTERS_WITHIN, Durability::Kernel);
    }

    /// What changes with each start.
    pub(super) fn save_start(&mut self) {
        self.save_within(START_WITHIN, Durability::Disk);
    }

    /// Writes the record in the background.
    pub(super) fn save_now(&mut self) {
        let save = self.next_save(Durability::Disk);
        self.sessions.env.tasks.spawn(save);
    }

    /// Writes what waits to be written, if its time has come.
    pub(super) fn save_due(&mut self) {
        if let Some(due) = self.due.filter(|due| due.at <= Instant::now()) {
            let save = self.next_save(due.durability);
            self.sessions.env.tasks.spawn(save);
        }
    }

    /// Writes what waits to be written: nothing wakes the session any more.
    pub(super) fn save_last(&mut self) {
        if self.due.is_some() {
            self.save_now();
        }
    }

    fn save_within(&mut self, delay: Duration, durability: Durability) {
        let at = Instant::now() + delay;
        if let Some(due) = &mut self.due {
            due.durability = due.durability.max(durability);
            if due.at <= at {
                return;
            }
        }
        let durability = self.due.map_or(durability, |due| due.durability);
        self.due = Some(Due { at, durability });
        drop(self.entry.actor.send_after(delay, || SessionMessage::Save));
    }

    pub(super) fn next_save(&mut self, durability: Durability) -> impl Future<Output = ()> + Send + use<> {
        self.saves += 1;
        self.due = None;
        let (record, workspace) = (self.record.clone(), self.workspace.clone());
        let syncer = self.sessions.syncer.clone();
        self.entry.writer.clone().save(self.saves, record, workspace, durability, syncer)
    }

    /// First step out of memory: the record is written. The next actor of the session, or its deletion, must find the
    /// last record on disk and no write under way.
    pub(super) fn retire(&mut self) {
        if self.retiring || !self.machine.is_at_rest(Instant::now()) {
            return;
        }
        if !self.entry.has_written_journal() {
            // What waits for room on the disk is nowhere else.
            return;
        }
        self.retiring = true;
        let (save, myself) = (self.next_save(Durability::Disk), self.entry.actor.clone());
        let number = self.saves;
        self.sessions.env.tasks.spawn(async move {
            save.await;
            drop(myself.cast(SessionMessage::Written(number)));
        });
    }

    /// Second step out of memory, unless anything has happened since the first. Another request follows then.
    pub(super) fn leave(&mut self, written: u64) {
        self.retiring = false;
        // Every save that is under way holds the writer.
        let is_last = written == self.saves && Arc::strong_count(&self.entry.writer) == 1;
        let may_leave = is_last && self.machine.is_at_rest(Instant::now());
        if may_leave && self.sessions.registry.forget_unused(&self.entry) {
            self.entry.actor.stop(None);
        } else if self.entry.status.read(|visible| visible.makes_way.is_some()) {
            // Another save was under way. A newcomer counts on the place.
            self.retire();
        }
    }
}
