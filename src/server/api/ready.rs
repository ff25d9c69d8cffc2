//! Readiness before the first user: has the CLI been found, and has it started once?
//!
//! The first turn of a fresh server must not be the one to find out that the CLI is missing. So one is started and
//! stopped in a directory of its own, again and again with pauses until it works; a mended CLI thus makes the server
//! ready without a restart. A turn that a CLI ended by itself proves the same; one that has only begun proves nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::server::api::error::redact;
use crate::server::app::App;
use crate::support::lock::MutexExt;
use crate::system::probe::{self, ProbeError};

/// First and longest pause between two trials. A start costs half a CPU second; a mended CLI is noticed within the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// A latch: open once a CLI has started.
#[derive(Debug)]
pub(crate) struct StartedOnce {
    /// Why not yet; `None` once it has.
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

/// Tries until the latch is open.
pub(crate) async fn watch(app: Arc<App>) {
    let (mut pause, longest) = PAUSES;
    while app.started_once().missing().is_some() {
        match probe::trial(app.pilot().config(), &app.pilot().installed()).await {
            Ok(probed) => {
                app.pilot().publish_version();
                tracing::info!(ready_after = ?probed.ready_after, "the CLI starts; ready for turns");
                app.started_once().open();
            }
            Err(error) => {
                // Its standard error may hold anything, so the log gets the code and the caller of /readyz the text;
                // a path of ours, the log alone.
                let why = match &error {
                    ProbeError::Start(problem) => {
                        tracing::warn!(%problem, again_in = ?pause, "a trial start of the CLI could not be prepared");
                        "a trial start of the CLI cannot be prepared; the log says why".to_owned()
                    }
                    ProbeError::Cli(_) => {
                        let program = &app.pilot().config().cli.program;
                        tracing::warn!(code = error.code(), program, again_in = ?pause, "the CLI does not start");
                        redact::without(&error.to_string())
                    }
                };
                app.started_once().failed(why);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        }
    }
}
