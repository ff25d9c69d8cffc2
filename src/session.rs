//! One conversation of one user: what it is to the outside, and its parts.
//!
//! [`Session`] is the handle that others hold; it looks the session up for every call and is never stale. Behind it
//! stands one actor (`actor`), which follows the pure state machine (`state`) and leaves the child to a task
//! (`lifecycle`). What outlives all of them is on disk (`store`).

pub(crate) mod access;
mod actor;
pub(crate) mod actor_refs;
#[cfg_attr(not(feature = "server"), expect(dead_code, reason = "only the server attaches clients"))]
pub(crate) mod attach;
pub(crate) mod cgroups;
mod child_events;
mod conclude;
mod cpu;
pub(crate) mod env;
pub(crate) mod executable;
pub(crate) mod expiry;
pub(crate) mod fork;
pub(crate) mod import;
mod journaling;
pub(crate) mod known;
mod launch;
mod lifecycle;
pub(crate) mod message;
mod missing;
mod opening;
pub(crate) mod past;
pub(crate) mod quota;
mod record_writer;
mod recovery;
pub(crate) mod registry;
mod restart;
pub(crate) mod sessions;
pub(crate) mod shelf;
pub(crate) mod spare;
pub(crate) mod spoken;
mod state;
pub(crate) mod status;
pub(crate) mod storage;
pub(crate) mod store;
mod sync;
pub(crate) mod take_up;
mod user_id;

pub(crate) use actor::{SessionActor, SessionArgs};
pub(crate) use import::Ability as ImportAbility;
pub(crate) use known::on_disk;
pub(crate) use launch::shares_home;
pub(crate) use message::SessionMessage;
pub(crate) use record_writer::RecordWriter;
pub use status::SessionStatus;
pub(crate) use store::Record;
