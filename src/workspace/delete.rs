//! Deletion of sessions. A deletion that was interrupted is finished at the next start. Blocking.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::data_dir::{is_full, records_dir, sessions_dir};
use super::remove::{remove_any, remove_tree};
use super::{DirectoryName, RecordDir, Workspace};

/// Record directories whose sessions are being deleted: apart from the others, so that a start looks at these alone.
fn deleted_dir(data_dir: &Path) -> PathBuf {
    records_dir(data_dir).join(".deleted")
}

/// A session that is gone, and whose files are not yet removed.
#[derive(Debug)]
#[must_use = "its files stay until the next start"]
pub(crate) struct Deleted {
    record: PathBuf,
    sessions: PathBuf,
    directory: DirectoryName,
    /// The record is where no request finds it. On a full disk it may have to stay in its place.
    pub(crate) is_hidden: bool,
}

impl Deleted {
    /// Removes the files; the next start retries what could not be removed.
    pub(crate) fn remove(self) -> io::Result<()> {
        remove_tree(&self.sessions, OsStr::new(self.directory.as_str()))?;
        remove_any(&self.record)
    }
}

impl Workspace {
    /// Deletes record and directories.
    pub(crate) fn delete(&self) -> io::Result<()> {
        self.begin_deletion()?.remove()
    }

    /// First step of a deletion: the session is gone at once.
    pub(crate) fn begin_deletion(&self) -> io::Result<Deleted> {
        let deleted = deleted_dir(self.sessions.parent().unwrap_or(Path::new("/")));
        let renamed = deleted.join(uuid::Uuid::new_v4().simple().to_string());
        let created = DirBuilder::new().recursive(true).mode(0o700).create(&deleted);
        let (record, is_hidden) = match created.and_then(|()| fs::rename(self.record.path(), &renamed)) {
            Ok(()) => (renamed, true),
            // A full disk may have no room for a new name; the directories are removed first and make room.
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_full(&error) => {
                (self.record.path().to_owned(), false)
            }
            Err(error) => return Err(error),
        };
        Ok(Deleted { record, sessions: self.sessions.clone(), directory: self.name.clone(), is_hidden })
    }
}

/// Unfinished deletions: the name of each record directory, and the session directory.
fn unfinished(data_dir: &Path) -> impl Iterator<Item = (OsString, Option<DirectoryName>)> {
    let entries = fs::read_dir(deleted_dir(data_dir)).into_iter().flatten().flatten();
    entries.map(|entry| (entry.file_name(), RecordDir::at(entry.path()).directory()))
}

/// Whether the deletion of this session directory is unfinished.
pub(super) fn is_being_deleted(data_dir: &Path, directory: &DirectoryName) -> bool {
    unfinished(data_dir).any(|(_, deleted)| deleted.as_ref() == Some(directory))
}

/// Finishes deletions. No process of a former instance may be left: it could refill the directories.
pub(crate) fn finish_deletions(data_dir: &Path) {
    let deleted = deleted_dir(data_dir);
    for (name, directory) in unfinished(data_dir) {
        let files =
            directory.map_or(Ok(()), |it| remove_tree(&sessions_dir(data_dir), OsStr::new(it.as_str())));
        if let Err(error) = files.and_then(|()| remove_tree(&deleted, &name)) {
            tracing::warn!(%error, "cannot remove the files of a deleted session");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::workspace;
    use super::*;
    use crate::model::ids::{SessionKey, UserId};

    /// A deletion that got as far as its first step.
    fn cut_short(data_dir: &Path, session: &Workspace) {
        fs::create_dir_all(deleted_dir(data_dir)).unwrap();
        fs::rename(session.record.path(), deleted_dir(data_dir).join("1")).unwrap();
    }

    #[test]
    fn deletion_follows_no_link() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("keep"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), workspace.dirs().work.join("link")).unwrap();
        workspace.delete().unwrap();
        workspace.delete().unwrap();
        assert!(!workspace.dirs().work.exists() && !workspace.record.path().exists());
        assert!(outside.path().join("keep").exists());
    }

    #[test]
    fn unfinished_deletion_spares_a_later_session() {
        let data = tempfile::tempdir().unwrap();
        let cut = workspace(data.path());
        // Of the first release, which named the directory by the session.
        let hash = SessionKey::new(UserId::new("../../etc/passwd").unwrap(), "default").unwrap().hash();
        let old = Workspace::of(data.path(), &hash, &DirectoryName::of_hash(&hash));
        old.create().unwrap();
        assert_eq!(Workspace::begin(data.path(), &hash), old, "its files are found again");
        cut.record.write_directory(&old.name).unwrap();
        cut_short(data.path(), &cut);
        // The user comes back before the next start.
        let begun = Workspace::begin(data.path(), &hash);
        begun.create().unwrap();
        finish_deletions(data.path());
        assert!(begun.dirs.work.exists() && !old.dirs.work.exists());
    }

    #[test]
    fn unfinished_deletion_is_finished_at_start() {
        let data = tempfile::tempdir().unwrap();
        let (cut, other) = (workspace(data.path()), workspace(data.path()));
        cut.record.write_directory(&cut.name).unwrap();
        cut_short(data.path(), &cut);
        finish_deletions(data.path());
        assert!(!cut.dirs.work.exists() && other.dirs.work.exists());
        assert_eq!(fs::read_dir(records_dir(data.path())).unwrap().count(), 1);
        assert_eq!(unfinished(data.path()).count(), 0);
    }
}
