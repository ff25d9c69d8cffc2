//! Stored responses of the Responses API: what `GET /v1/responses/{id}` and `previous_response_id` find.
//!
//! One directory per user among the server's own files, with one file per response. Bounded in number, bytes and age;
//! removed with the user, and with a conversation that is deleted on request.
//!
//! `id` and `file` are pure, `heads` decides what may be continued by name, `user` reads and writes, `chain` collects what
//! came before a response.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

mod chain;
mod file;
mod heads;
mod id;
#[cfg(test)]
mod tests;
mod user;

pub(crate) use chain::{Chain, resolved};
pub(crate) use file::{Asked, Head, Stored};
pub(crate) use id::ResponseId;
pub(crate) use user::{Advance, MAX_BYTES_EACH, UserResponses};

use crate::model::ids::UserId;
use crate::support::lock::MutexExt;
use crate::workspace::{RESPONSES_KEPT_FOR, responses_dir, user_digest_long};

/// Users in memory, some 300 bytes each; those in use stay beyond it. Others are read again from their directories.
const MAX_USERS: usize = 10_000;

/// The stored responses of all users.
pub(crate) struct Responses {
    directory: PathBuf,
    kept_for: Duration,
    users: Mutex<HashMap<UserId, Arc<UserResponses>>>,
}

impl Responses {
    /// `idle` is the age from which the configuration lets go of sessions: a response does not outlive its session.
    pub(crate) fn new(data_dir: &Path, idle: Option<Duration>) -> Self {
        let kept_for = idle.map_or(RESPONSES_KEPT_FOR, |idle| idle.min(RESPONSES_KEPT_FOR));
        Self { directory: responses_dir(data_dir), kept_for, users: Mutex::default() }
    }

    /// The responses of one user. What is written through it after [`Responses::forget`] is dropped.
    pub(crate) fn of(&self, user: &UserId) -> Arc<UserResponses> {
        let mut users = self.users.lock_unpoisoned();
        if let Some(known) = users.get(user) {
            return known.clone();
        }
        if users.len() >= MAX_USERS {
            // A user must never have two: writes of both would not know of each other.
            users.retain(|_, user| Arc::strong_count(user) > 1);
        }
        let directory = self.directory.join(user_digest_long(user));
        let new = Arc::new(UserResponses::new(directory, self.kept_for));
        users.insert(user.clone(), new.clone());
        new
    }

    /// Drops a deleted user. The files are removed with the user's other files.
    pub(crate) async fn forget(&self, user: &UserId) {
        let known = self.users.lock_unpoisoned().remove(user);
        if let Some(known) = known {
            known.forget().await;
        }
    }
}
