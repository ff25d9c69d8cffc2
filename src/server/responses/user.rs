//! The stored responses of one user: reads and writes, bounded.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::Mutex;

use super::file::{MAX_HEAD, Stored, conversation_of};
use super::heads::{self, Heads};
use super::id::ResponseId;
use crate::support::atomic_file::{self, Durability};
use crate::support::blocking::{blocking, blocking_long};
use crate::workspace::beneath::Beneath;
use crate::workspace::{read_own, remove_any};

/// Responses of one user, and their bytes: the oldest are removed beyond it. A conversation of a working day has some
/// hundred.
const MOST: usize = 1000;
const MOST_BYTES: u64 = 128 << 20;
/// Share of both that is left then, so that not each further response lists the directory.
const LEFT: (usize, usize) = (7, 8);
/// Longest request whose response is stored. Longer ones carry many images, and few would use up the bytes of the user.
pub(crate) const MAX_BYTES_EACH: usize = 16 << 20;
/// Longest file read: the request, which ids and texts in their own parts make longer, and the answer.
const MAX_FILE: u64 = 3 * MAX_BYTES_EACH as u64;
/// Name of the file with the last response of each named conversation.
const HEADS: &str = "heads";

/// The stored responses of one user.
#[derive(Debug)]
pub(crate) struct UserResponses {
    directory: PathBuf,
    kept_for: Duration,
    /// Held by who writes, across waits for the disk: others wait without a thread. Unknown before the first write.
    totals: Arc<Mutex<Option<Totals>>>,
    /// The user was deleted: nothing is written any more.
    is_forgotten: AtomicBool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    count: usize,
    bytes: u64,
}

impl UserResponses {
    pub(super) fn new(directory: PathBuf, kept_for: Duration) -> Self {
        Self { directory, kept_for, totals: Arc::default(), is_forgotten: AtomicBool::new(false) }
    }

    #[cfg(test)]
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Stores a response; returns once the kernel has it.
    pub(crate) async fn save(self: &Arc<Self>, id: &ResponseId, stored: Stored) -> io::Result<()> {
        let id = id.clone();
        self.write(move |user, totals| {
            let content = stored.render()?;
            user.replace(&id.to_string(), &content)?;
            let known = totals
                .map(|known| Totals { count: known.count + 1, bytes: known.bytes + content.len() as u64 });
            let now = known.map_or_else(|| user.count(), Ok)?;
            *totals = Some(if now.count > MOST || now.bytes > MOST_BYTES { user.make_room()? } else { now });
            Ok(())
        })
        .await
    }

    /// Reads a response; `None` for one that is unknown, too old or damaged.
    pub(crate) async fn read(self: &Arc<Self>, id: &ResponseId) -> io::Result<Option<Stored>> {
        let (user, id) = (self.clone(), id.clone());
        blocking_long(move || user.read_now(&id).map(|read| read.map(|(stored, _)| stored))).await
    }

    /// As [`UserResponses::read`], with the bytes of the file. Blocks.
    pub(super) fn read_now(&self, id: &ResponseId) -> io::Result<Option<(Stored, usize)>> {
        if id.age(SystemTime::now()) > self.kept_for {
            return Ok(None);
        }
        match read_own(&self.directory.join(id.to_string()), MAX_FILE) {
            Ok(content) => Ok(Stored::parse(&content).map(|stored| (stored, content.len()))),
            Err(error) if error.is_shortage() => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    /// Deletes a response. Returns whether there was one.
    pub(crate) async fn delete(self: &Arc<Self>, id: &ResponseId) -> io::Result<bool> {
        let id = id.clone();
        self.write(move |user, totals| {
            let is_known = user.read_now(&id)?.is_some();
            remove_any(&user.directory.join(id.to_string()))?;
            *totals = None;
            Ok(is_known)
        })
        .await
    }

    /// Deletes all responses of a conversation.
    pub(crate) async fn delete_of(self: &Arc<Self>, conversation: &str) -> io::Result<()> {
        let conversation = conversation.to_owned();
        self.write(move |user, totals| {
            let Some(directory) = user.open()? else { return Ok(()) };
            for (id, _) in user.list()? {
                let beginning = directory.beginning(Path::new(&id.to_string()), MAX_HEAD);
                if beginning.is_ok_and(|head| conversation_of(&head).as_deref() == Some(&*conversation)) {
                    remove_any(&user.directory.join(id.to_string()))?;
                }
            }
            user.change_heads(|heads| heads.set(&conversation, None))?;
            *totals = None;
            Ok(())
        })
        .await
    }

    /// Forgets which response was the last of a named conversation: its context is another now, so none is continued there.
    pub(crate) async fn forget_last_of(self: &Arc<Self>, conversation: &str) -> io::Result<()> {
        let conversation = conversation.to_owned();
        self.write(move |user, _| user.change_heads(|heads| heads.set(&conversation, None))).await
    }

    /// Makes `to` the last response of a named conversation; with `from`, only if that is the last one now. `None` if it
    /// is not. Atomic: of two requests that continue one response the second gets `None`.
    pub(crate) async fn advance(
        self: &Arc<Self>,
        conversation: &str,
        from: Option<&ResponseId>,
        to: &ResponseId,
    ) -> io::Result<Option<Advance>> {
        let (name, from, next) = (conversation.to_owned(), from.cloned(), to.clone());
        let former = self.write(move |user, _| {
            let mut former = None;
            let mut is_last = true;
            user.change_heads(|heads| {
                former = heads.of(&name).cloned();
                is_last = from.is_none() || former == from;
                if is_last {
                    heads.set(&name, Some(next));
                }
            })?;
            Ok(is_last.then_some(former))
        });
        let (user, conversation, id) = (self.clone(), conversation.to_owned(), to.clone());
        Ok(former.await?.map(|former| Advance { user, conversation, former, id, is_sent: false }))
    }

    pub(super) async fn forget(&self) {
        self.is_forgotten.store(true, Ordering::Release);
        // A write that has begun ends first.
        drop(self.totals.lock().await);
    }

    /// Runs `work` on a thread for work on files, one at a time for each user.
    async fn write<T: Default + Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &mut Option<Totals>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let mut totals = self.totals.clone().lock_owned().await;
        let user = self.clone();
        blocking(move || {
            if user.is_forgotten.load(Ordering::Acquire) {
                return Ok(T::default());
            }
            work(&user, &mut totals)
        })
        .await
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.directory.join(name);
        let replace = || atomic_file::replace(&path, content, Durability::Kernel);
        match replace() {
            // The first of the user, or the first after the retention sweep has emptied it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
                replace()
            }
            replaced => replaced,
        }
    }

    fn change_heads(&self, change: impl FnOnce(&mut Heads)) -> io::Result<()> {
        let path = self.directory.join(HEADS);
        // A damaged file counts as none: nothing is continued by name then.
        let content = read_own(&path, heads::MAX_FILE).unwrap_or_default();
        let mut heads: Heads = serde_json::from_slice(&content).unwrap_or_default();
        change(&mut heads);
        let changed = serde_json::to_vec(&heads)?;
        if changed == content || (content.is_empty() && heads == Heads::default()) {
            return Ok(());
        }
        self.replace(HEADS, &changed)
    }

    fn open(&self) -> io::Result<Option<Beneath>> {
        match Beneath::open(&self.directory, Path::new("")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// The responses on disk, in any order, with their bytes.
    fn list(&self) -> io::Result<Vec<(ResponseId, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if let Some(id) = entry.file_name().to_str().and_then(ResponseId::parse) {
                found.push((id, entry.metadata().map_or(0, |metadata| metadata.len())));
            }
        }
        Ok(found)
    }

    fn count(&self) -> io::Result<Totals> {
        let all = self.list()?;
        Ok(Totals { count: all.len(), bytes: all.iter().map(|(_, bytes)| bytes).sum() })
    }

    /// Removes responses that are too old, then the oldest.
    fn make_room(&self) -> io::Result<Totals> {
        let (mut all, now) = (self.list()?, SystemTime::now());
        // Ids begin with their time.
        all.sort_unstable_by_key(|(id, _)| id.to_string());
        let mut totals = Totals { count: all.len(), bytes: all.iter().map(|(_, bytes)| bytes).sum() };
        let (most, most_bytes) = (MOST * LEFT.0 / LEFT.1, MOST_BYTES * LEFT.0 as u64 / LEFT.1 as u64);
        for (id, bytes) in all {
            let is_kept = totals.count <= most && totals.bytes <= most_bytes;
            // The newest stays, whatever it has.
            if totals.count <= 1 || (is_kept && id.age(now) <= self.kept_for) {
                break;
            }
            remove_any(&self.directory.join(id.to_string()))?;
            totals.count -= 1;
            totals.bytes -= bytes;
        }
        Ok(totals)
    }
}

/// A response that has become the last of its named conversation. Dropped unsent, the former one is the last again.
#[derive(Debug)]
pub(crate) struct Advance {
    user: Arc<UserResponses>,
    conversation: String,
    former: Option<ResponseId>,
    id: ResponseId,
    is_sent: bool,
}

impl Advance {
    /// Called when the child may have received the message.
    pub(crate) fn mark_sent(&mut self) {
        self.is_sent = true;
    }

    /// Called when the message was refused before the child received anything.
    pub(crate) fn mark_unsent(&mut self) {
        self.is_sent = false;
    }

    /// Whether no response of the conversation was known before.
    pub(crate) fn is_first(&self) -> bool {
        self.former.is_none()
    }
}

impl Drop for Advance {
    fn drop(&mut self) {
        if self.is_sent {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let (user, name) = (self.user.clone(), std::mem::take(&mut self.conversation));
        let (former, id) = (self.former.take(), self.id.clone());
        runtime.spawn(async move {
            let restored = user.write(move |user, _| {
                user.change_heads(|heads| {
                    if heads.of(&name) == Some(&id) {
                        heads.set(&name, former);
                    }
                })
            });
            if let Err(error) = restored.await {
                tracing::warn!(%error, "the last response of a conversation was not stored");
            }
        });
    }
}
