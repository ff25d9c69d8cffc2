//! Whether the data directory can be written, tried again and again: a full disk is reported, and so is its end.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::session::sessions::Sessions;
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::{Metrics, flag};
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
