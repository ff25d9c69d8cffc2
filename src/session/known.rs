//! Sessions that are on disk: which there are of a user, and what they were at when they left memory.
//!
//! A session's directory is named by a hash, from which nobody can tell whose it is. So there is one more, nearly empty
//! directory per user, with one file for each session, named by the same hash: what a user has is found without
//! looking at what others have. The file is empty, or one byte for a conversation that the service began for a client
//! without a name for it. Everything here blocks.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::{SessionStatus, store::Record};
use crate::config::Config;
#[cfg(feature = "server")]
use crate::journal;
use crate::model::ids::{DEFAULT_CONVERSATION, SessionHash, SessionKey, UserId};
#[cfg(feature = "server")]
use crate::workspace::RecordDir;
#[cfg(feature = "server")]
use crate::workspace::open_to_read;
use crate::workspace::{TokenIndex, open_own, records_dir, user_dir};

/// Sessions on disk that are looked at for the list of one user. Reading a record takes some 30 µs.
const MOST: usize = 1000;

/// As [`MOST`], for the list of all users, which an operator alone gets.
const MOST_OF_ALL: usize = 10_000;

/// What the names of conversations begin with that the service begins for clients without a name for them.
const UNNAMED: &str = "auto-";

/// Sessions on disk, in no order, and whether there are more than were looked at.
pub(crate) type OnDisk = (Vec<(SessionKey, SessionStatus)>, bool);

/// Notes that the user has this session.
pub(crate) fn note(data_dir: &Path, key: &SessionKey) -> io::Result<()> {
    let directory = user_dir(data_dir, key.user());
    let file = directory.join(key.hash().as_str());
    // At every start but the first it is there.
    let is_marked = |found: fs::Metadata| found.is_file() && (found.len() > 0 || !is_unnamed(key));
    if file.symlink_metadata().is_ok_and(is_marked) {
        return Ok(());
    }
    let write = || {
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let mut file = open_own(&file)?;
        if is_unnamed(key) && file.metadata()?.len() == 0 {
            file.write_all(b"-")?;
        }
        Ok(())
    };
    // The directory may be removed between the two steps, because another session of the user is deleted.
    write().or_else(|_| write())
}

/// Whether the service began the conversation for a client without a name for it.
pub(super) fn is_unnamed(key: &SessionKey) -> bool {
    key.conversation().starts_with(UNNAMED)
}

/// Whether the session counts for `sessions_per_user`.
pub(crate) fn is_counted(key: &SessionKey) -> bool {
    !is_unnamed(key) && key.conversation() != DEFAULT_CONVERSATION
}

/// Whether the session may begin: those of its user are counted, the default conversation aside. Sessions outlive
/// everything but their deletion, so a caller that names a new one with each request would fill disk and lists. The
/// caller sees to it that no other one begins meanwhile.
pub(super) fn has_room(config: &Config, key: &SessionKey) -> io::Result<bool> {
    if key.conversation() == DEFAULT_CONVERSATION {
        return Ok(true);
    }
    let default = SessionKey::new(key.user().clone(), DEFAULT_CONVERSATION).map(|key| key.hash());
    let is_default = |name: &OsStr| default.as_ref().is_ok_and(|default| name == default.as_str());
    // This one counts already.
    let mut unnamed = usize::from(is_unnamed(key));
    let mut named = 1 - unnamed;
    for mark in entries(&user_dir(&config.data_dir, key.user()))?.into_iter().flatten() {
        let mark = mark?;
        // Without metadata it was deleted meanwhile.
        match mark.metadata() {
            _ if is_default(&mark.file_name()) => {}
            Ok(metadata) if metadata.len() > 0 => unnamed += 1,
            Ok(_) => named += 1,
            Err(_) => {}
        }
    }
    Ok(named + unnamed.saturating_sub(config.unnamed_room()) <= config.limits.sessions_per_user)
}

/// Whether a session of the user holds an answer, or may hold one.
#[cfg(feature = "server")]
pub(crate) fn has_answer(data_dir: &Path, user: &UserId) -> io::Result<bool> {
    for mark in entries(&user_dir(data_dir, user))?.into_iter().flatten() {
        let Some(hash) = mark?.file_name().to_str().and_then(SessionHash::parse) else { continue };
        let is_unanswered = match Record::read(data_dir, &hash) {
            // A record that is behind its journal was not saved before a kill.
            Some((_, record)) => !record.answered && record.turns >= turns_in_journal(data_dir, &hash),
            // One without a record has not begun; one that cannot be read may hold anything.
            None => !RecordDir::of(data_dir, &hash).session_file().exists(),
        };
        let is_unanswered = is_unanswered && !RecordDir::of(data_dir, &hash).broken_file().exists();
        if !is_unanswered {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(feature = "server")]
fn turns_in_journal(data_dir: &Path, hash: &SessionHash) -> u64 {
    let journal = open_to_read(&RecordDir::of(data_dir, hash).journal_file()).ok();
    let mark = journal.and_then(|file| journal::load(&file).ok().flatten());
    mark.map_or(0, |(mark, _)| mark.turns)
}

/// The entries of a directory; `None` if there is none.
fn entries(directory: &Path) -> io::Result<Option<fs::ReadDir>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        entries => entries.map(Some),
    }
}

/// Notes that the user has this session no more.
pub(crate) fn forget(data_dir: &Path, key: &SessionKey) -> io::Result<()> {
    take_off(data_dir, &user_dir(data_dir, key.user()), &key.hash())
}

fn take_off(data_dir: &Path, list: &Path, hash: &SessionHash) -> io::Result<()> {
    match fs::remove_file(list.join(hash.as_str())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    TokenIndex::of(data_dir).settle(hash)?;
    // Not if the user has others.
    fs::remove_dir(list).ok();
    Ok(())
}

/// Removes a session without a record from the list of its user: a program that was killed had deleted it, or begun it, and
/// nothing else is left. The caller sees to it that it does not begin meanwhile.
pub(crate) fn forget_gone(data_dir: &Path, list: &Path, hash: &SessionHash) -> io::Result<()> {
    match records_dir(data_dir).join(hash.as_str()).symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => take_off(data_dir, list, hash),
        _ => Ok(()),
    }
}

/// What is on disk: of this user, or of all.
pub(crate) fn on_disk(data_dir: &Path, user: Option<&UserId>) -> io::Result<OnDisk> {
    let directory = user.map_or_else(|| records_dir(data_dir), |user| user_dir(data_dir, user));
    let most = if user.is_none() { MOST_OF_ALL } else { MOST };
    let mut sessions = Vec::new();
    for (count, entry) in entries(&directory)?.into_iter().flatten().enumerate() {
        if count == most {
            return Ok((sessions, true));
        }
        let name = entry?.file_name();
        // One that has no record yet, or a broken one, is found out when it is asked for.
        let known = name.to_str().and_then(SessionHash::parse).and_then(|hash| Record::read(data_dir, &hash));
        sessions.extend(known.map(|(key, record)| (key, SessionStatus::on_disk(&record))));
    }
    Ok((sessions, false))
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
        let mut names: Vec<_> = found.0.iter().map(|(key, _)| key.conversation().to_owned()).collect();
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

    /// A killed program had deleted the session, and not yet taken it from the list.
    #[test]
    fn listed_session_without_a_record_is_forgotten() {
        let data = tempfile::tempdir().unwrap();
        let (gone, kept) = (session(data.path(), "alice", "a"), session(data.path(), "alice", "b"));
        let list = user_dir(data.path(), gone.user());
        fs::remove_dir_all(records_dir(data.path()).join(gone.hash().as_str())).unwrap();
        for key in [&gone, &kept, &gone] {
            forget_gone(data.path(), &list, &key.hash()).unwrap();
        }
        let left: Vec<_> = fs::read_dir(&list).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, [OsStr::new(kept.hash().as_str())]);
        fs::remove_dir_all(records_dir(data.path()).join(kept.hash().as_str())).unwrap();
        forget_gone(data.path(), &list, &kept.hash()).unwrap();
        assert!(!list.exists(), "nothing is left of its user");
    }

    fn config(data_dir: &Path, limit: usize) -> Config {
        let mut config = Config::new(data_dir);
        config.limits.sessions_per_user = limit;
        config.http.conversations_per_user = 1;
        config
    }

    fn key(user: &str, conversation: &str) -> SessionKey {
        SessionKey::new(UserId::new(user).unwrap(), conversation).unwrap()
    }

    fn begin(config: &Config, user: &str, conversation: &str) -> bool {
        let key = key(user, conversation);
        let may = has_room(config, &key).unwrap();
        if may {
            note(&config.data_dir, &key).unwrap();
        }
        may
    }

    #[test]
    fn quota_named_sessions_of_each_user_count() {
        let data = tempfile::tempdir().unwrap();
        let config = config(data.path(), 2);
        assert!(begin(&config, "alice", DEFAULT_CONVERSATION));
        assert!(begin(&config, "alice", "a") && begin(&config, "alice", "b"));
        assert!(!begin(&config, "alice", "c"));
        assert!(begin(&config, "bob", "c"), "of another user");
        forget(data.path(), &key("alice", "a")).unwrap();
        assert!(begin(&config, "alice", "c") && !begin(&config, "alice", "d"));
    }

    #[test]
    fn quota_unnamed_sessions_have_their_own_room() {
        let data = tempfile::tempdir().unwrap();
        let config = config(data.path(), 1);
        assert!(begin(&config, "alice", "a"));
        assert!(begin(&config, "alice", "auto-1") && begin(&config, "alice", "auto-2"));
        assert!(!begin(&config, "alice", "auto-3"), "a name alone makes no room");
        assert!(!begin(&config, "alice", "b"));
    }
}
