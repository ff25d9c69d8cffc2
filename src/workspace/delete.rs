//! Deletion of sessions. A deletion that was interrupted is finished at the next start. Blocking.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::Path;

use super::data_dir::{is_full, records_dir, sessions_dir};
use super::remove::remove_tree;
use super::{DirectoryName, RecordDir, Workspace};

/// Prefix of the name of a record directory whose session is being deleted.
const DELETED: &str = ".deleted-";

impl Workspace {
    /// Deletes record and directories. The session is gone at once; the next start retries what could not be removed.
    pub(crate) fn delete(&self) -> io::Result<()> {
        let records = self.record.path().parent().unwrap_or(Path::new("/"));
        let renamed = format!("{DELETED}{}", uuid::Uuid::new_v4().simple());
        let record = match fs::rename(self.record.path(), records.join(&renamed)) {
            Ok(()) => OsStr::new(&renamed),
            // A full disk may have no room for a new name; the directories are removed first and make room.
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_full(&error) => {
                self.record.path().file_name().unwrap_or_default()
            }
            Err(error) => return Err(error),
        };
        remove_tree(&self.sessions, OsStr::new(self.name.as_str()))?;
        remove_tree(records, record)
    }
}

/// Unfinished deletions: the name of each record directory, and the session directory.
fn unfinished(data_dir: &Path) -> impl Iterator<Item = (OsString, Option<DirectoryName>)> {
    let entries = fs::read_dir(records_dir(data_dir)).into_iter().flatten().flatten();
    let deleted =
        entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(DELETED.as_bytes()));
    deleted.map(|entry| (entry.file_name(), RecordDir::at(entry.path()).directory()))
}

/// Whether the deletion of this session directory is unfinished.
pub(super) fn is_being_deleted(data_dir: &Path, directory: &DirectoryName) -> bool {
    unfinished(data_dir).any(|(_, deleted)| deleted.as_ref() == Some(directory))
}

/// Finishes deletions. No process of a former instance may be left: it could refill the directories.
pub(crate) fn finish_deletions(data_dir: &Path) {
    let records = records_dir(data_dir);
    for (name, directory) in unfinished(data_dir) {
        let files =
            directory.map_or(Ok(()), |it| remove_tree(&sessions_dir(data_dir), OsStr::new(it.as_str())));
        if let Err(error) = files.and_then(|()| remove_tree(&records, &name)) {
            tracing::warn!(%error, "cannot remove the files of a deleted session");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::workspace;
    use super::*;
    use crate::model::ids::{SessionKey, UserId};

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
        fs::rename(cut.record.path(), records_dir(data.path()).join(".deleted-1")).unwrap();
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
        fs::rename(cut.record.path(), records_dir(data.path()).join(".deleted-1")).unwrap();
        finish_deletions(data.path());
        assert!(!cut.dirs.work.exists() && other.dirs.work.exists());
        assert_eq!(fs::read_dir(records_dir(data.path())).unwrap().count(), 0);
    }
}
