//! Sessions that are on disk: which there are of a user, and what they were at when they left memory.
//!
//! A session's directory is named by a hash, from which nobody can tell whose it is. So there is one more, nearly empty
//! directory per user, with one file for each session, named by the same hash: what a user has is found without
//! looking at what others have. The file is empty, or one byte for a conversation that the service began for a client
//! without a name for it. Everything here blocks.

use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::SessionStatus;
use super::store::Record;
use crate::model::ids::{DEFAULT_CONVERSATION, SessionHash, SessionKey, UserId};
use crate::support::hex;
use crate::workspace::{open_own, records_dir, users_dir};

/// Sessions on disk that are looked at for one list. Reading a record takes some 30 µs.
const MOST: usize = 1000;

/// What the names of conversations begin with that the service begins for clients without a name for them.
const UNNAMED: &str = "auto-";

/// Sessions on disk, in no order.
#[derive(Debug, Default)]
pub(crate) struct OnDisk {
    pub(crate) sessions: Vec<(SessionKey, SessionStatus)>,
    /// There are more than were looked at.
    pub(crate) truncated: bool,
}

/// Notes that the user has this session.
pub(crate) fn note(data_dir: &Path, key: &SessionKey) -> io::Result<()> {
    let directory = user_dir(data_dir, key.user());
    let file = directory.join(key.hash().as_str());
    let write = || {
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let mut file = open_own(&file)?;
        if key.conversation().starts_with(UNNAMED) && file.metadata()?.len() == 0 {
            file.write_all(b"-")?;
        }
        Ok(())
    };
    // The directory may be removed between the two steps, because another session of the user is deleted.
    write().or_else(|_| write())
}

/// How many sessions a user has, by whether they have a name; the default conversation not counted. Costs a few
/// microseconds for each.
pub(crate) fn count(data_dir: &Path, user: &UserId) -> io::Result<Count> {
    let marks = match fs::read_dir(user_dir(data_dir, user)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Count::default()),
        marks => marks?,
    };
    let default = SessionKey::new(user.clone(), DEFAULT_CONVERSATION).map(|key| key.hash());
    let mut count = Count::default();
    for mark in marks {
        let mark = mark?;
        if default.as_ref().is_ok_and(|default| mark.file_name() == *default.as_str()) {
            continue;
        }
        match mark.metadata() {
            Ok(metadata) if metadata.len() > 0 => count.unnamed += 1,
            Ok(_) => count.named += 1,
            // Deleted meanwhile.
            Err(_) => {}
        }
    }
    Ok(count)
}

/// Sessions of a user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) named: usize,
    pub(crate) unnamed: usize,
}

impl Count {
    /// With one more, of this name.
    pub(crate) fn and(self, conversation: &str) -> Self {
        let unnamed = usize::from(conversation.starts_with(UNNAMED));
        Self { named: self.named + 1 - unnamed, unnamed: self.unnamed + unnamed }
    }
}

/// Notes that the user has this session no more.
pub(crate) fn forget(data_dir: &Path, key: &SessionKey) -> io::Result<()> {
    let directory = user_dir(data_dir, key.user());
    match fs::remove_file(directory.join(key.hash().as_str())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Not if the user has others.
    fs::remove_dir(directory).ok();
    Ok(())
}

/// What is on disk: of this user, or of all.
pub(crate) fn on_disk(data_dir: &Path, user: Option<&UserId>) -> io::Result<OnDisk> {
    let directory = user.map_or_else(|| records_dir(data_dir), |user| user_dir(data_dir, user));
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(OnDisk::default()),
        entries => entries?,
    };
    let mut found = OnDisk::default();
    for (count, entry) in entries.enumerate() {
        if count == MOST {
            found.truncated = true;
            break;
        }
        let name = entry?.file_name();
        // One that has no record yet, or a broken one, is found out when it is asked for.
        let known = name.to_str().and_then(SessionHash::parse).and_then(|hash| Record::read(data_dir, &hash));
        found.sessions.extend(known.map(|(key, record)| (key, SessionStatus::on_disk(&record))));
    }
    Ok(found)
}

fn user_dir(data_dir: &Path, user: &UserId) -> PathBuf {
    let digest = Sha256::new().chain_update("user\0").chain_update(user.as_bytes()).finalize();
    users_dir(data_dir).join(hex::encode(digest.get(..16).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::atomic_file::Durability;
    use crate::workspace::Workspace;

    fn session(data_dir: &Path, user: &str, conversation: &str) -> SessionKey {
        let key = SessionKey::new(UserId::new(user).unwrap(), conversation).unwrap();
        let workspace = Workspace::begin(data_dir, &key.hash());
        Record::new(&key, &workspace).save(&workspace, Durability::Kernel).unwrap();
        note(data_dir, &key).unwrap();
        key
    }

    fn conversations(data_dir: &Path, user: Option<&str>) -> Vec<String> {
        let user = user.map(|user| UserId::new(user).unwrap());
        let found = on_disk(data_dir, user.as_ref()).unwrap();
        let mut names: Vec<_> = found.sessions.iter().map(|(key, _)| key.conversation().to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_users_sessions_are_found_and_nobody_elses() {
        let data = tempfile::tempdir().unwrap();
        assert!(conversations(data.path(), Some("alice")).is_empty());
        let key = session(data.path(), "alice", "a");
        session(data.path(), "alice", "b");
        session(data.path(), "bob", "c");
        assert_eq!(conversations(data.path(), Some("alice")), ["a", "b"]);
        assert_eq!(conversations(data.path(), None), ["a", "b", "c"]);

        note(data.path(), &key).unwrap();
        forget(data.path(), &key).unwrap();
        forget(data.path(), &key).unwrap();
        assert_eq!(conversations(data.path(), Some("alice")), ["b"]);
        // Gone without having been forgotten; and a name that is none.
        fs::remove_dir_all(records_dir(data.path()).join(key.hash().as_str())).unwrap();
        for entry in fs::read_dir(records_dir(data.path())).unwrap().flatten() {
            fs::remove_file(entry.path().join("session.json")).ok();
        }
        fs::write(user_dir(data.path(), key.user()).join("..name"), "").unwrap();
        assert!(conversations(data.path(), Some("alice")).is_empty());
    }
}
