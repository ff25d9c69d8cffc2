//! The data directory: its layout, its format, and its lock against a second server.
//!
//! `records/` has the server's own files, out of every child's reach. `sessions/` has a directory per session that the child
//! can write and that is not trusted. Blocking.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::migration;
use super::own::read_own;
use super::ownership::make_passable;
use crate::error::StartError;
use crate::model::ids::UserId;
use crate::support::atomic_file::{self, Durability};
use crate::support::hex;

/// Format of the data directory. Raised when an older program could misread it.
pub(crate) const FORMAT: u32 = 2;
/// Longest format file read: it has some bytes.
const MAX_FORMAT_BYTES: u64 = 64;
/// Age from which a stored response is removed, as in the original service.
pub(crate) const RESPONSES_KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// Digits of the short digest of a user: 128 bits.
pub(super) const SHORT_DIGEST: usize = 32;
/// Content of a trial write: about as much as the first turn of a session writes.
static TRIAL: [u8; 64 << 10] = [b'.'; 64 << 10];

/// Directories of the children, one per session.
pub(crate) fn sessions_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("sessions")
}

/// The server's own files: one directory per session, named by the hash of its key, and the directories below.
pub(crate) fn records_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("records")
}

/// Lists of the sessions of each user.
pub(crate) fn users_dir(data_dir: &Path) -> PathBuf {
    records_dir(data_dir).join("users")
}

/// What users have spent, one file per user.
pub(crate) fn usage_dir(data_dir: &Path) -> PathBuf {
    records_dir(data_dir).join("usage")
}

/// Name of a user in files of the server's own: nobody can tell from it who it is.
pub(crate) fn user_digest(user: &UserId) -> String {
    let mut digest = user_digest_long(user);
    digest.truncate(SHORT_DIGEST);
    digest
}

/// As [`user_digest`], whose digits it begins with.
pub(crate) fn user_digest_long(user: &UserId) -> String {
    hex::encode(&Sha256::new().chain_update("user\0").chain_update(user.as_bytes()).finalize())
}

/// List of the sessions of one user.
pub(crate) fn user_dir(data_dir: &Path, user: &UserId) -> PathBuf {
    users_dir(data_dir).join(user_digest(user))
}

/// List of the sessions of the user with this digest, short or long; `None` if it is no digest.
pub(crate) fn user_of_digest(data_dir: &Path, digest: &str) -> Option<PathBuf> {
    let is_digest = digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    Some(users_dir(data_dir).join(digest.get(..SHORT_DIGEST).filter(|_| is_digest)?))
}

/// The user id of each user's children.
pub(crate) fn uids_file(data_dir: &Path) -> PathBuf {
    records_dir(data_dir).join("uids")
}

/// Digests of OAuth tokens.
pub(crate) fn identities_dir(data_dir: &Path) -> PathBuf {
    records_dir(data_dir).join("identities")
}

/// Digests of the histories of conversations without a name.
pub(crate) fn conversations_dir(data_dir: &Path) -> PathBuf {
    records_dir(data_dir).join("conversations")
}

/// Stored responses of the Responses API, one directory per user.
pub(crate) fn responses_dir(data_dir: &Path) -> PathBuf {
    records_dir(data_dir).join("responses")
}

pub(crate) fn format_file(data_dir: &Path) -> PathBuf {
    data_dir.join("format")
}

/// A directory where the first release, which checks no format, writes a file at its start: that write must fail.
pub(super) fn bar(data_dir: &Path) -> PathBuf {
    sessions_dir(data_dir).join(".probe")
}

/// Lock of an instance on its data directory.
#[derive(Debug)]
pub(crate) struct DataDirLock {
    directory: File,
    /// The file that the first release locks. Missing on a full disk, where that release cannot create it either.
    file: Option<File>,
}

impl Drop for DataDirLock {
    fn drop(&mut self) {
        // Closing is not enough: a process that is being forked keeps the file open until its exec. An error means that
        // there was no lock.
        for file in self.file.iter().chain([&self.directory]) {
            flock(file, FlockOperation::Unlock).ok();
        }
    }
}

/// Creates and locks the data directory, and converts it to the present format. A full disk is an error only for the
/// conversion; [`try_writing`] reports it later.
pub(crate) fn open(data_dir: &Path) -> Result<DataDirLock, StartError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StartError::DataDir { path, source }
    };
    create(data_dir).map_err(failed(data_dir))?;
    let directory = lock(data_dir)?;
    let path = data_dir.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = match file {
        Err(error) if is_full(&error) => None,
        opened => Some(opened.map_err(failed(&path))?),
    };
    file.as_ref().map_or(Ok(()), |file| claim(file, data_dir))?;
    let lock = DataDirLock { directory, file };
    match format_of(data_dir)? {
        Some(FORMAT) => {}
        Some(found) => {
            return Err(StartError::DataDirFormat { path: data_dir.to_owned(), found, known: FORMAT });
        }
        None => migration::run(data_dir).map_err(failed(data_dir))?,
    }
    match create_layout(data_dir) {
        Err(error) if !is_full(&error) => Err(failed(data_dir)(error)),
        // Created later, once the disk is writable.
        _ => Ok(lock),
    }
}

/// Lets the users of children pass to their session's directories, and see nothing on the way.
pub(crate) fn let_users_pass(data_dir: &Path) -> io::Result<()> {
    make_passable(data_dir)?;
    make_passable(&sessions_dir(data_dir))
}

/// Locks a directory against servers, until the result is dropped.
pub(crate) fn lock(data_dir: &Path) -> Result<File, StartError> {
    let failed = |source| StartError::DataDir { path: data_dir.to_owned(), source };
    let directory = File::open(data_dir).map_err(failed)?;
    claim(&directory, data_dir)?;
    Ok(directory)
}

fn claim(file: &File, data_dir: &Path) -> Result<(), StartError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::DataDirLocked(data_dir.to_owned())),
        Err(errno) => Err(StartError::DataDir { path: data_dir.to_owned(), source: errno.into() }),
    }
}

/// Format of a data directory; `None` for format 1 and an empty directory.
pub(crate) fn format_of(data_dir: &Path) -> Result<Option<u32>, StartError> {
    let path = format_file(data_dir);
    let failed = |source| StartError::DataDir { path: path.clone(), source };
    let content = match read_own(&path, MAX_FORMAT_BYTES) {
        Err(error) if error.is_absent() => return Ok(None),
        read => read.map_err(|error| failed(error.into()))?,
    };
    let content = String::from_utf8_lossy(&content);
    let unknown = || failed(io::Error::new(io::ErrorKind::InvalidData, "no format number"));
    content.trim().parse().map(Some).map_err(|_| unknown())
}

/// Creates the layout. The format file is last: it ends the search for files of older formats.
pub(super) fn create_layout(data_dir: &Path) -> io::Result<()> {
    for directory in [sessions_dir(data_dir), records_dir(data_dir), bar(data_dir)] {
        create(&directory)?;
    }
    let note = bar(data_dir).join("README");
    if !note.exists() {
        let text = "This directory keeps releases without a check of the format from using newer data.\n";
        atomic_file::replace(&note, text.as_bytes(), Durability::Kernel)?;
    }
    let format = format_file(data_dir);
    if !format.exists() {
        atomic_file::replace(&format, format!("{FORMAT}\n").as_bytes(), Durability::Disk)?;
    }
    Ok(())
}

/// Checks by a trial write that sessions can be stored. Creates what was missing on a full disk.
///
/// # Errors
/// Why the write failed.
pub(crate) fn try_writing(data_dir: &Path) -> io::Result<()> {
    create_layout(data_dir)?;
    for directory in [records_dir(data_dir), sessions_dir(data_dir)] {
        let trial = directory.join(".trial");
        let written = atomic_file::replace(&trial, &TRIAL, Durability::Kernel);
        // The next trial replaces a file that stays.
        fs::remove_file(&trial).ok();
        written?;
    }
    Ok(())
}

/// Whether the disk is full or read-only.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

fn create(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(test)]
mod tests {
    use super::super::own::tests::TRAPS;
    use super::super::remove_any;
    use super::*;

    #[test]
    fn data_dir_is_locked_once() {
        let data = tempfile::tempdir().unwrap();
        let first = open(data.path()).unwrap();
        assert!(matches!(open(data.path()), Err(StartError::DataDirLocked(_))));
        drop(first);
        // The first release locks the file alone.
        let file = File::open(data.path().join("lock")).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(matches!(open(data.path()), Err(StartError::DataDirLocked(_))));
        drop(file);
        open(data.path()).unwrap();
        let file = data.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(open(&file), Err(StartError::DataDir { .. })));
    }

    #[test]
    fn unknown_format_is_refused() {
        let data = tempfile::tempdir().unwrap();
        open(data.path()).unwrap();
        assert_eq!(fs::read_to_string(format_file(data.path())).unwrap(), "2\n");
        for (content, named) in [("3\n", "format 3"), ("1", "format 1"), ("", "format"), ("x", "format")] {
            fs::write(format_file(data.path()), content).unwrap();
            let error = open(data.path()).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
            assert_eq!(fs::read_to_string(format_file(data.path())).unwrap(), content);
        }
        for set in TRAPS {
            remove_any(&format_file(data.path())).unwrap();
            set(&format_file(data.path()));
            assert!(matches!(open(data.path()), Err(StartError::DataDir { .. })));
        }
    }

    #[test]
    fn trial_write_leaves_no_file() {
        let data = tempfile::tempdir().unwrap();
        try_writing(data.path()).unwrap();
        assert_eq!(fs::read_dir(records_dir(data.path())).unwrap().count(), 0);
        assert_eq!(fs::read_dir(sessions_dir(data.path())).unwrap().count(), 1, "the bar");
    }
}
