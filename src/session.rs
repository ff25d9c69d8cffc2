//! One conversation of one user.

use std::time::{Duration, SystemTime};

use crate::cli::{Dirs, PermissionRequest};
use crate::error::TurnError;
use crate::turn::{Decision, Prompt, Turn, TurnOptions};

/// One conversation of one user. Cheap to clone; holds no child and keeps none alive.
#[derive(Clone, Debug)]
pub struct Session {}

/// What a session does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionState {
    /// No child; the next message starts one.
    Dormant,
    /// A child is being started.
    Starting,
    /// A warm child waits.
    Idle,
    /// A turn runs.
    Busy,
    /// The child is being stopped.
    Stopping,
    /// A restart waits after a crash.
    Backoff,
    /// Too many crashes; see [`TurnError::CircuitOpen`].
    Failed,
}

impl std::fmt::Display for SessionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dormant => "dormant",
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
        })
    }
}

/// A session as an operator sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionStatus {
    /// What it does.
    pub state: SessionState,
    /// The CLI's process id, while it has one.
    pub pid: Option<u32>,
    /// How many children it has had.
    pub generation: u64,
    /// The model, where one was asked for.
    pub model: Option<String>,
    /// When the conversation began.
    pub created: SystemTime,
    /// When it was last used.
    pub last_used: SystemTime,
    /// For how long nothing has run.
    pub idle: Duration,
    /// The age of the child.
    pub uptime: Duration,
    /// Turns of the conversation so far.
    pub turns: u64,
    /// Children started again because one had died unasked.
    pub restarts: u64,
    /// Memory of the child's tree when it was last measured.
    pub memory_bytes: u64,
    /// Turns that wait.
    pub queue_depth: usize,
    /// Cost of the conversation so far, in US dollars.
    pub total_cost_usd: f64,
}

/// A tool that waits for permission.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingPermission {
    /// What is asked.
    pub request: PermissionRequest,
    /// Since when.
    pub created: SystemTime,
}

/// An answer that came for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PermissionError {
    /// There is no such request.
    #[error("no such permission request in this session")]
    Unknown,
    /// It was answered, withdrawn or denied at its time limit before.
    #[error("the permission request is no longer open")]
    Late,
}

/// A user's OAuth credentials, in the form in which clients send them.
#[derive(Clone, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct OauthCredentials {
    /// The bearer token.
    pub access_token: String,
    /// What renews it.
    pub refresh_token: String,
    /// When it ends, in milliseconds since 1970.
    pub expires_at: i64,
    /// What it may be used for.
    #[serde(default = "default_scopes")]
    pub scopes: Vec<String>,
    /// The plan.
    #[serde(default = "default_subscription")]
    pub subscription_type: String,
}

fn default_scopes() -> Vec<String> {
    ["user:inference", "user:profile"].map(str::to_owned).to_vec()
}

fn default_subscription() -> String {
    "max".to_owned()
}

impl std::fmt::Debug for OauthCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OauthCredentials(redacted)")
    }
}

impl Session {
    /// Gives the session a turn. Starts, restarts or resumes the child as needed. Returns as soon as the turn is
    /// accepted; it may wait in the session's queue.
    ///
    /// # Errors
    /// [`TurnError`]s of which [`TurnError::reached_child`] is false: the child has seen nothing. Everything later
    /// comes out of the [`Turn`].
    pub async fn send(&self, prompt: impl Into<Prompt>) -> Result<Turn, TurnError> {
        self.send_with(prompt, TurnOptions::default()).await
    }

    /// As [`Session::send`], with options.
    ///
    /// # Errors
    /// As [`Session::send`].
    pub async fn send_with(
        &self,
        _prompt: impl Into<Prompt>,
        _options: TurnOptions,
    ) -> Result<Turn, TurnError> {
        unimplemented!()
    }

    /// Starts the child ahead of the first message, without spending tokens; returns when it is ready.
    ///
    /// # Errors
    /// [`TurnError`] if it cannot be started.
    pub async fn warm(&self) -> Result<SessionStatus, TurnError> {
        unimplemented!()
    }

    /// Interrupts the running turn; the child stays warm. Returns whether a turn ran.
    ///
    /// # Errors
    /// [`TurnError`] if the session cannot be reached.
    pub async fn interrupt(&self) -> Result<bool, TurnError> {
        unimplemented!()
    }

    /// Stops the child and keeps the conversation. A running turn is interrupted. Returns when nothing of the child
    /// is left.
    ///
    /// # Errors
    /// [`TurnError`] if the session cannot be reached.
    pub async fn evict(&self) -> Result<(), TurnError> {
        unimplemented!()
    }

    /// Evicts, then deletes conversation and workspace.
    ///
    /// # Errors
    /// [`TurnError`] if the session cannot be reached or its files cannot be deleted.
    pub async fn purge(&self) -> Result<(), TurnError> {
        unimplemented!()
    }

    /// What the session does now; `None` if it is not in memory.
    #[must_use]
    pub fn status(&self) -> Option<SessionStatus> {
        unimplemented!()
    }

    /// Tools that wait for permission (policy `ask`).
    #[must_use]
    pub fn permissions(&self) -> Vec<PendingPermission> {
        unimplemented!()
    }

    /// Answers a tool that waits for permission.
    ///
    /// # Errors
    /// [`PermissionError`] if nothing waits under this id (any more).
    pub async fn answer_permission(
        &self,
        _request_id: &str,
        _decision: Decision,
    ) -> Result<(), PermissionError> {
        unimplemented!()
    }

    /// Writes the user's credentials where the CLI reads them (mode 0600), unless those there are newer. A running
    /// child uses them from its next turn on.
    ///
    /// # Errors
    /// [`TurnError::Storage`].
    pub async fn write_credentials(&self, _credentials: &OauthCredentials) -> Result<(), TurnError> {
        unimplemented!()
    }

    /// The session's directories, created if they are not there yet.
    ///
    /// # Errors
    /// [`TurnError::Storage`].
    pub async fn workspace(&self) -> Result<Dirs, TurnError> {
        unimplemented!()
    }
}
