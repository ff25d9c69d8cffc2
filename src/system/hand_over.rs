//! The end of a user on this node of a cluster: in order when the user moves to another node, at once when its ownership is lost.
//!
//! A user leaves in order without a running turn: children stop, sessions write their records and leave memory, and the last
//! files go to the store. What is left here is removed, for the next node has it. A user whose ownership is lost may be another
//! node's already: its children are killed, and nothing more is stored.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::shutdown::longest_stop;
use crate::cluster::{Later, Residents};
use crate::error::TurnError;
use crate::model::ids::{SessionHash, SessionKey, UserId};
use crate::session::registry::Entry;
use crate::session::{Record, SessionMessage, sessions::Sessions};
use crate::support::atomic_file::Durability;
use crate::support::blocking::blocking;
use crate::support::keyed_gates::Closed;
use crate::telemetry::metrics::ContextLost;
use crate::workspace::{UserFiles, user_digest, user_of_digest};

/// Interval of looking whether the sessions of a user have left memory.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Removes what the server has of a user in memory.
pub(crate) type Forget = Box<dyn Fn(UserId) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// See the module.
pub(crate) struct HandOver {
    sessions: Arc<Sessions>,
    forget: OnceLock<Forget>,
}

impl std::fmt::Debug for HandOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandOver")
    }
}

impl Residents for HandOver {
    fn rest<'a>(&'a self, user: &'a UserId) -> Later<'a, bool> {
        Box::pin(async move { self.put_to_rest(user).await.is_some() })
    }

    fn end<'a>(&'a self, user: &'a UserId) -> Later<'a, ()> {
        Box::pin(self.end_at_once(user))
    }

    fn forget<'a>(&'a self, user: &'a UserId) -> Later<'a, ()> {
        Box::pin(self.forget_all(user))
    }

    fn named<'a>(&'a self, digest: &'a str) -> Later<'a, Option<UserId>> {
        let (data_dir, digest) = (self.sessions.env.config.data_dir.clone(), digest.to_owned());
        Box::pin(async move { blocking(move || Ok(user_named(&data_dir, &digest))).await.ok().flatten() })
    }

    fn report_loss<'a>(&'a self, user: &'a UserId) -> Later<'a, ()> {
        Box::pin(self.report(user))
    }
}

impl HandOver {
    pub(super) fn new(sessions: Arc<Sessions>) -> Self {
        Self { sessions, forget: OnceLock::new() }
    }

    /// Sets what else is forgotten of each user who leaves.
    pub(crate) fn on_leave(&self, forget: Forget) {
        self.forget.set(forget).ok();
    }

    /// Ends the children of a user without a running turn, and takes the sessions out of memory. `None`: they did not end.
    async fn put_to_rest(&self, user: &UserId) -> Option<Closed<UserId>> {
        let longest = longest_stop(&self.sessions.env.config);
        let deadline = Instant::now() + longest;
        // Who works on files of the user is inside.
        let closed = timeout_at(deadline, self.sessions.users.close(user)).await.ok()?;
        loop {
            let entries = self.entries(user);
            if entries.is_empty() {
                return Some(closed);
            }
            for entry in entries {
                rest(&entry, longest).await;
            }
            if Instant::now() >= deadline {
                return None;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn end_at_once(&self, user: &UserId) {
        let entries = self.entries(user);
        let ending: Vec<_> = entries
            .iter()
            .map(|entry| {
                let (reply, gone) = oneshot::channel();
                drop(entry.actor.cast(SessionMessage::ShutDown { refusal: TurnError::Moved, reply }));
                gone
            })
            .collect();
        let deadline = Instant::now() + longest_stop(&self.sessions.env.config);
        for gone in ending {
            timeout_at(deadline, gone).await.ok();
        }
        for entry in entries {
            drop(self.sessions.registry.forget_actor(entry.actor.get_id()));
            entry.actor.stop(None);
        }
    }

    /// Removes what is left of a user, in memory and on this node's disk.
    async fn forget_all(&self, user: &UserId) {
        if let Some(forget) = self.forget.get() {
            forget(user.clone()).await;
        }
        let files = UserFiles::of(&self.sessions.env.config.data_dir, user);
        let forgotten = self.sessions.env.spend.forget(user).await;
        let removed = blocking(move || files.delete_all()).await;
        if let Err(error) = forgotten.and(removed.map(drop)) {
            // They are replaced when the user comes back.
            tracing::warn!(%error, "files of a user who has left are still here");
        }
    }

    async fn report(&self, user: &UserId) {
        let (data_dir, owner) = (self.sessions.env.config.data_dir.clone(), user.clone());
        match blocking(move || note_loss(&data_dir, &owner)).await {
            Ok(keys) => {
                for key in keys {
                    self.sessions.env.telemetry.context_lost(&key, ContextLost::LatestTurns);
                }
            }
            Err(error) => tracing::error!(%error, "a loss of context cannot be noted"),
        }
    }

    fn entries(&self, user: &UserId) -> Vec<Arc<Entry>> {
        let mut entries = self.sessions.registry.entries();
        entries.retain(|entry| entry.key.user() == user);
        entries
    }
}

/// Each conversation of a user says with its next turn that its latest ones may be missing. Returns the conversations.
pub(super) fn note_loss(data_dir: &Path, user: &UserId) -> io::Result<Vec<SessionKey>> {
    let mut noted = Vec::new();
    for session in UserFiles::of(data_dir, user).sessions()? {
        let Some((key, mut record)) = Record::read(data_dir, &session) else { continue };
        record.unreported_context_loss.get_or_insert(ContextLost::LatestTurns);
        record.save(&record.workspace(data_dir, &session), Durability::Kernel)?;
        noted.push(key);
    }
    Ok(noted)
}

/// The user with this short digest, if a conversation names it.
fn user_named(data_dir: &Path, digest: &str) -> Option<UserId> {
    let marks = std::fs::read_dir(user_of_digest(data_dir, digest)?).ok()?;
    let sessions = marks.flatten().filter_map(|mark| SessionHash::parse(mark.file_name().to_str()?));
    let mut users = sessions.filter_map(|session| Some(Record::read(data_dir, &session)?.0.user().clone()));
    users.find(|user| user_digest(user) == digest)
}

/// Stops the child of a session, and lets the session write its record and leave memory.
async fn rest(entry: &Entry, longest: Duration) {
    let (reply, gone) = oneshot::channel();
    if entry.actor.cast(SessionMessage::Evict(reply)).is_ok() {
        timeout(longest, gone).await.ok();
    }
    drop(entry.actor.cast(SessionMessage::Retire));
}
