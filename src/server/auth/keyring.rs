//! The keys in force, and how they follow their file.
//!
//! The file is read again when it has changed (looked at every second: it may be replaced by an editor, by `pilotlight
//! keys` or by a mount, and a look is one system call) and when the process is told to. A file that cannot be used
//! changes nothing but the log: better yesterday's keys than none.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::server::auth::exposure;
use crate::server::auth::keys::{Digest, Entry, KeyFileError, digest, load};
use crate::support::lock::{MutexExt, RwLockExt};
use crate::support::secret_file::FileId;

/// How soon a revoked key is refused.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Keys = HashMap<Digest, Live>;

/// A key in force.
#[derive(Clone)]
struct Live {
    entry: Arc<Entry>,
    /// Cancelled when it no longer is: requests that are being served end then.
    revoked: CancellationToken,
}

impl Live {
    /// The same key for the same role, in force before and after.
    fn goes_on_as(&self, other: &Self) -> bool {
        self.entry.digest() == other.entry.digest() && self.entry.role() == other.entry.role()
    }
}

/// Whose keys may be in force together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admits {
    /// Those of anyone.
    Anyone,
    /// Those of one user: see [`exposure`].
    OneUser,
}

/// See the module.
pub(crate) struct Keyring {
    path: PathBuf,
    admits: Admits,
    /// Random, and different in every process.
    blind: [u8; 32],
    keys: RwLock<Arc<Keys>>,
    /// The file as it was when it was last tried.
    seen: Mutex<Option<FileId>>,
    /// Asks for another look, whether the file has changed or not.
    again: Notify,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({})", self.path.display())
    }
}

impl Keyring {
    /// Reads the file as it is. Blocking.
    pub(crate) fn open(path: &Path, admits: Admits) -> Result<Self, KeyFileError> {
        let mut blind = [0; 32];
        getrandom(&mut blind, GetRandomFlags::empty()).map_err(|error| KeyFileError::Random(error.into()))?;
        let ring = Self {
            path: path.to_owned(),
            admits,
            blind,
            keys: RwLock::default(),
            seen: Mutex::default(),
            again: Notify::new(),
        };
        let (entries, stamp) = ring.load()?;
        if entries.is_empty() {
            tracing::warn!("the key file has no key: nobody is served until one is added");
        }
        ring.put(entries, stamp);
        Ok(ring)
    }

    /// What is in force.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.keys().values().map(|live| live.entry.clone()).collect()
    }

    /// The entry of a key.
    ///
    /// A look-up in a map takes a time that depends on how much of the wanted is like something there, and a caller can
    /// try what it likes. So keys are not looked up, nor their digests, but the digests' own digests together with
    /// random bytes that only this process knows: a caller cannot aim at any of them, and what the time tells about
    /// them tells nothing about a key. What is found is then compared with what was presented in constant time, and
    /// when nothing is found the same is done with an entry that fits nothing. Thus the work is the same for a right and
    /// a wrong key, and for one key and ten thousand.
    pub(crate) fn find(&self, key: &[u8]) -> Option<(Arc<Entry>, CancellationToken)> {
        let presented = digest(key);
        let keys = self.keys();
        let found = keys.get(&self.blinded(&presented));
        // All ones and all zeros would be as good: nobody can present a key with a chosen digest.
        let expected = found.map_or(&self.blind, |live| live.entry.digest());
        let is_it: bool = presented.ct_eq(expected).into();
        found.filter(|_| is_it).map(|live| (live.entry.clone(), live.revoked.clone()))
    }

    /// Asks the watcher to read the file now.
    pub(crate) fn reload(&self) {
        self.again.notify_one();
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.read_unpoisoned().clone()
    }

    fn blinded(&self, digest: &Digest) -> Digest {
        Sha256::new().chain_update(self.blind).chain_update(digest).finalize().into()
    }

    /// Puts what the changed file holds in force, as far as it may be; returns how many keys there are.
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
                     run, and nothing keeps the tools of one user from the data of another; set permissions.policy \
                     = \"deny\" or isolation.accept_none = true and start the server again"
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
        *self.keys.write_unpoisoned() = keys.clone();
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
        let now = FileId::at(&self.path).ok();
        now != *self.seen.lock_unpoisoned()
    }

    /// Reads the file if it has changed or `must` is set. Blocking.
    fn look(&self, must: bool) {
        if !must && !self.has_changed() {
            return;
        }
        match self.read() {
            Ok(keys) => tracing::info!(keys, "the key file was read again"),
            Err(error) => tracing::warn!(%error, "the keys stay as they were"),
        }
    }
}

/// Follows the file, for ever.
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
        let ring = Keyring::open(&file, Admits::Anyone).unwrap();
        for (key, entry) in &made {
            assert_eq!(ring.find(key.expose().as_bytes()).unwrap().0.id(), entry.id());
        }
        let key = made[0].0.expose();
        for wrong in
            ["", "plk_", &key.chars().take(46).collect::<String>(), &format!("{key}x"), &key.to_lowercase()]
        {
            assert!(ring.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
        // The digest, which is in the file, is not a key.
        assert!(ring.find(made[0].1.digest()).is_none());
    }

    #[test]
    fn the_file_is_followed_and_a_broken_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys");
        let (first, entry) = add(&file, Role::Admin, None, KeyLimits::default()).unwrap();
        let ring = Keyring::open(&file, Admits::Anyone).unwrap();
        let (second, _) = add(&file, Role::Admin, None, KeyLimits::default()).unwrap();
        let knows = |key: &crate::server::auth::keys::Key| ring.find(key.expose().as_bytes()).is_some();
        assert!(ring.has_changed() && !knows(&second));
        ring.look(false);
        assert!(!ring.has_changed() && knows(&second));

        let good = std::fs::read(&file).unwrap();
        std::fs::write(&file, "nonsense").unwrap();
        ring.look(false);
        assert!(knows(&first) && !ring.has_changed(), "told once, not every second");
        std::fs::remove_file(&file).unwrap();
        ring.look(false);
        assert!(knows(&first));
        atomic_file::replace(&file, &good, Durability::Kernel).unwrap();
        revoke(&file, entry.id()).unwrap();
        ring.look(false);
        assert!(!knows(&first) && knows(&second));
    }
}
