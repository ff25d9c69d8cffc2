//! Whether the data directory can be written, tried again and again: a full disk is reported, and so is its end.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::session::sessions::Sessions;
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::{DiskSpace, Metrics, flag};
use crate::workspace::try_writing;

/// Pauses between two tries while all is well, and while it is not. A try costs two files of 64 KiB, without a wait for
/// the disk.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));

/// What the last try found.
#[derive(Debug, Default)]
pub(crate) struct Storage {
    problem: Mutex<Option<String>>,
}

impl Storage {
    /// Why nothing can be written; `None` if all is well. Names no path.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.lock_unpoisoned().clone()
    }

    /// Blocks.
    fn check(&self, data_dir: &Path, metrics: &Metrics) {
        measure(data_dir, metrics);
        self.found(try_writing(data_dir), metrics);
    }

    fn found(&self, tried: io::Result<()>, metrics: &Metrics) {
        metrics.data_dir_writable.set(flag(tried.is_ok()));
        let now = tried.err().map(|error| error.to_string());
        let before = {
            let mut problem = self.problem.lock_unpoisoned();
            std::mem::replace(&mut *problem, now.clone())
        };
        match (before, now) {
            (None, Some(error)) => tracing::error!(error, "nothing can be written to the data directory"),
            (Some(_), None) => tracing::warn!("the data directory can be written again"),
            _ => {}
        }
    }
}

/// What is used and free of the file system.
fn measure(data_dir: &Path, metrics: &Metrics) {
    // The trial write says what is wrong.
    let Ok(found) = rustix::fs::statvfs(data_dir) else { return };
    let bytes = |blocks: u64| blocks as f64 * found.f_frsize as f64;
    metrics.data_dir_bytes.set(DiskSpace::Used, bytes(found.f_blocks.saturating_sub(found.f_bfree)));
    metrics.data_dir_bytes.set(DiskSpace::Free, bytes(found.f_bavail));
    metrics.data_dir_inodes.set(DiskSpace::Used, found.f_files.saturating_sub(found.f_ffree) as f64);
    metrics.data_dir_inodes.set(DiskSpace::Free, found.f_favail as f64);
}

/// Checks at intervals, until the task is dropped.
pub(crate) async fn watch(sessions: Arc<Sessions>) {
    loop {
        let pause = if sessions.storage.problem().is_some() { PAUSES.1 } else { PAUSES.0 };
        tokio::time::sleep(pause).await;
        if !check(&sessions).await {
            tracing::error!("the data directory could not be tried");
        }
    }
}

/// Checks once; false if the check itself failed.
pub(crate) async fn check(sessions: &Arc<Sessions>) -> bool {
    let sessions = sessions.clone();
    let check =
        move || sessions.storage.check(&sessions.env.config.data_dir, &sessions.env.telemetry.metrics);
    tokio::task::spawn_blocking(check).await.is_ok()
}
