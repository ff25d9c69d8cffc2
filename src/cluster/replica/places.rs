//! Where the files of a user lie in a data directory. Blocking.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::delta::Area;
use super::key::UserHash;
use super::limits::OWN_ENTRIES;
use crate::model::ids::{SessionHash, UserId};
use crate::workspace::{
    DirectoryName, RecordDir, conversations_dir, records_dir, responses_dir, sessions_dir, usage_dir,
    user_digest_long, user_dir, user_of_digest,
};

/// A path of the replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) area: Area,
    pub(crate) path: Vec<u8>,
}

impl Place {
    pub(crate) fn new(area: Area, path: impl Into<Vec<u8>>) -> Self {
        Self { area, path: path.into() }
    }
}

/// The places of one user.
#[derive(Debug, Clone)]
pub(crate) struct UserPlaces {
    data_dir: PathBuf,
    hash: UserHash,
    /// All digits of the user's digest.
    long: String,
    list: PathBuf,
}

impl UserPlaces {
    pub(crate) fn of(data_dir: &Path, user: &UserId) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            hash: UserHash::of(user),
            long: user_digest_long(user),
            list: user_dir(data_dir, user),
        }
    }

    /// The places of a user of whom only the short digest is known: without [`Self::conversations`] and [`Self::responses`].
    pub(crate) fn unnamed(data_dir: &Path, hash: UserHash) -> Option<Self> {
        Self::of_digest(data_dir, &format!("{hash}{:032}", 0))
    }

    /// The places of the user with this long digest.
    pub(crate) fn of_digest(data_dir: &Path, digest: &str) -> Option<Self> {
        let is_long = digest.len() == 64;
        let hash = digest.get(..32)?.parse().ok().filter(|_| is_long)?;
        let list = user_of_digest(data_dir, digest)?;
        Some(Self { data_dir: data_dir.to_owned(), hash, long: digest.to_owned(), list })
    }

    /// All digits of the user's digest.
    pub(crate) fn digest(&self) -> &str {
        &self.long
    }

    pub(crate) fn hash(&self) -> UserHash {
        self.hash
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The marks of the user's sessions.
    pub(crate) fn list(&self) -> &Path {
        &self.list
    }

    pub(crate) fn usage(&self) -> PathBuf {
        usage_dir(&self.data_dir).join(self.hash.to_string())
    }

    pub(crate) fn conversations(&self) -> PathBuf {
        conversations_dir(&self.data_dir).join(&self.long)
    }

    pub(crate) fn responses(&self) -> PathBuf {
        responses_dir(&self.data_dir).join(&self.long)
    }

    /// Places of the user beside the sessions: in the replica, and here.
    pub(crate) fn others(&self) -> [(&'static str, PathBuf); 4] {
        [
            ("usage", self.usage()),
            ("conversations", self.conversations()),
            ("responses", self.responses()),
            ("list", self.list.clone()),
        ]
    }

    pub(crate) fn record(&self, session: &SessionHash) -> PathBuf {
        records_dir(&self.data_dir).join(session.as_str())
    }

    /// The directory of a session's child, as its record names it.
    pub(crate) fn session(&self, session: &SessionHash) -> Option<PathBuf> {
        let name = RecordDir::of(&self.data_dir, session).directory()?;
        Some(sessions_dir(&self.data_dir).join(name.as_str()))
    }

    /// Name of that directory; `None` if none was noted.
    ///
    /// # Errors
    /// What was noted cannot be read.
    pub(crate) fn session_name(&self, session: &SessionHash) -> io::Result<Option<DirectoryName>> {
        RecordDir::of(&self.data_dir, session).read_directory()
    }

    /// The user's sessions.
    pub(crate) fn sessions(&self) -> io::Result<Vec<SessionHash>> {
        let names = names(&self.list)?;
        Ok(names.iter().filter_map(|name| SessionHash::parse(name)).collect())
    }
}

/// A directory of the server's own has more entries than [`OWN_ENTRIES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a directory of the user has more than {OWN_ENTRIES} entries")]
pub(crate) struct TooManyEntries;

/// The names in a directory of the server's own; none if it is missing. Sorted.
///
/// # Errors
/// It cannot be read, or has too many ([`TooManyEntries`]): a part of them would pass for all.
pub(crate) fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for (number, entry) in entries.enumerate() {
        if number == OWN_ENTRIES {
            return Err(io::Error::other(TooManyEntries));
        }
        // The server writes no other names.
        found.extend(entry?.file_name().into_string());
    }
    found.sort_unstable();
    Ok(found)
}
