//! The handle: what an embedding program holds.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::error::{StartError, TurnError};
use crate::ids::SessionKey;
use crate::session::{Session, SessionStatus};

/// A running system of supervisor, sessions and children. Cheap to clone; all clones are the same system.
#[derive(Clone, Debug)]
pub struct Pilotlight {
    inner: Arc<()>,
}

/// Whether turns can be taken, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// All is well.
    pub ready: bool,
    /// What is not, in words; empty when ready.
    pub reasons: Vec<String>,
}

impl Pilotlight {
    /// Starts the system: locks the data directory, ends what a former instance left, starts the actors. No child
    /// is started before the first turn.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(_config: Config) -> Result<Self, StartError> {
        unimplemented!()
    }

    /// As start, with a recorder.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_with(
        _config: Config,
        _recorder: &(dyn metrics::Recorder + Sync),
    ) -> Result<Self, StartError> {
        unimplemented!()
    }

    /// The configuration that this instance runs with.
    #[must_use]
    pub fn config(&self) -> &Config {
        unimplemented!()
    }

    /// The default conversation of `user`. Nothing is started or checked before the first turn.
    #[must_use]
    pub fn session(&self, _user: impl AsRef<[u8]>) -> Session {
        unimplemented!()
    }

    /// A named conversation of `user`.
    #[must_use]
    pub fn conversation(&self, _user: impl AsRef<[u8]>, _conversation: &str) -> Session {
        unimplemented!()
    }

    /// The sessions that are in memory now (a session that is only on disk is not).
    #[must_use]
    pub fn sessions(&self) -> Vec<(SessionKey, SessionStatus)> {
        unimplemented!()
    }

    /// Whether a turn of a new user would be taken now.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        unimplemented!()
    }

    /// Refuses new turns from now on ([`TurnError::Draining`]); running ones go on.
    pub fn drain(&self) {
        unimplemented!()
    }

    /// Drains, waits for running turns up to `grace`, then stops every child in order (interrupt, end of input,
    /// SIGTERM, kill of the tree). When it returns nothing that this instance started is left. Further calls wait for
    /// the first.
    pub async fn shutdown(&self, _grace: Duration) {
        unimplemented!()
    }
}
