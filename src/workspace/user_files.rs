//! The files of one user, and their deletion. A deletion that was interrupted is finished at the next start. Blocking.
//!
//! `records/.deleted-users/<digest>` exists from before the first file is removed until after the last one is.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::data_dir::{
    SHORT_DIGEST, conversations_dir, records_dir, responses_dir, sessions_dir, usage_dir, user_digest_long,
    users_dir,
};
use super::own::open_own;
use super::remove::{remove_any, remove_tree};
use super::{RecordDir, TokenIndex, Workspace};
use crate::model::ids::{SessionHash, UserId};

/// Sessions that are listed at a time. A deletion takes them in several rounds.
const MAX_LISTED: usize = 10_000;

/// The files of one user, whose name is not needed.
#[derive(Debug, Clone)]
pub(crate) struct UserFiles {
    data_dir: PathBuf,
    /// All digits.
    digest: String,
}

impl UserFiles {
    pub(crate) fn of(data_dir: &Path, user: &UserId) -> Self {
        Self { data_dir: data_dir.to_owned(), digest: user_digest_long(user) }
    }

    /// Users whose deletion is unfinished.
    pub(crate) fn unfinished(data_dir: &Path) -> Vec<Self> {
        let entries = fs::read_dir(deleted_dir(data_dir)).into_iter().flatten().flatten();
        let digest =
            |entry: fs::DirEntry| entry.file_name().into_string().ok().filter(|name| is_digest(name));
        let of = |digest| Self { data_dir: data_dir.to_owned(), digest };
        entries.filter_map(digest).map(of).collect()
    }

    /// Notes that everything is to be deleted, so that the next start finishes what is interrupted.
    pub(crate) fn begin_deletion(&self) -> io::Result<()> {
        let directory = deleted_dir(&self.data_dir);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        open_own(&directory.join(&self.digest))?;
        File::open(&directory)?.sync_all()?;
        File::open(records_dir(&self.data_dir))?.sync_all()
    }

    /// The user's sessions, as far as they are listed at once.
    pub(crate) fn sessions(&self) -> io::Result<Vec<SessionHash>> {
        let entries = match fs::read_dir(self.list()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries.take(MAX_LISTED) {
            found.extend(entry?.file_name().to_str().and_then(SessionHash::parse));
        }
        Ok(found)
    }

    /// Deletes a session of the user; its child must be gone.
    pub(crate) fn delete_session(&self, session: &SessionHash) -> io::Result<()> {
        let record = RecordDir::of(&self.data_dir, session);
        match record.directory() {
            Some(directory) => Workspace::of(&self.data_dir, session, &directory).delete()?,
            None => {
                // Format 1 named the directory by the session; a record without a directory was never used.
                remove_tree(&sessions_dir(&self.data_dir), OsStr::new(session.as_str()))?;
                remove_any(record.path())?;
            }
        }
        TokenIndex::of(&self.data_dir).settle(session)?;
        // Last: while it is listed, a repetition finds it.
        remove_any(&self.list().join(session.as_str()))
    }

    /// Deletes what is not of one session, once there are no sessions.
    pub(crate) fn delete_rest(&self) -> io::Result<()> {
        TokenIndex::of(&self.data_dir).forget(&self.digest)?;
        self.delete_rest_but_tokens()
    }

    fn delete_rest_but_tokens(&self) -> io::Result<()> {
        remove_any(&conversations_dir(&self.data_dir).join(&self.digest))?;
        remove_any(&self.responses())?;
        remove_any(&self.usage_file())?;
        remove_any(&self.list())
    }

    /// Whether there is nothing of a user but a name.
    #[cfg(feature = "cluster")]
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        let others =
            [conversations_dir(&self.data_dir).join(&self.digest), self.responses(), self.usage_file()];
        Ok(self.sessions()?.is_empty() && !others.iter().any(|path| path.exists()))
    }

    /// Deletes everything of a user without children.
    pub(crate) fn delete_all(&self) -> io::Result<usize> {
        let count = self.delete_sessions()?;
        self.delete_rest()?;
        Ok(count)
    }

    /// As [`Self::delete_all`], of a user who goes to another node of a cluster. By the tokens this node knows who calls.
    #[cfg(feature = "cluster")]
    pub(crate) fn delete_all_but_tokens(&self) -> io::Result<()> {
        self.delete_sessions()?;
        self.delete_rest_but_tokens()
    }

    fn delete_sessions(&self) -> io::Result<usize> {
        let mut count = 0;
        loop {
            let sessions = self.sessions()?;
            if sessions.is_empty() {
                break;
            }
            for session in sessions {
                self.delete_session(&session)?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Notes that nothing is left.
    pub(crate) fn end_deletion(&self) -> io::Result<()> {
        remove_any(&deleted_dir(&self.data_dir).join(&self.digest))
    }

    /// What the user has spent.
    pub(crate) fn usage_file(&self) -> PathBuf {
        usage_dir(&self.data_dir).join(self.short_digest())
    }

    /// Directory of the user's stored responses.
    pub(crate) fn responses(&self) -> PathBuf {
        responses_dir(&self.data_dir).join(&self.digest)
    }

    /// The digest as most files use it.
    pub(crate) fn short_digest(&self) -> &str {
        self.digest.get(..SHORT_DIGEST).unwrap_or_default()
    }

    fn list(&self) -> PathBuf {
        users_dir(&self.data_dir).join(self.short_digest())
    }
}

fn deleted_dir(data_dir: &Path) -> PathBuf {
    records_dir(data_dir).join(".deleted-users")
}

fn is_digest(name: &str) -> bool {
    name.len() == 2 * SHORT_DIGEST && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::super::data_dir::create_layout;
    use super::*;
    use crate::model::ids::SessionKey;
    use crate::support::atomic_file::Durability;
    use crate::workspace::DirectoryName;

    /// A user with a session and everything else.
    fn user(data_dir: &Path, name: &str) -> (UserFiles, Workspace) {
        let user = UserId::new(name).unwrap();
        let files = UserFiles::of(data_dir, &user);
        let session = SessionKey::new(user.clone(), "default").unwrap().hash();
        let workspace = Workspace::of(data_dir, &session, &DirectoryName::random());
        workspace.create().unwrap();
        workspace.record().write_directory(workspace.name()).unwrap();
        fs::write(workspace.dirs().work.join("file"), name).unwrap();
        for file in [
            files.list().join(session.as_str()),
            usage_dir(data_dir).join(files.short_digest()),
            conversations_dir(data_dir).join(&files.digest),
            files.responses().join("resp_1"),
        ] {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, name).unwrap();
        }
        let index = TokenIndex::of(data_dir);
        index.learn(&user, std::slice::from_ref(&files.digest), Durability::Kernel).unwrap();
        index.mark_renewing(&session).unwrap();
        (files, workspace)
    }

    fn paths(directory: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).unwrap().flatten() {
            found.push(entry.path());
            if entry.path().is_dir() {
                found.extend(paths(&entry.path()));
            }
        }
        found.sort();
        found
    }

    #[test]
    fn deleted_user_leaves_nothing_and_others_all() {
        let data = tempfile::tempdir().unwrap();
        create_layout(data.path()).unwrap();
        user(data.path(), "bob");
        let before = paths(data.path());
        let (alice, _) = user(data.path(), "alice");
        assert!(paths(data.path()).len() > before.len() + 8);
        alice.begin_deletion().unwrap();
        assert_eq!(UserFiles::unfinished(data.path()).len(), 1);
        assert_eq!(alice.delete_all().unwrap(), 1);
        assert_eq!(alice.delete_all().unwrap(), 0);
        alice.end_deletion().unwrap();
        let deleted = [".deleted", ".deleted-users"].map(|name| records_dir(data.path()).join(name));
        let after: Vec<_> = paths(data.path()).into_iter().filter(|path| !deleted.contains(path)).collect();
        assert_eq!(after, before);
        assert!(UserFiles::unfinished(data.path()).is_empty());
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn tokens_of_a_user_who_moves_stay() {
        let data = tempfile::tempdir().unwrap();
        create_layout(data.path()).unwrap();
        let (alice, workspace) = user(data.path(), "alice");
        alice.delete_all_but_tokens().unwrap();
        assert!(!workspace.dirs().work.exists() && alice.sessions().unwrap().is_empty());
        assert!(!alice.usage_file().exists() && !alice.responses().exists());
        let index = TokenIndex::of(data.path());
        assert_eq!(index.owner(&alice.digest), Some(UserId::new("alice").unwrap()));
        alice.delete_all().unwrap();
        assert_eq!(index.owner(&alice.digest), None);
    }

    #[test]
    fn session_without_a_directory_name_is_deleted() {
        let data = tempfile::tempdir().unwrap();
        create_layout(data.path()).unwrap();
        let (alice, workspace) = user(data.path(), "alice");
        let record = workspace.record().path().to_owned();
        fs::remove_file(record.join("directory")).unwrap();
        alice.delete_all().unwrap();
        assert!(!record.exists() && alice.sessions().unwrap().is_empty());
    }
}
