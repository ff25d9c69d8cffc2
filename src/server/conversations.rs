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

use tokio::runtime::Handle;
use tokio::sync::{OnceCell, mpsc};

mod cache;
mod digest;
mod file;
#[cfg(test)]
mod tests;

pub(crate) use digest::HistoryDigest;

use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::support::blocking::blocking;
use crate::support::keyed_gates::Inside;
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

/// A user's cache; empty until its file is read.
type Cell = Arc<OnceCell<Arc<UserCache>>>;

#[derive(Default)]
struct Users {
    /// With the number of each user's last request.
    caches: HashMap<UserId, (Cell, u64)>,
    /// Counts requests; orders users by their last request.
    count: u64,
}

struct UserCache {
    user: UserId,
    path: PathBuf,
    deletion_sender: mpsc::Sender<Deletion>,
    cache: Mutex<ConversationCache>,
    /// Held by who writes the file, across waits for the disk: others wait without a thread.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// A write will begin later, with all changes up to then. So at most one per user waits.
    is_write_queued: AtomicBool,
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
        self.claim_by(user, digest, ConversationCache::claim).await
    }

    /// Claims a conversation that holds nothing yet: the history of the request becomes its own.
    ///
    /// # Errors
    /// As [`Conversations::claim`].
    pub(crate) async fn claim_new(&self, user: &UserId, digest: &HistoryDigest) -> Result<Claim, ApiError> {
        self.claim_by(user, digest, ConversationCache::claim_new).await
    }

    /// Claims this conversation if it has exactly this history and no request has it.
    pub(crate) async fn claim_named(
        &self,
        user: &UserId,
        name: &str,
        digest: &HistoryDigest,
    ) -> Option<Claim> {
        let cache = self.cache(user).await;
        let slot = cache.change(|cache| cache.claim_named(name, digest))?;
        Some(Claim::new(cache, slot, digest).await)
    }

    async fn claim_by(
        &self,
        user: &UserId,
        digest: &HistoryDigest,
        find: fn(&mut ConversationCache, &HistoryDigest, String, u64) -> Option<Slot>,
    ) -> Result<Claim, ApiError> {
        let cache = self.cache(user).await;
        let new_name = format!("{PREFIX}{}", uuid::Uuid::new_v4().simple());
        let Some(slot) = cache.change(|cache| find(cache, digest, new_name, now())) else {
            cache.write_later();
            let full = "too many conversations of this user are in use or being deleted";
            return Err(ApiError::overloaded(full, RETRY_AFTER));
        };
        Ok(Claim::new(cache, slot, digest).await)
    }

    /// Excludes a conversation from matching, because a request uses or deletes it by name. Its user cannot be deleted
    /// meanwhile: what is written after that would stay.
    pub(crate) async fn exclude(&self, user: &Inside<UserId>, name: &str) {
        if name.starts_with(PREFIX) {
            let cache = self.cache(user.key()).await;
            if cache.change(|cache| cache.remove(name)) {
                cache.write().await;
            }
        }
    }

    /// Waits until everything that was released is on file.
    pub(crate) async fn flush(&self) {
        let users: Vec<_> =
            self.users.lock_unpoisoned().caches.values().filter_map(|(it, _)| it.get().cloned()).collect();
        for cache in users {
            if cache.is_write_queued.load(Ordering::Acquire) {
                cache.write().await;
            } else {
                // One that has begun ends.
                drop(cache.writing.lock().await);
            }
        }
    }

    /// Drops the conversations of a deleted user. Claims that are still held write nothing any more. The file is removed
    /// with the user's other files.
    pub(crate) async fn forget(&self, user: &UserId) {
        let Some(cache) = self.take(user) else { return };
        cache.is_forgotten.store(true, Ordering::Release);
        // A write that has begun ends first.
        drop(cache.writing.lock().await);
    }

    /// Writes the conversations of a user who goes to another node of a cluster, and drops them.
    #[cfg(feature = "cluster")]
    pub(crate) async fn put_away(&self, user: &UserId) {
        let Some(cache) = self.take(user) else { return };
        cache.write().await;
        cache.is_forgotten.store(true, Ordering::Release);
    }

    fn take(&self, user: &UserId) -> Option<Arc<UserCache>> {
        let (cache, _) = self.users.lock_unpoisoned().caches.remove(user)?;
        cache.get().cloned()
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
                    cache.write().await;
                }
                Err(error) => {
                    tracing::warn!(code = error.code(), "cannot delete an evicted conversation yet");
                    // Queued again when its user returns, not at once.
                    cache.cache.lock_unpoisoned().retry_deletion(&name);
                }
            }
        }
    }

    /// The user's cache, read from its file if it is not in memory.
    async fn cache(&self, user: &UserId) -> Arc<UserCache> {
        let cell = self.find(user);
        cell.get_or_init(|| self.load(user)).await.clone()
    }

    async fn load(&self, user: &UserId) -> Arc<UserCache> {
        let path = self.directory.join(user_digest_long(user));
        let reading = path.clone();
        // An unreadable file counts as empty.
        let slots = blocking(move || Ok(file::read(&reading))).await.unwrap_or_default();
        Arc::new(UserCache {
            user: user.clone(),
            path,
            deletion_sender: self.deletion_sender.clone(),
            cache: Mutex::new(ConversationCache::new(self.keep, slots)),
            writing: Arc::default(),
            is_write_queued: AtomicBool::new(false),
            is_forgotten: AtomicBool::new(false),
        })
    }

    fn find(&self, user: &UserId) -> Cell {
        let mut users = self.users.lock_unpoisoned();
        users.count += 1;
        let now = users.count;
        if let Some((cache, last)) = users.caches.get_mut(user) {
            *last = now;
            return cache.clone();
        }
        users.evict();
        let cache = Arc::default();
        users.caches.insert(user.clone(), (Arc::clone(&cache), now));
        cache
    }
}

impl Users {
    /// Evicts the least recently used users from memory. Users with a claim, about to get one, or with something to be
    /// written hold a reference and stay: a user must never have two caches.
    fn evict(&mut self) {
        if self.caches.len() < MAX_USERS {
            return;
        }
        let is_unused = |cell: &Cell| {
            Arc::strong_count(cell) == 1 && cell.get().is_none_or(|cache| Arc::strong_count(cache) == 1)
        };
        let unused = self.caches.values().filter(|(cell, _)| is_unused(cell));
        let mut last: Vec<u64> = unused.map(|(_, last)| *last).collect();
        last.sort_unstable();
        let Some(latest) = last.get(EVICTED_AT_ONCE.min(last.len().saturating_sub(1))).copied() else {
            return;
        };
        self.caches.retain(|_, (cell, last)| *last > latest || !is_unused(cell));
    }
}

impl UserCache {
    /// Changes the cache and queues deletions. What has changed is still to be written.
    fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut ConversationCache) -> T) -> T {
        let mut cache = self.cache.lock_unpoisoned();
        let result = change(&mut cache);
        for name in cache.take_deletions() {
            let deletion = Deletion { cache: self.clone(), name };
            if let Err(unsent) = self.deletion_sender.try_send(deletion) {
                cache.retry_deletion(&unsent.into_inner().name);
                break;
            }
        }
        result
    }

    /// Writes what has changed; returns once the kernel has it. On a thread for work on files: the write reaches the page
    /// cache only and takes microseconds, unless the disk is busy.
    async fn write(self: &Arc<Self>) {
        let one_at_a_time = self.writing.clone().lock_owned().await;
        let cache = self.clone();
        let write = move || {
            let _held = one_at_a_time;
            // What is released from here on is for the next write.
            cache.is_write_queued.swap(false, Ordering::AcqRel);
            let changed = cache.cache.lock_unpoisoned().take_changed();
            if !cache.is_forgotten.load(Ordering::Acquire) {
                file::write(&cache.path, &changed);
            }
            Ok(())
        };
        if let Err(error) = blocking(write).await {
            tracing::warn!(%error, "the conversations of a user were not stored");
        }
    }

    /// As [`UserCache::write`], without waiting. A write that is lost leaves a claim on file, which matches nothing.
    fn write_later(self: &Arc<Self>) {
        if let Ok(runtime) = Handle::try_current()
            && !self.is_write_queued.swap(true, Ordering::AcqRel)
        {
            let cache = self.clone();
            runtime.spawn(async move { cache.write().await });
        }
    }
}

impl Claim {
    async fn new(cache: Arc<UserCache>, slot: Slot, digest: &HistoryDigest) -> Self {
        let (asked, system) = (digest.asked, digest.system);
        let claim = Self { cache, slot, asked, system, is_sent: false, is_released: false };
        // On file before its turn begins.
        claim.cache.write().await;
        claim
    }

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

    /// Records the answer of a successful turn: all of its text as sent to the client, and the ids of its tool calls.
    pub(crate) fn commit(mut self, text: &str, calls: &[String]) {
        let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
        self.release(Some(self.asked.append_said(text, &calls)), Some(self.system));
    }

    fn release(&mut self, knows: Option<Digest>, system: Option<Digest>) {
        if !std::mem::replace(&mut self.is_released, true) {
            self.cache.change(|cache| cache.release(&self.slot, knows, system, now()));
            self.cache.write_later();
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
