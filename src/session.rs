//! One conversation of one user: what it is to the outside, and its parts.
//!
//! [`Session`] is the handle that others hold; it looks the session up for every call and is never stale. Behind it
//! stands one actor (`actor`), which asks the pure state machine (`state`) what to do and leaves the child to a task
//! (`child_task`). What outlives all of them is on disk (`store`).

use std::time::{Duration, SystemTime};

use crate::cli::PermissionRequest;
use crate::happenings::Exit;

mod actor;
mod child_task;
mod handle;
mod import;
mod known;
mod message;
mod opening;
mod quota;
mod state;
mod store;
mod take_up;

pub(crate) use actor::{SessionActor, SessionArgs};
pub use handle::Session;
pub(crate) use import::Ability as ImportAbility;
pub(crate) use known::{OnDisk, on_disk};
pub(crate) use message::SessionMessage;
#[cfg(feature = "server")]
pub(crate) use store::owner_on_disk;
pub(crate) use store::{Record, RecordWriter};

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
    /// Too many crashes; see [`crate::TurnError::CircuitOpen`].
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
    /// How its last child ended, if one has since the session came into memory.
    pub last_exit: Option<Exit>,
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
