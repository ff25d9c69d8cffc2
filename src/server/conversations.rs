//! Prefix matching: which conversation is meant by a client that names none and sends the whole history each time.
//!
//! For every conversation that was begun for such a client a digest is kept of what its child knows. A request whose
//! messages before the last one have the same digest goes on there, with the last message alone; any other begins a
//! conversation, which is told the history once. A request [claims](Conversations::claim) its conversation before the
//! turn and says afterwards what was [answered](Claim::answered); while it is claimed no other request gets it. If the
//! child may have seen a message and nobody can say what it knows now, nothing will match it any more.
//!
//! The parts: `told` hashes, `shelf` decides, `file` remembers; here are the locks. Owned by the application state. It
//! must not know of dialects, nor of how sessions work: all it does to one is to have it deleted when it is forgotten.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

mod cache;
mod digest;
mod file;
#[cfg(test)]
mod tests;

pub(crate) use digest::Told;

use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::support::lock::MutexExt;
use crate::system::Pilotlight;
use cache::{Place, Shelf};
use digest::Digest;

/// Names of conversations that were begun here. A client that has seen one may use it as any other name.
const PREFIX: &str = "auto-";
/// Users in memory, some 5 KiB each when all their places are taken. Those beyond are read again when they come back.
const MAX_USERS: usize = 10_000;
/// The part of them that leaves memory at once, so that not every new user has to look for somebody.
const LEAVING: usize = MAX_USERS / 16;
/// Forgotten conversations that wait to be deleted; those beyond are found again when their user comes back.
const QUEUE: usize = 1024;
/// Conversations deleted at the same time. A child takes some tenths of a second to leave.
pub(crate) const PURGES: usize = 4;
/// When to come again if all places are taken: a deletion or a turn is likely to have ended by then.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The conversations of clients that name none.
pub(crate) struct Conversations {
    directory: PathBuf,
    keep: usize,
    users: Mutex<Users>,
    to_forget: mpsc::Sender<Forgotten>,
    forgotten: tokio::sync::Mutex<mpsc::Receiver<Forgotten>>,
}

#[derive(Default)]
struct Users {
    shelves: HashMap<UserId, (Arc<UserShelf>, u64)>,
    /// Counts requests, to tell who came last.
    count: u64,
}

struct UserShelf {
    user: UserId,
    path: PathBuf,
    keep: usize,
    to_forget: mpsc::Sender<Forgotten>,
    /// Once it is read.
    shelf: Mutex<Option<Shelf>>,
}

/// A conversation that is to be deleted.
struct Forgotten {
    shelf: Arc<UserShelf>,
    name: String,
}

/// A conversation for the time of one request.
#[must_use = "dropped, it is given back"]
pub(crate) struct Claim {
    shelf: Arc<UserShelf>,
    place: Place,
    asked: Digest,
    system: Digest,
    reached: bool,
    is_back: bool,
}

impl fmt::Debug for Conversations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conversations(redacted)")
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("conversation", &self.place.name).finish_non_exhaustive()
    }
}

impl Conversations {
    /// Keeps `keep` conversations for each user, and files about them in `directory`.
    pub(crate) fn new(directory: PathBuf, keep: usize) -> Self {
        let (to_forget, forgotten) = mpsc::channel(QUEUE);
        let forgotten = tokio::sync::Mutex::new(forgotten);
        Self { directory, keep, users: Mutex::default(), to_forget, forgotten }
    }

    /// The user's conversation that knows exactly what is told, or a new one.
    ///
    /// # Errors
    /// 503 while so many of this user's conversations are in use or being deleted that there is no place.
    pub(crate) async fn claim(&self, user: &UserId, told: &Told) -> Result<Claim, ApiError> {
        let shelf = self.shelf(user).await;
        let new_name = format!("{PREFIX}{}", uuid::Uuid::new_v4().simple());
        let place = shelf.change(|shelf| shelf.claim(told, new_name, now()));
        let full = "too many conversations of this user are in use or being deleted";
        let place = place.ok_or_else(|| ApiError::overloaded(full, RETRY_AFTER))?;
        Ok(Claim { shelf, place, asked: told.asked, system: told.system, reached: false, is_back: false })
    }

    /// Somebody uses or deletes a conversation by its name: it may be one of these, and then nobody can tell any more
    /// what its child knows. It is the caller's from now on.
    pub(crate) async fn named(&self, user: &UserId, name: &str) {
        if name.starts_with(PREFIX) {
            self.shelf(user).await.change(|shelf| shelf.remove(name));
        }
    }

    /// Deletes what is forgotten, one after the other. Ends when the queue does: never.
    pub(crate) async fn purge(&self, pilot: &Pilotlight) {
        loop {
            let next = self.forgotten.lock().await.recv().await;
            let Some(Forgotten { shelf, name }) = next else { return };
            if !shelf.change(|shelf| shelf.is_doomed(&name)) {
                // Somebody has come to use it by its name.
                continue;
            }
            match pilot.conversation(shelf.user.as_bytes(), &name).purge().await {
                Ok(()) => {
                    shelf.change(|shelf| shelf.remove(&name));
                }
                Err(error) => {
                    tracing::warn!(code = error.code(), "a forgotten conversation could not be deleted yet");
                    // Not told of again at once: when its user comes back.
                    if let Some(shelf) = shelf.shelf.lock_unpoisoned().as_mut() {
                        shelf.still_there(&name);
                    }
                }
            }
        }
    }

    /// The user's shelf; read from its file if it is not in memory.
    async fn shelf(&self, user: &UserId) -> Arc<UserShelf> {
        let found = self.find(user);
        if found.shelf.lock_unpoisoned().is_none() {
            let reading = found.clone();
            // If that fails it is read where it is needed.
            tokio::task::spawn_blocking(move || reading.change(|_| ())).await.ok();
        }
        found
    }

    fn find(&self, user: &UserId) -> Arc<UserShelf> {
        let mut users = self.users.lock_unpoisoned();
        users.count += 1;
        let now = users.count;
        if let Some((shelf, last)) = users.shelves.get_mut(user) {
            *last = now;
            return shelf.clone();
        }
        users.make_room();
        let digest = Sha256::new().chain_update("user\0").chain_update(user.as_bytes()).finalize();
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let shelf = Arc::new(UserShelf {
            user: user.clone(),
            path: self.directory.join(name),
            keep: self.keep,
            to_forget: self.to_forget.clone(),
            shelf: Mutex::new(None),
        });
        users.shelves.insert(user.clone(), (shelf.clone(), now));
        shelf
    }
}

impl Users {
    /// Lets those leave memory who have not come for longest. Whoever has a claim, or is about to get one, holds the
    /// shelf and stays: there must never be two shelves of one user.
    fn make_room(&mut self) {
        if self.shelves.len() < MAX_USERS {
            return;
        }
        let unused = self.shelves.values().filter(|(shelf, _)| Arc::strong_count(shelf) == 1);
        let mut last: Vec<u64> = unused.map(|(_, last)| *last).collect();
        last.sort_unstable();
        let Some(latest) = last.get(LEAVING.min(last.len().saturating_sub(1))).copied() else { return };
        self.shelves.retain(|_, (shelf, last)| *last > latest || Arc::strong_count(shelf) > 1);
    }
}

impl UserShelf {
    /// Looks at the shelf or changes it, writes what has changed, and has deleted what is forgotten. The write is for
    /// the kernel alone and takes some microseconds: less than handing it to another thread would, and a claim has to
    /// be on file before its turn begins.
    fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut Shelf) -> T) -> T {
        let mut shelf = self.shelf.lock_unpoisoned();
        let shelf = shelf.get_or_insert_with(|| Shelf::new(self.keep, file::read(&self.path)));
        let result = change(shelf);
        for name in shelf.doomed() {
            let forgotten = Forgotten { shelf: self.clone(), name };
            if let Err(unsent) = self.to_forget.try_send(forgotten) {
                shelf.still_there(&unsent.into_inner().name);
                break;
            }
        }
        let changed = shelf.take_changed();
        file::write(&self.path, shelf.places(), &changed);
        result
    }
}

impl Claim {
    /// The conversation's name.
    pub(crate) fn conversation(&self) -> &str {
        &self.place.name
    }

    /// Whether the conversation begins with this request.
    #[cfg(test)]
    pub(crate) fn is_new(&self) -> bool {
        self.place.former == Digest::NOTHING
    }

    /// From here on the child may see the message: called before it is sent.
    pub(crate) fn reached(&mut self) {
        self.reached = true;
    }

    /// The message was refused before the child saw anything of it.
    pub(crate) fn not_reached(&mut self) {
        self.reached = false;
    }

    /// The turn went well; `text` is all text of the answer, as it went to the client.
    pub(crate) fn answered(mut self, text: &str) {
        self.give_back(Some(self.asked.then_text(text)), Some(self.system));
    }

    fn give_back(&mut self, knows: Option<Digest>, system: Option<Digest>) {
        if !std::mem::replace(&mut self.is_back, true) {
            self.shelf.change(|shelf| shelf.give_back(&self.place, knows, system, now()));
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let former = self.place.former;
        self.give_back((!self.reached).then_some(former), None);
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
