//! The keys in force, which follow their file.
//!
//! The file is checked every second, because editors, `pilotlight keys` and mounts replace it, and on request. An
//! invalid file is logged and leaves the former keys in force.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::server::auth::exposure;
use crate::server::auth::keys::{Digest, Entry, KeyFileError, digest, load};
use crate::support::lock::MutexExt;
use crate::support::secret_file::FileId;

/// Interval of checks, within which a revoked key is refused.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Keys = HashMap<Digest, Live>;

#[derive(Clone)]
struct Live {
    entry: Arc<Entry>,
    /// Cancelled with the key; ends its requests in progress.
    revoked: CancellationToken,
}

impl Live {
    /// Whether the key stays in force with the same role.
    fn goes_on_as(&self, other: &Self) -> bool {
        self.entry.digest() == other.entry.digest() && self.entry.role() == other.entry.role()
    }
}

/// Which keys may be in force together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admits {
    Anyone,
    /// Keys of one user only: see [`exposure`].
    OneUser,
}

/// The keys in force and their file.
pub(crate) struct Keyring {
    path: PathBuf,
    admits: Admits,
    blind: [u8; 32],
    keys: Mutex<Arc<Keys>>,
    /// Whether the file could not be used at the last attempt, so that keys that were taken out of it are still in force.
    is_unusable: AtomicBool,
    /// State of the file at the last attempt.
    seen: Mutex<Option<FileId>>,
    /// Requests a check, also of an unchanged file.
    again: Notify,
}

impl Keyring {
    /// Loads the file. Blocking.
    pub(crate) fn open(path: &Path) -> Result<Self, KeyFileError> {
        let mut blind = [0; 32];
        getrandom(&mut blind, GetRandomFlags::empty()).map_err(|error| KeyFileError::Random(error.into()))?;
        let ring = Self {
            path: path.to_owned(),
            admits: Admits::OneUser,
            blind,
            keys: Mutex::default(),
            is_unusable: AtomicBool::new(false),
            seen: Mutex::default(),
            again: Notify::new(),
        };
        let (entries, stamp) = ring.load()?;
        if entries.is_empty() {
            tracing::warn!("the key file has no key: no caller is served until one is added");
        }
        ring.put(entries, stamp);
        Ok(ring)
    }

    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.keys().values().map(|live| live.entry.clone()).collect()
    }

    /// Finds the entry of a key in constant time.
    ///
    /// A map lookup takes a time that depends on similar entries, and a caller may probe it. So keys are looked up by a
    /// digest of their digest with random bytes of this process: a caller cannot choose it, and its timing reveals
    /// nothing about a key. The found entry, or a dummy, is then compared with the presented key in constant time. The
    /// work is the same for valid and invalid keys and for any number of keys.
    pub(crate) fn find(&self, key: &[u8]) -> Option<(Arc<Entry>, CancellationToken)> {
        let presented = digest(key);
        let keys = self.keys();
        let found = keys.get(&self.blinded(&presented));
        // Any constant works: no key with a chosen digest can be presented.
        let expected = found.map_or(&self.blind, |live| live.entry.digest());
        let is_it: bool = presented.ct_eq(expected).into();
        found.filter(|_| is_it).map(|live| (live.entry.clone(), live.revoked.clone()))
    }

    /// Which keys of a changed file are put in force. [`Admits::OneUser`] unless set.
    pub(crate) fn admitting(self, admits: Admits) -> Self {
        Self { admits, ..self }
    }

    /// Requests a reload by the watcher.
    pub(crate) fn reload(&self) {
        self.again.notify_one();
    }

    pub(crate) fn is_unusable(&self) -> bool {
        self.is_unusable.load(Ordering::Relaxed)
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.lock_unpoisoned().clone()
    }

    fn blinded(&self, digest: &Digest) -> Digest {
        Sha256::new().chain_update(self.blind).chain_update(digest).finalize().into()
    }

    /// Puts the keys of the changed file in force, within [`Admits`]; returns their number.
    fn read(&self) -> Result<usize, KeyFileError> {
        let (mut entries, stamp) = self.load()?;
        if self.admits == Admits::OneUser {
            let in_force = self.keys();
            let known = |entry: &Entry| {
                let same = in_force.get(&self.blinded(entry.digest()));
                same.is_some_and(|same| same.entry.role() == entry.role())
            };
            let (kept, left_out) = exposure::narrow(entries, known);
            entries = kept;
            if left_out > 0 {
                tracing::warn!(
                    keys = left_out,
                    "new keys of the key file are refused: with them there would be more than one user whose tools \
                     run, and nothing keeps the tools of one user from the data of another; `pilotlight check` names \
                     the missing rungs of isolation; else set permissions.policy = \"deny\" or \
                     isolation.accept_none = true, and start the server again"
                );
            }
        }
        let count = entries.len();
        self.put(entries, stamp);
        Ok(count)
    }

    fn load(&self) -> Result<(Vec<Entry>, FileId), KeyFileError> {
        load(&self.path).inspect_err(|_| self.saw(FileId::at(&self.path).ok()))
    }

    fn put(&self, entries: Vec<Entry>, stamp: FileId) {
        let before = self.keys();
        let live = |entry: Entry| {
            let name = self.blinded(entry.digest());
            let mut live = Live { entry: Arc::new(entry), revoked: CancellationToken::new() };
            if let Some(former) = before.get(&name).filter(|former| live.goes_on_as(former)) {
                live.revoked = former.revoked.clone();
            }
            (name, live)
        };
        let keys: Arc<Keys> = Arc::new(entries.into_iter().map(live).collect());
        *self.keys.lock_unpoisoned() = keys.clone();
        self.saw(Some(stamp));
        for (name, former) in before.iter() {
            if !keys.get(name).is_some_and(|now| now.goes_on_as(former)) {
                former.revoked.cancel();
            }
        }
    }

    fn saw(&self, stamp: Option<FileId>) {
        *self.seen.lock_unpoisoned() = stamp;
    }

    fn has_changed(&self) -> bool {
        FileId::at(&self.path).ok() != *self.seen.lock_unpoisoned()
    }

    /// Reloads a changed file, or any file with `must`. Blocking.
    fn look(&self, must: bool) {
        if !must && !self.has_changed() {
            return;
        }
        let read = self.read();
        self.is_unusable.store(read.is_err(), Ordering::Relaxed);
        match read {
            Ok(keys) => tracing::info!(keys, "the key file was read again"),
            Err(error) => tracing::warn!(%error, "the keys stay as they were"),
        }
    }
}

/// Follows the file until cancelled.
pub(crate) async fn watch(ring: Arc<Keyring>) {
    loop {
        let must = tokio::time::timeout(LOOK_EVERY, ring.again.notified()).await.is_ok();
        let looking = ring.clone();
        if tokio::task::spawn_blocking(move || looking.look(must)).await.is_err() {
            tracing::error!("reading the key file failed; the keys stay as they were");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::auth::keys::{KeyLimits, Role, add, revoke};
    use crate::support::atomic_file::{self, Durability};

    #[test]
    fn only_whole_keys_of_the_file_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys");
        let made: Vec<_> =
            (0..3).map(|_| add(&file, Role::Service, None, KeyLimits::default()).unwrap()).collect();
        let ring = Keyring::open(&file).map(|ring| ring.admitting(Admits::Anyone)).unwrap();
        for (key, entry) in &made {
            assert_eq!(ring.find(key.expose().as_bytes()).unwrap().0.id(), entry.id());
        }
        let key = made[0].0.expose();
        for wrong in
            ["", "plk_", &key.chars().take(46).collect::<String>(), &format!("{key}x"), &key.to_lowercase()]
        {
            assert!(ring.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
        // The digest in the file is not a key.
        assert!(ring.find(made[0].1.digest()).is_none());
    }

    #[test]
    fn file_is_followed_and_invalid_one_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys");
        let (first, entry) = add(&file, Role::Admin, None, KeyLimits::default()).unwrap();
        let ring = Keyring::open(&file).map(|ring| ring.admitting(Admits::Anyone)).unwrap();
        let (second, _) = add(&file, Role::Admin, None, KeyLimits::default()).unwrap();
        let knows = |key: &crate::server::auth::keys::Key| ring.find(key.expose().as_bytes()).is_some();
        assert!(ring.has_changed() && !knows(&second));
        ring.look(false);
        assert!(!ring.has_changed() && knows(&second));

        let good = std::fs::read(&file).unwrap();
        std::fs::write(&file, "nonsense").unwrap();
        ring.look(false);
        assert!(knows(&first) && !ring.has_changed(), "reported once, not every second");
        assert!(ring.is_unusable());
        std::fs::remove_file(&file).unwrap();
        ring.look(false);
        assert!(knows(&first));
        atomic_file::replace(&file, &good, Durability::Kernel).unwrap();
        revoke(&file, entry.id()).unwrap();
        ring.look(false);
        assert!(!knows(&first) && knows(&second) && !ring.is_unusable());
    }
}
