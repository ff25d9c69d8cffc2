//! Readiness before the first turn: whether the CLI has started once.
//!
//! Starts and stops the CLI in a directory of its own, with growing pauses, until it succeeds. A repaired CLI thus
//! makes the server ready without a restart. A turn ended by the CLI proves the same; a begun one does not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::server::api::error::redact;
use crate::server::app::App;
use crate::support::lock::MutexExt;
use crate::system::probe::{self, ProbeError};

/// First and longest pause between attempts. A start costs half a CPU second; a repaired CLI is noticed within the
/// longest pause.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Latch that opens once a CLI has started.
#[derive(Debug)]
pub(crate) struct StartedOnce {
    /// Last failure; `None` once open.
    missing: Mutex<Option<String>>,
}

impl Default for StartedOnce {
    fn default() -> Self {
        Self { missing: Mutex::new(Some("the CLI has not been started yet".to_owned())) }
    }
}

impl StartedOnce {
    pub(crate) fn missing(&self) -> Option<String> {
        self.missing.lock_unpoisoned().clone()
    }

    pub(crate) fn open(&self) {
        *self.missing.lock_unpoisoned() = None;
    }

    fn failed(&self, why: String) {
        if let Some(missing) = &mut *self.missing.lock_unpoisoned() {
            *missing = why;
        }
    }
}

/// Starts the CLI until the latch is open.
pub(crate) async fn watch(app: Arc<App>) {
    let (mut pause, longest) = PAUSES;
    while app.started_once.missing().is_some() {
        match probe::trial(app.pilot.config(), app.pilot.parent()).await {
            Ok(probed) => {
                app.pilot.publish_version();
                tracing::info!(ready_after = ?probed.ready_after, "the CLI has started; ready for turns");
                app.started_once.open();
            }
            Err(error) => {
                // Standard error may hold secrets: the log gets the code, callers of /readyz the redacted text. Paths
                // go to the log only.
                let why = match &error {
                    ProbeError::Start(problem) => {
                        tracing::warn!(%problem, again_in = ?pause, "cannot prepare a trial start of the CLI");
                        "a trial start of the CLI cannot be prepared; the log says why".to_owned()
                    }
                    ProbeError::Cli(_) => {
                        let program = &app.pilot.config().cli.program;
                        tracing::warn!(code = error.code(), program, again_in = ?pause, "the CLI does not start");
                        redact::without(&error.to_string())
                    }
                };
                app.started_once.failed(why);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        }
    }
}
