//! Whether the data directory can be written, tried again and again: a full disk is said aloud, and so is its end.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::session::instance::Instance;
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::Metrics;
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

    /// Tries now. Blocks.
    pub(crate) fn look(&self, data_dir: &Path, metrics: &Metrics) {
        self.found(try_writing(data_dir), metrics);
    }

    fn found(&self, tried: io::Result<()>, metrics: &Metrics) {
        metrics.set_data_dir_writable(tried.is_ok());
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

/// Tries until the instance ends.
pub(crate) async fn watch(instance: Arc<Instance>) {
    let ended = instance.helpers.ended();
    loop {
        let pause = if instance.storage.problem().is_some() { PAUSES.1 } else { PAUSES.0 };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = ended.cancelled() => return,
        }
        let trying = instance.clone();
        let tried = move || trying.storage.look(&trying.config.data_dir, &trying.metrics);
        if tokio::task::spawn_blocking(tried).await.is_err() {
            tracing::error!("the data directory could not be tried");
        }
    }
}
