//! The writes of one session's record, one after the other.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::store::Record;
use super::sync::Syncer;
use crate::support::atomic_file::Durability;
use crate::workspace::Workspace;

/// Writes one session's record, in order: an older state never replaces a newer one.
#[derive(Debug, Default)]
pub(crate) struct RecordWriter {
    written: Mutex<u64>,
}

impl RecordWriter {
    /// Writes nothing more: the session is about to be deleted. Waits for what is being written.
    pub(crate) async fn close(&self) {
        *self.written.lock().await = u64::MAX;
    }

    /// Waits until all that is to be written is, and then writes nothing more: another writer may follow.
    #[cfg(feature = "cluster")]
    pub(crate) async fn finish(self: &Arc<Self>) {
        // Every save that is under way holds the writer, and so does the entry of the session.
        while Arc::strong_count(self) > 1 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        self.close().await;
    }

    /// Writes the `number`th state, unless a later one was written before. A failure is logged and survived: the
    /// session goes on in memory.
    pub(crate) async fn save(
        self: Arc<Self>,
        number: u64,
        record: Record,
        workspace: Workspace,
        durability: Durability,
        syncer: Arc<Syncer>,
    ) {
        let mut written = self.written.lock().await;
        if *written > number {
            return;
        }
        *written = number;
        if let Err(error) = syncer.save(record, workspace, durability).await {
            tracing::warn!(%error, "a session's record was not written");
        }
    }
}
