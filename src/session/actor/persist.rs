//! The record's way to disk, and the session's out of memory.

use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::SessionActorState;
use crate::session::message::SessionMessage;
use crate::support::atomic_file::Durability;

/// Interval of writing counters; what matters for resuming is written at once.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

impl SessionActorState {
    pub(super) fn save_soon(&mut self) {
        if !std::mem::replace(&mut self.save_scheduled, true) {
            drop(self.entry.actor.send_after(SAVE_INTERVAL, || SessionMessage::Save));
        }
    }

    pub(super) fn save_now(&mut self) {
        self.save(Durability::Disk);
    }

    /// Writes the record in the background.
    pub(super) fn save(&mut self, durability: Durability) {
        let save = self.next_save(durability);
        self.sessions.env.tasks.spawn(save);
    }

    fn next_save(&mut self, durability: Durability) -> impl Future<Output = ()> + Send + use<> {
        self.saves += 1;
        let (record, workspace) = (self.record.clone(), self.workspace.clone());
        self.entry.writer.clone().save(self.saves, record, workspace, durability)
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
        }
    }
}
