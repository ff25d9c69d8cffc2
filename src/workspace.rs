//! The files of a session: its record, which only the server writes, and the directories of its child.
//!
//! All paths of a child come from [`Workspace`]: the CLI names its transcripts by its working directory. Everything here
//! blocks; async callers use [`tokio::task::spawn_blocking`].

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::Dirs;
use crate::model::ids::SessionHash;

pub(crate) mod beneath;
mod cli_files;
#[cfg(feature = "server")]
mod copy;
mod credentials;
mod data_dir;
mod delete;
mod leftovers;
mod migration;
mod own;
mod ownership;
mod record_dir;
mod remove;
mod spare_dirs;
mod sweep;
pub(crate) mod template;
mod token_index;
mod usage;
pub(crate) mod user_env;
mod user_files;

use beneath::Beneath;
#[cfg(feature = "server")]
use beneath::ChildDir;
#[cfg(feature = "server")]
pub use copy::Copied;
#[cfg(feature = "server")]
pub(crate) use copy::{Links, TreeCopy, is_left_out};
#[cfg(feature = "server")]
pub(crate) use credentials::CredentialsFile;
pub(crate) use credentials::CredentialsPlace;
#[cfg(feature = "broker")]
pub(crate) use credentials::OauthStore;
pub(crate) use data_dir::{
    DataDirLock, RESPONSES_KEPT_FOR, conversations_dir, let_users_pass, open, records_dir, responses_dir,
    sessions_dir, try_writing, uids_file, usage_dir, user_digest, user_dir, user_of_digest, users_dir,
};
#[cfg(feature = "cluster")]
pub(crate) use data_dir::{FORMAT, is_full};
#[cfg(feature = "server")]
pub(crate) use data_dir::{format_file, format_of, lock, user_digest_long};
pub(crate) use delete::{Deleted, finish_deletions};
#[cfg(test)]
pub(crate) use own::tests::TRAPS;
pub(crate) use own::{open_own, open_to_read, read_own};
pub(crate) use ownership::{Owner, make_passable};
pub(crate) use record_dir::{DirectoryName, MAX_RECORD_BYTES, RecordDir};
pub(crate) use remove::{RemovalLimit, remove_any};
pub(crate) use spare_dirs::{forget_spare, remove_spare, sweep_spares};
pub(crate) use token_index::TokenIndex;
pub(crate) use usage::{Usage, UsageLimits};
pub(crate) use user_files::UserFiles;

/// The record and the directories of one session. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workspace(Arc<Paths>);

/// The paths of a [`Workspace`]: once for all that refer to them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Paths {
    record: RecordDir,
    sessions: PathBuf,
    name: DirectoryName,
    dirs: Dirs,
}

impl Deref for Workspace {
    type Target = Paths;

    fn deref(&self) -> &Paths {
        &self.0
    }
}

impl Workspace {
    /// The paths of a session; creates nothing.
    pub(crate) fn of(data_dir: &Path, session: &SessionHash, directory: &DirectoryName) -> Self {
        let sessions = sessions_dir(data_dir);
        let root = sessions.join(directory.as_str());
        let dirs = Dirs { work: root.join("work"), home: root.join("home"), tmp: root.join("tmp") };
        let record = RecordDir::of(data_dir, session);
        Self(Arc::new(Paths { record, sessions, name: directory.clone(), dirs }))
    }

    /// The workspace of a session on disk.
    #[cfg(feature = "server")]
    pub(crate) fn known(data_dir: &Path, session: &SessionHash) -> Option<Self> {
        let directory = RecordDir::of(data_dir, session).directory()?;
        Some(Self::of(data_dir, session, &directory))
    }

    /// The workspace of a session without a record: reuses an existing session directory.
    pub(crate) fn begin(data_dir: &Path, session: &SessionHash) -> Self {
        let name = Self::begun(data_dir, session).unwrap_or_else(DirectoryName::random);
        Self::of(data_dir, session, &name)
    }

    /// The directory of a session without a record, if it has one.
    pub(crate) fn begun(data_dir: &Path, session: &SessionHash) -> Option<DirectoryName> {
        let named = RecordDir::of(data_dir, session).directory();
        // Format 1 named the directory by the session, also before it wrote a record.
        let old = || {
            let name = DirectoryName::of_hash(session);
            let exists = sessions_dir(data_dir).join(name.as_str()).is_dir();
            (exists && !delete::is_being_deleted(data_dir, &name)).then_some(name)
        };
        named.or_else(old)
    }

    pub(crate) fn dirs(&self) -> &Dirs {
        &self.0.dirs
    }

    pub(crate) fn name(&self) -> &DirectoryName {
        &self.name
    }

    pub(crate) fn record(&self) -> &RecordDir {
        &self.record
    }

    /// Creates missing directories, mode 0700. Replaces anything else that a child put in their place.
    pub(crate) fn create(&self) -> io::Result<()> {
        self.create_if_missing().map(drop)
    }

    /// As [`Workspace::create`]. Returns whether the session directory is new: then nothing has been in it.
    pub(crate) fn create_if_missing(&self) -> io::Result<bool> {
        self.record.create()?;
        self.create_dirs()
    }

    /// As [`Workspace::create_if_missing`], without the record.
    fn create_dirs(&self) -> io::Result<bool> {
        let (sessions, name) = (Beneath::open(&self.sessions, Path::new(""))?, Path::new(self.name.as_str()));
        let is_new = sessions.make_new(name)?;
        let own = sessions.make_dir(name)?;
        for name in ["work", "home", "tmp"] {
            own.make_dir(Path::new(name))?;
        }
        Ok(is_new)
    }

    /// Opens the session directory. The child can write everything in it.
    pub(crate) fn beneath(&self) -> io::Result<Beneath> {
        Beneath::open(&self.sessions, Path::new(self.name.as_str()))
    }

    /// The location of the working directory.
    #[cfg(feature = "server")]
    pub(crate) fn work(&self) -> ChildDir {
        ChildDir { trusted: self.sessions.clone(), inner: Path::new(self.name.as_str()).join("work") }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::model::ids::{SessionKey, UserId};

    pub(super) fn workspace(data_dir: &Path) -> Workspace {
        let key = SessionKey::new(UserId::new("../../etc/passwd").unwrap(), "default").unwrap();
        data_dir::create_layout(data_dir).unwrap();
        let workspace = Workspace::of(data_dir, &key.hash(), &DirectoryName::random());
        workspace.create().unwrap();
        workspace
    }

    #[test]
    fn only_a_directory_that_was_not_there_is_new() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        fs::remove_dir_all(workspace.dirs.work.parent().unwrap()).unwrap();
        assert!(workspace.create_if_missing().unwrap());
        assert!(!workspace.create_if_missing().unwrap());
        // A child may leave anything in its place.
        let own = workspace.dirs.work.parent().unwrap();
        fs::remove_dir_all(own).unwrap();
        std::os::unix::fs::symlink("/", own).unwrap();
        assert!(!workspace.create_if_missing().unwrap());
        assert!(fs::symlink_metadata(own).unwrap().is_dir());
    }

    #[test]
    fn workspace_is_below_the_data_dir_and_private() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let dirs = workspace.dirs();
        for dir in [dirs.work.as_path(), &dirs.home, &dirs.tmp, workspace.record.path()] {
            assert!(dir.canonicalize().unwrap().starts_with(data.path().canonicalize().unwrap()));
            assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
        }
        assert!(!workspace.record.path().starts_with(&workspace.sessions));
    }

    #[test]
    fn create_replaces_a_link_by_a_directory() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let elsewhere = tempfile::tempdir().unwrap();
        for directory in [&workspace.dirs.work, &workspace.dirs.home] {
            fs::remove_dir(directory).unwrap();
            std::os::unix::fs::symlink(elsewhere.path(), directory).unwrap();
        }
        workspace.create().unwrap();
        for directory in [&workspace.dirs.work, &workspace.dirs.home] {
            assert!(fs::symlink_metadata(directory).unwrap().is_dir());
        }
        assert!(elsewhere.path().exists());
    }
}
