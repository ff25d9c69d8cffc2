//! The deletion of a user with all data: sessions, records, histories, tokens, sums.
//!
//! The user's gate is closed meanwhile: turns are refused, and nothing of the user begins. Sessions end in order, then
//! their files are removed. A note on the disk makes the next start finish what a crash interrupted.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::shutdown::longest_stop;
use super::{Pilotlight, Session, System, blocking};
use crate::error::TurnError;
use crate::isolation::retire_user_id;
use crate::model::ids::{SessionHash, SessionKey, UserId};
use crate::session::known;
#[cfg(feature = "server")]
use crate::support::keyed_gates::Closed;
#[cfg(feature = "server")]
use crate::workspace::TokenIndex;
use crate::workspace::UserFiles;

/// Sessions that are ended at the same time: each stop may take its steps' whole time.
const AT_ONCE: usize = 16;

impl Pilotlight {
    /// Deletes a user: ends the sessions and removes everything that is stored of them. Turns that arrive meanwhile are
    /// refused with [`TurnError::UserDeleted`]; later ones begin a new session. Returns the number of sessions.
    ///
    /// # Errors
    /// [`TurnError`] if a child does not end or a file cannot be removed. A repetition continues.
    pub async fn delete_user(&self, user: &UserId) -> Result<usize, TurnError> {
        self.delete_user_and(user, async {}).await
    }

    /// As [`Pilotlight::delete_user`]. `forget` runs after the sessions have ended, before their last files are removed.
    pub(crate) async fn delete_user_and(
        &self,
        user: &UserId,
        forget: impl Future<Output = ()> + Send + 'static,
    ) -> Result<usize, TurnError> {
        // As a task of its own: a caller that goes away in the middle does not leave half a user.
        let (system, user, (done, deleted)) = (self.system.clone(), user.clone(), oneshot::channel());
        self.env().tasks.spawn(async move { done.send(delete(&system, &user, forget).await).ok() });
        deleted.await.unwrap_or(Err(TurnError::Internal("the deletion failed")))
    }
}

#[cfg(feature = "server")]
impl Pilotlight {
    /// Deletes a user of whom nothing is in memory and no turn was ever answered. Otherwise nothing is deleted, and a user
    /// with an answer is no longer new. Returns whether the user is gone.
    pub(crate) async fn delete_unanswered(
        &self,
        user: &UserId,
        forget: impl Future<Output = ()> + Send + 'static,
    ) -> Result<bool, TurnError> {
        let (system, user, (done, deleted)) = (self.system.clone(), user.clone(), oneshot::channel());
        self.env().tasks.spawn(async move { done.send(unanswered(&system, &user, forget).await).ok() });
        deleted.await.unwrap_or(Err(TurnError::Internal("the deletion failed")))
    }

    /// Refuses requests of the user until the result is dropped; `None` while one is in progress.
    pub(crate) fn try_close(&self, user: &UserId) -> Option<Closed<UserId>> {
        self.system.sessions.users.try_close(user)
    }
}

#[cfg(feature = "server")]
async fn unanswered(
    system: &Arc<System>,
    user: &UserId,
    forget: impl Future<Output = ()> + Send,
) -> Result<bool, TurnError> {
    let sessions = &system.sessions;
    let Some(_closed) = sessions.users.try_close(user) else { return Ok(false) };
    if sessions.registry.entries().iter().any(|entry| entry.key.user() == user) {
        return Ok(false);
    }
    let (data_dir, owner) = (sessions.env.config.data_dir.clone(), user.clone());
    let has_answer = blocking(move || {
        let has_answer = known::has_answer(&data_dir, &owner)?;
        if has_answer {
            TokenIndex::of(&data_dir).settle_new(&owner)?;
        }
        Ok(has_answer)
    });
    if has_answer.await? {
        return Ok(false);
    }
    delete_closed(system, user, forget).await.map(|_| true)
}

/// Finishes deletions that were interrupted. No process of a former system may be left.
pub(super) fn finish_deletions(data_dir: &Path) {
    for files in UserFiles::unfinished(data_dir) {
        if let Err(error) = delete_files(data_dir, &files) {
            tracing::warn!(%error, "cannot finish the deletion of a user; the next start tries again");
        }
    }
}

/// Deletes everything of a user while no system runs. Returns the number of sessions.
pub(super) fn delete_files(data_dir: &Path, files: &UserFiles) -> io::Result<usize> {
    let count = files.delete_all()?;
    retire_user_id(data_dir, files.short_digest())?;
    files.end_deletion()?;
    Ok(count)
}

async fn delete(
    system: &Arc<System>,
    user: &UserId,
    forget: impl Future<Output = ()> + Send,
) -> Result<usize, TurnError> {
    let _closed = system.sessions.users.close(user).await;
    delete_closed(system, user, forget).await
}

/// Under the user's closed gate.
async fn delete_closed(
    system: &Arc<System>,
    user: &UserId,
    forget: impl Future<Output = ()> + Send,
) -> Result<usize, TurnError> {
    let files = UserFiles::of(&system.sessions.env.config.data_dir, user);
    let begun = files.clone();
    blocking(move || begun.begin_deletion()).await?;
    let deleted = delete_noted(system, user, &files, forget).await;
    if deleted.is_err() {
        // The user may come back now: the next start must not delete what is new.
        blocking(move || files.end_deletion()).await?;
    }
    deleted
}

async fn delete_noted(
    system: &Arc<System>,
    user: &UserId,
    files: &UserFiles,
    forget: impl Future<Output = ()> + Send,
) -> Result<usize, TurnError> {
    let sessions = &system.sessions;
    let in_memory = sessions.registry.entries().into_iter().filter(|entry| entry.key.user() == user);
    let mut count = end(system, in_memory.map(|entry| entry.key.clone()).collect()).await?;
    loop {
        let listing = files.clone();
        let listed = blocking(move || listing.sessions()).await?;
        if listed.is_empty() {
            break;
        }
        for session in listed {
            remove(system, files, session).await?;
            count += 1;
        }
    }
    forget.await;
    sessions.env.spend.forget(user).await.map_err(|error| TurnError::Storage(error.into()))?;
    let (env, rest) = (sessions.env.clone(), files.clone());
    blocking(move || {
        rest.delete_rest()?;
        // After the files: an id without its user says that none is left.
        env.isolation.retire(&env.config.data_dir, rest.short_digest())?;
        rest.end_deletion()
    })
    .await?;
    Ok(count)
}

/// Ends sessions that are in memory, and deletes them.
async fn end(system: &Arc<System>, keys: Vec<SessionKey>) -> Result<usize, TurnError> {
    let count = keys.len();
    let mut keys = keys.into_iter();
    let mut ending = JoinSet::new();
    let mut result = Ok(count);
    loop {
        while ending.len() < AT_ONCE
            && let Some(key) = keys.next()
        {
            let system = system.clone();
            ending.spawn(async move { purge(&system, key).await });
        }
        match ending.join_next().await {
            None => return result,
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => result = Err(error),
            Some(Err(_)) => result = Err(TurnError::Internal("the end of a session failed")),
        }
    }
}

async fn purge(system: &Arc<System>, key: SessionKey) -> Result<(), TurnError> {
    let session = Session::new(system.clone(), Ok(key.clone()));
    let purged = session.purge_and_refuse(TurnError::UserDeleted).await;
    if purged.is_err() {
        // A repetition finds by the list what is left.
        let data_dir = system.sessions.env.config.data_dir.clone();
        blocking(move || known::note(&data_dir, &key)).await?;
    }
    purged
}

/// Deletes a session that is not in memory. Its last child may still be on its way out.
async fn remove(system: &System, files: &UserFiles, session: SessionHash) -> Result<(), TurnError> {
    let sessions = &system.sessions;
    let slot = timeout(longest_stop(&sessions.env.config), sessions.slots.acquire(&session)).await;
    let _slot = slot.map_err(|_| TurnError::Internal("the session's child does not end"))?;
    let files = files.clone();
    blocking(move || files.delete_session(&session)).await
}
