//! The record directory of a session, and the name of its session directory.
//!
//! Only the server writes here: record directories are out of every child's reach. Blocking.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::data_dir::records_dir;
use super::own::read_own;
use crate::model::ids::SessionHash;
use crate::support::atomic_file::{self, Durability};

/// Longest `directory` file read: a directory name has 32 bytes.
const MAX_DIRECTORY_BYTES: u64 = 64;
/// Longest record read. A record has some kilobytes; system prompt and MCP servers are as long as their limits allow.
pub(crate) const MAX_RECORD_BYTES: u64 = 64 << 20;

/// Name of a session directory below `sessions/`: 32 random hexadecimal digits. Fixed for the life of the session: a
/// child may start in the directory before the session is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct DirectoryName(SessionHash);

impl DirectoryName {
    pub(crate) fn random() -> Self {
        let name = uuid::Uuid::new_v4().simple().to_string();
        // The simple form of a UUID always parses.
        SessionHash::parse(&name).map_or_else(Self::random, Self)
    }

    /// The name that format 1 gave to a session directory: the hash of the session key.
    pub(crate) fn of_hash(hash: &SessionHash) -> Self {
        Self(hash.clone())
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub(super) fn as_hash(&self) -> &SessionHash {
        &self.0
    }
}

impl TryFrom<String> for DirectoryName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        SessionHash::parse(&name).map(Self).ok_or("not the name of a session directory")
    }
}

impl From<DirectoryName> for String {
    fn from(name: DirectoryName) -> Self {
        name.as_str().to_owned()
    }
}

/// Directory of the server's own files about one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordDir(PathBuf);

impl RecordDir {
    pub(crate) fn of(data_dir: &Path, session: &SessionHash) -> Self {
        Self(records_dir(data_dir).join(session.as_str()))
    }

    /// The record directory at `path`.
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn session_file(&self) -> PathBuf {
        self.0.join("session.json")
    }

    /// Where an earlier program noted the last turn, instead of in the journal.
    pub(crate) fn progress_file(&self) -> PathBuf {
        self.0.join("progress")
    }

    /// What the CLI's transcript holds, once more.
    pub(crate) fn journal_file(&self) -> PathBuf {
        self.0.join("journal")
    }

    /// OAuth credentials that no child gets, in the form of the CLI's file.
    pub(super) fn credentials_file(&self) -> PathBuf {
        self.0.join("credentials.json")
    }

    /// Copy of the last unreadable record, for the operator.
    pub(crate) fn broken_file(&self) -> PathBuf {
        self.0.join("session.json.broken")
    }

    /// Second copy of the directory name: an unreadable record must not cost the user's files.
    fn directory_file(&self) -> PathBuf {
        self.0.join("directory")
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        match builder.mode(0o700).create(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => builder.recursive(true).create(&self.0),
            // What else may lie there fails whatever it is needed for.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            created => created,
        }
    }

    pub(crate) fn write_directory(&self, name: &DirectoryName) -> io::Result<()> {
        atomic_file::replace(&self.directory_file(), name.as_str().as_bytes(), Durability::Kernel)
    }

    /// Name of the session directory, if it is known.
    pub(crate) fn directory(&self) -> Option<DirectoryName> {
        self.read_directory().ok().flatten()
    }

    /// As [`Self::directory`]; `None` if it was never noted.
    ///
    /// # Errors
    /// What was noted cannot be read.
    pub(crate) fn read_directory(&self) -> io::Result<Option<DirectoryName>> {
        let name = match read_own(&self.directory_file(), MAX_DIRECTORY_BYTES) {
            Err(error) if error.is_absent() => return Ok(None),
            name => name.map_err(io::Error::from)?,
        };
        let name = String::from_utf8(name).ok().and_then(|name| name.try_into().ok());
        name.ok_or_else(|| io::ErrorKind::InvalidData.into()).map(Some)
    }

    /// Restores the owner's access to directory and record.
    pub(crate) fn restore_access(&self) -> io::Result<()> {
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700))?;
        match fs::set_permissions(self.session_file(), fs::Permissions::from_mode(0o600)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            set => set,
        }
    }
}
