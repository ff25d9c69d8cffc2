//! One conversation of one user: what it is to the outside, and its parts.
//!
//! [`Session`] is the handle that others hold; it looks the session up for every call and is never stale. Behind it
//! stands one actor (`actor`), which asks the pure state machine (`state`) what to do and leaves the child to a task
//! (`lifecycle`). What outlives all of them is on disk (`store`).

use std::time::{Duration, SystemTime};

use crate::model::SessionState;
use crate::telemetry::events::Exit;

mod actor;
pub(crate) mod actor_refs;
mod child_events;
mod conclude;
pub(crate) mod env;
pub(crate) mod executable;
pub(crate) mod import;
pub(crate) mod known;
mod launch;
mod lifecycle;
pub(crate) mod message;
mod opening;
mod quota;
pub(crate) mod registry;
mod restart;
pub(crate) mod sessions;
pub(crate) mod slots;
mod state;
pub(crate) mod storage;
pub(crate) mod store;
pub(crate) mod take_up;

pub(crate) use actor::{SessionActor, SessionArgs};
pub(crate) use import::Ability as ImportAbility;
pub(crate) use known::{OnDisk, on_disk};
pub(crate) use message::SessionMessage;
#[cfg(feature = "server")]
pub(crate) use store::owner_on_disk;
pub(crate) use store::{Record, RecordWriter};

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
