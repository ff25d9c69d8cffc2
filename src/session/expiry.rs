//! Deletion of a session that nobody asked to delete: only while it rests. A turn that arrives first keeps the session;
//! one that arrives later begins a new one, and its first event reports the loss.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use super::known;
use super::sessions::Sessions;
use super::store::Record;
use crate::model::ids::{SessionHash, SessionKey};
use crate::support::blocking::{blocking, blocking_long};
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::RetentionReason;
use crate::workspace::Deleted;

/// Wait for the end of a child, or of another deletion: who waits longer finds the session in use.
const SLOT_WITHIN: Duration = Duration::from_secs(1);
/// Sessions remembered after their deletion, 50 bytes each.
const MOST_REMEMBERED: usize = 10_000;

/// Sessions that were deleted lately. Lost with the process: the deletion itself was an event.
#[derive(Debug, Default)]
pub(crate) struct Expired(Mutex<VecDeque<SessionHash>>);

impl Expired {
    fn note(&self, session: SessionHash) {
        let mut expired = self.0.lock_unpoisoned();
        if expired.len() == MOST_REMEMBERED {
            expired.pop_front();
        }
        expired.push_back(session);
    }

    /// Whether the session was deleted lately. Said once.
    pub(crate) fn take(&self, session: &SessionHash) -> bool {
        let mut expired = self.0.lock_unpoisoned();
        let found = expired.iter().position(|expired| expired == session);
        found.and_then(|at| expired.remove(at)).is_some()
    }
}

/// Why a session is deleted, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verdict {
    pub(crate) reason: RetentionReason,
    /// A session that was used since stays.
    pub(crate) last_used: SystemTime,
    pub(crate) bytes: u64,
}

/// Deletes the session, if it rests. Returns whether it is gone.
pub(crate) async fn expire(sessions: &Arc<Sessions>, key: &SessionKey, verdict: Verdict) -> io::Result<bool> {
    let hash = key.hash();
    // A user who is being deleted keeps nothing anyway. A deletion that comes later waits until the files are removed.
    let Some(_inside) = sessions.users.enter(key.user()) else { return Ok(false) };
    // Who brings the session into memory has done so, or waits until it is gone.
    let arrival = sessions.arrivals.acquire(&hash).await;
    let Ok(_slot) = timeout(SLOT_WITHIN, sessions.slots.acquire(&hash)).await else { return Ok(false) };
    let deleted = {
        let (sessions, key) = (sessions.clone(), key.clone());
        let take =
            move || sessions.records.with(&key.hash(), || take_away(&sessions, &key, verdict.last_used));
        blocking(take).await?
    };
    let Some(deleted) = deleted else { return Ok(false) };
    // A record that is still in its place would bring back the session whose files are being removed.
    let _arrival = if deleted.is_hidden {
        drop(arrival);
        None
    } else {
        Some(arrival)
    };
    // At once: what cannot be removed now is removed at the next start.
    sessions.env.telemetry.expired(key, verdict.reason, verdict.bytes);
    blocking_long(move || deleted.remove()).await.map(|()| true)
}

/// The session is gone from here on; its files are removed afterwards.
fn take_away(sessions: &Sessions, key: &SessionKey, last_used: SystemTime) -> io::Result<Option<Deleted>> {
    let (data_dir, hash) = (&sessions.env.config.data_dir, key.hash());
    if sessions.registry.get(key).is_some() {
        return Ok(None);
    }
    // One that cannot be read is left to its next turn, or to the next round.
    let Ok(Some(record)) = Record::load(data_dir, key) else { return Ok(None) };
    if record.last_used != last_used {
        return Ok(None);
    }
    let deleted = record.workspace(data_dir, &hash).begin_deletion()?;
    if let Err(error) = known::forget(data_dir, key) {
        tracing::warn!(session = %hash, %error, "a deleted session is still in the list of its user");
    }
    sessions.expired.note(hash);
    Ok(Some(deleted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::UserId;

    #[test]
    fn deletions_are_reported_once_and_bounded() {
        let expired = Expired::default();
        let hash = |number: usize| {
            SessionKey::new(UserId::new(format!("user {number}")).unwrap(), "default").unwrap().hash()
        };
        for number in 0..=MOST_REMEMBERED {
            expired.note(hash(number));
        }
        assert!(!expired.take(&hash(0)), "the oldest is forgotten");
        assert!(expired.take(&hash(7)) && !expired.take(&hash(7)));
    }
}
