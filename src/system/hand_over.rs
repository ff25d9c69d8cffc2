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
use crate::support::keyed_locks::Locks;
use crate::telemetry::metrics::ContextLost;
use crate::workspace::{UserFiles, user_digest, user_of_digest};

/// Interval of looking whether the sessions of a user have left memory.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Writes what the server has of a user in memory, and forgets it.
pub(crate) type PutAway = Box<dyn Fn(UserId) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// See the module.
pub(crate) struct HandOver {
    sessions: Arc<Sessions>,
    put_away: OnceLock<PutAway>,
    /// Held while what memory has of a user is written.
    writing: Locks<UserId>,
}

impl std::fmt::Debug for HandOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandOver")
    }
}

impl Residents for HandOver {
    fn rest<'a>(&'a self, user: &'a UserId) -> Later<'a, bool> {
        Box::pin(async move {
            let is_at_rest = self.put_to_rest(user).await.is_some();
            self.put_away(user).await;
            is_at_rest
        })
    }

    fn end<'a>(&'a self, user: &'a UserId) -> Later<'a, ()> {
        Box::pin(async move {
            self.end_at_once(user).await;
            self.put_away(user).await;
        })
    }

    fn forget<'a>(&'a self, user: &'a UserId) -> Later<'a, bool> {
        Box::pin(self.remove_files(user))
    }

    fn named<'a>(&'a self, digest: &'a str) -> Later<'a, Option<UserId>> {
        let (data_dir, digest) = (self.sessions.env.config.data_dir.clone(), digest.to_owned());
        Box::pin(async move { blocking(move || Ok(user_named(&data_dir, &digest))).await.ok().flatten() })
    }

    fn has_no_files<'a>(&'a self, user: &'a UserId) -> Later<'a, bool> {
        let files = UserFiles::of(&self.sessions.env.config.data_dir, user);
        Box::pin(async move { blocking(move || files.is_empty()).await.unwrap_or(false) })
    }

    fn report_loss<'a>(&'a self, user: &'a UserId) -> Later<'a, ()> {
        Box::pin(self.report(user))
    }
}

impl HandOver {
    pub(super) fn new(sessions: Arc<Sessions>) -> Self {
        Self { sessions, put_away: OnceLock::new(), writing: Locks::default() }
    }

    /// Sets what else is done for each user who leaves.
    pub(crate) fn on_leave(&self, put_away: PutAway) {
        self.put_away.set(put_away).ok();
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
        let longest = longest_stop(&self.sessions.env.config);
        self.end_sessions(user, Instant::now() + longest).await;
        // Who was inside may have brought one into memory since.
        let closed = timeout(longest, self.sessions.users.close(user)).await;
        self.end_sessions(user, Instant::now() + longest).await;
        if closed.is_err() {
            tracing::error!("work on files of a user whose children were ended does not come to its end");
        }
    }

    async fn end_sessions(&self, user: &UserId, deadline: Instant) {
        let entries = self.entries(user);
        let ending: Vec<_> = entries
            .iter()
            .map(|entry| {
                let (reply, gone) = oneshot::channel();
                drop(entry.actor.cast(SessionMessage::ShutDown { refusal: TurnError::Moved, reply }));
                gone
            })
            .collect();
        for gone in ending {
            timeout_at(deadline, gone).await.ok();
        }
        for entry in entries {
            // Later the files may be those of the user's next stay.
            if timeout_at(deadline, entry.writer.finish()).await.is_err() {
                tracing::error!(session = %entry.hash, "the record of a session that was ended is still being written");
            }
            drop(self.sessions.registry.forget_actor(entry.actor.get_id()));
            entry.actor.stop(None);
        }
    }

    /// What memory has of a user would be older than the files with which the user comes back. Goes on to its end if this is
    /// dropped, and the next call waits for that.
    async fn put_away(&self, user: &UserId) {
        let held = self.writing.acquire(user).await;
        let others = self.put_away.get().map(|put_away| put_away(user.clone()));
        let (spend, user) = (self.sessions.env.spend.clone(), user.clone());
        let writing = self.sessions.env.tasks.spawn(async move {
            let _held = held;
            if let Some(others) = others {
                others.await;
            }
            if let Err(error) = spend.put_away(&user).await {
                tracing::warn!(%error, "the last costs of a user who leaves are not counted elsewhere");
            }
        });
        if let Err(error) = writing.await {
            // As if it had run here: who called tries again, and the user does not come back to what memory still has.
            match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends, and this with it.
                Err(_) => std::future::pending().await,
            }
        }
    }

    async fn remove_files(&self, user: &UserId) -> bool {
        let files = UserFiles::of(&self.sessions.env.config.data_dir, user);
        let removed = blocking(move || files.delete_all_but_tokens()).await;
        if let Err(error) = &removed {
            // They are replaced when the user comes back.
            tracing::warn!(%error, "files of a user who has left are still here");
        }
        removed.is_ok()
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
