//! Prefix matching: finds the conversation of a client that names none and sends the whole history each time.
//!
//! The cache holds a digest of each such conversation's history, as its child has it. A request continues the
//! conversation whose digest equals that of its messages before the last; otherwise a new conversation begins, with the
//! history in its first prompt. A request [claims](Conversations::claim) its conversation before the turn and
//! [commits](Claim::commit) the answer afterwards; a claimed conversation matches no other request. If the child may
//! have received a message without a known answer, the conversation is stale: nothing matches it any more.
//!
//! `digest` hashes, `cache` decides, `file` persists, this file locks.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;

mod cache;
mod digest;
mod file;
#[cfg(test)]
mod tests;

pub(crate) use digest::HistoryDigest;

use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::support::lock::MutexExt;
use crate::system::Pilotlight;
use crate::workspace::user_digest_long;
use cache::{ConversationCache, Slot};
use digest::Digest;

/// Prefix of generated conversation names. Clients may use them like any other name.
const PREFIX: &str = "auto-";
/// Maximum users in memory, some 5 KiB each with all slots taken. Evicted users are read again from their files.
const MAX_USERS: usize = 10_000;
/// Users evicted at once, so that not every new user scans for one.
const EVICTED_AT_ONCE: usize = MAX_USERS / 16;
/// Maximum queued deletions. Further ones are queued when their user returns.
const QUEUE: usize = 1024;
/// Concurrent deletions. Stopping a child takes some tenths of a second.
pub(crate) const PURGES: usize = 4;
/// Retry delay while all slots are taken: a deletion or a turn is likely to have ended by then.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The conversations of clients that name none.
pub(crate) struct Conversations {
    directory: PathBuf,
    keep: usize,
    users: Mutex<Users>,
    deletion_sender: mpsc::Sender<Deletion>,
    deletion_receiver: tokio::sync::Mutex<mpsc::Receiver<Deletion>>,
}

#[derive(Default)]
struct Users {
    caches: HashMap<UserId, (Arc<UserCache>, u64)>,
    /// Counts requests; orders users by their last request.
    count: u64,
}

struct UserCache {
    user: UserId,
    path: PathBuf,
    keep: usize,
    deletion_sender: mpsc::Sender<Deletion>,
    /// `None` until the file is read.
    cache: Mutex<Option<ConversationCache>>,
    /// The user was deleted: nothing is written any more.
    is_forgotten: AtomicBool,
}

/// A queued deletion of a conversation.
struct Deletion {
    cache: Arc<UserCache>,
    name: String,
}

/// Exclusive use of a conversation for one request. Dropping releases it.
#[must_use = "dropping releases the conversation"]
pub(crate) struct Claim {
    cache: Arc<UserCache>,
    slot: Slot,
    asked: Digest,
    system: Digest,
    is_sent: bool,
    is_released: bool,
}

impl Conversations {
    /// Keeps at most `keep` conversations per user, with one file per user in `directory`.
    pub(crate) fn new(directory: PathBuf, keep: usize) -> Self {
        let (deletion_sender, deletion_receiver) = mpsc::channel(QUEUE);
        let deletion_receiver = tokio::sync::Mutex::new(deletion_receiver);
        Self { directory, keep, users: Mutex::default(), deletion_sender, deletion_receiver }
    }

    /// Claims the user's conversation with exactly this history, or a new one.
    ///
    /// # Errors
    /// 503 while all slots of this user are in use or being deleted.
    pub(crate) async fn claim(&self, user: &UserId, digest: &HistoryDigest) -> Result<Claim, ApiError> {
        let cache = self.cache(user).await;
        let new_name = format!("{PREFIX}{}", uuid::Uuid::new_v4().simple());
        let slot = cache.change(|cache| cache.claim(digest, new_name, now()));
        let full = "too many conversations of this user are in use or being deleted";
        let slot = slot.ok_or_else(|| ApiError::overloaded(full, RETRY_AFTER))?;
        Ok(Claim {
            cache,
            slot,
            asked: digest.asked,
            system: digest.system,
            is_sent: false,
            is_released: false,
        })
    }

    /// Excludes a conversation from matching, because a request uses or deletes it by name.
    pub(crate) async fn exclude(&self, user: &UserId, name: &str) {
        if name.starts_with(PREFIX) {
            self.cache(user).await.change(|cache| cache.remove(name));
        }
    }

    /// Drops the conversations of a deleted user. Claims that are still held write nothing any more. The file is removed
    /// with the user's other files.
    pub(crate) fn forget(&self, user: &UserId) {
        let Some((cache, _)) = self.users.lock_unpoisoned().caches.remove(user) else { return };
        // A write that has begun ends first.
        let _idle = cache.cache.lock_unpoisoned();
        cache.is_forgotten.store(true, Ordering::Release);
    }

    /// Worker that deletes evicted conversations, one at a time.
    pub(crate) async fn purge(&self, pilot: &Pilotlight) {
        loop {
            let next = self.deletion_receiver.lock().await.recv().await;
            let Some(Deletion { cache, name }) = next else { return };
            if !cache.change(|cache| cache.is_deleting(&name)) {
                // A request uses it by name meanwhile.
                continue;
            }
            match pilot.conversation(cache.user.as_bytes(), &name).purge().await {
                Ok(()) => {
                    cache.change(|cache| cache.remove(&name));
                }
                Err(error) => {
                    tracing::warn!(code = error.code(), "cannot delete an evicted conversation yet");
                    // Queued again when its user returns, not at once.
                    if let Some(cache) = cache.cache.lock_unpoisoned().as_mut() {
                        cache.retry_deletion(&name);
                    }
                }
            }
        }
    }

    /// The user's cache, read from its file if it is not in memory.
    async fn cache(&self, user: &UserId) -> Arc<UserCache> {
        let found = self.find(user);
        if found.cache.lock_unpoisoned().is_none() {
            let reading = found.clone();
            // A failed task leaves the read to the caller.
            tokio::task::spawn_blocking(move || reading.change(|_| ())).await.ok();
        }
        found
    }

    fn find(&self, user: &UserId) -> Arc<UserCache> {
        let mut users = self.users.lock_unpoisoned();
        users.count += 1;
        let now = users.count;
        if let Some((cache, last)) = users.caches.get_mut(user) {
            *last = now;
            return cache.clone();
        }
        users.evict();
        let name = user_digest_long(user);
        let cache = Arc::new(UserCache {
            user: user.clone(),
            path: self.directory.join(name),
            keep: self.keep,
            deletion_sender: self.deletion_sender.clone(),
            cache: Mutex::new(None),
            is_forgotten: AtomicBool::new(false),
        });
        users.caches.insert(user.clone(), (cache.clone(), now));
        cache
    }
}

impl Users {
    /// Evicts the least recently used users from memory. Users with a claim, or about to get one, hold a reference and
    /// stay: a user must never have two caches.
    fn evict(&mut self) {
        if self.caches.len() < MAX_USERS {
            return;
        }
        let unused = self.caches.values().filter(|(cache, _)| Arc::strong_count(cache) == 1);
        let mut last: Vec<u64> = unused.map(|(_, last)| *last).collect();
        last.sort_unstable();
        let Some(latest) = last.get(EVICTED_AT_ONCE.min(last.len().saturating_sub(1))).copied() else {
            return;
        };
        self.caches.retain(|_, (cache, last)| *last > latest || Arc::strong_count(cache) > 1);
    }
}

impl UserCache {
    /// Reads or changes the cache, writes changed slots and queues deletions. The write reaches the page cache only and
    /// takes microseconds, less than a thread switch; a claim must be on file before its turn begins.
    fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut ConversationCache) -> T) -> T {
        let mut cache = self.cache.lock_unpoisoned();
        let cache = cache.get_or_insert_with(|| ConversationCache::new(self.keep, file::read(&self.path)));
        let result = change(cache);
        for name in cache.take_deletions() {
            let deletion = Deletion { cache: self.clone(), name };
            if let Err(unsent) = self.deletion_sender.try_send(deletion) {
                cache.retry_deletion(&unsent.into_inner().name);
                break;
            }
        }
        let changed = cache.take_changed();
        if !self.is_forgotten.load(Ordering::Acquire) {
            file::write(&self.path, cache.slots(), &changed);
        }
        result
    }
}

impl Claim {
    /// The conversation's name.
    pub(crate) fn conversation(&self) -> &str {
        &self.slot.name
    }

    /// Whether this request begins the conversation.
    #[cfg(test)]
    pub(crate) fn is_new(&self) -> bool {
        self.slot.former == Digest::EMPTY
    }

    /// Called before the message is sent: from now on the child may receive it.
    pub(crate) fn mark_sent(&mut self) {
        self.is_sent = true;
    }

    /// Called when the message was refused before the child received anything.
    pub(crate) fn mark_unsent(&mut self) {
        self.is_sent = false;
    }

    /// Records the answer of a successful turn; `text` is all of its text as sent to the client.
    pub(crate) fn commit(mut self, text: &str) {
        self.release(Some(self.asked.append_text(text)), Some(self.system));
    }

    fn release(&mut self, knows: Option<Digest>, system: Option<Digest>) {
        if !std::mem::replace(&mut self.is_released, true) {
            self.cache.change(|cache| cache.release(&self.slot, knows, system, now()));
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let former = self.slot.former;
        self.release((!self.is_sent).then_some(former), None);
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
