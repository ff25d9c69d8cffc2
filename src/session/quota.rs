//! How many sessions a user may have. Blocks.
//!
//! Sessions outlive everything but their deletion, so a caller that names a new one with each request would fill disk
//! and lists. Counted on disk, by the marks that [`super::known`] keeps, at the one moment in which a session begins.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::known;
use super::store::Record;
use crate::config::Config;
use crate::ids::{DEFAULT_CONVERSATION, SessionKey};

/// A mark without a record counts for so long: its session is on its way. Later it is what a failed start left.
const ON_ITS_WAY: Duration = Duration::from_secs(60);

/// What the names of conversations begin with that the service begins for clients without a name for them. They have a
/// limit of their own, so as many of them are free, and again as many while old ones are deleted. A caller that chooses
/// such names gets no more by it.
const UNNAMED: &str = "auto-";
const UNNAMED_ROOM: usize = 2;

/// Whether the session is there already or may begin now; then it is marked. Not for two sessions at the same time.
pub(super) fn take(config: &Config, key: &SessionKey) -> io::Result<bool> {
    let data_dir = &config.data_dir;
    if known::is_marked(data_dir, key) {
        return Ok(true);
    }
    let may_be = key.conversation() == DEFAULT_CONVERSATION
        || Record::read(data_dir, key.hash().as_str()).is_some()
        || has_room(config, key)?;
    if may_be {
        known::note(data_dir, key)?;
    }
    Ok(may_be)
}

fn has_room(config: &Config, key: &SessionKey) -> io::Result<bool> {
    let limit = config.limits.sessions_per_user;
    let directory = known::user_dir(&config.data_dir, key.user());
    let marks = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        marks => marks?.collect::<io::Result<Vec<_>>>()?,
    };
    // Far from the limit nothing else needs to be read.
    if marks.len() < limit {
        return Ok(true);
    }
    let (mut named, mut unnamed) = (0_usize, 0_usize);
    let mut count = |conversation: &str| {
        if conversation.starts_with(UNNAMED) {
            unnamed += 1;
        } else if conversation != DEFAULT_CONVERSATION {
            named += 1;
        }
    };
    count(key.conversation());
    for mark in marks {
        let record = mark.file_name().to_str().and_then(|name| Record::read(&config.data_dir, name));
        match record {
            Some((known, _)) => count(known.conversation()),
            None if is_fresh(&mark.path()) => count(""),
            // Not a session, and nobody could delete it.
            None => drop(fs::remove_file(mark.path())),
        }
    }
    let free = config.http.conversations_per_user * UNNAMED_ROOM;
    Ok(named + unnamed.saturating_sub(free) <= limit)
}

fn is_fresh(mark: &Path) -> bool {
    let modified = fs::metadata(mark).and_then(|metadata| metadata.modified());
    let age = modified.map(|modified| SystemTime::now().duration_since(modified).unwrap_or_default());
    age.is_ok_and(|age| age < ON_ITS_WAY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;
    use crate::workspace::{Durability, Workspace};

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
        let may = take(config, &key).unwrap();
        if may {
            let workspace = Workspace::of(&config.data_dir, &key.hash());
            Record::new(&key, &workspace).save(&workspace, Durability::Kernel).unwrap();
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
        assert!(begin(&config, "alice", "a"), "one that is there goes on");
        assert!(begin(&config, "bob", "c"), "of another user");
        known::forget(data.path(), &key("alice", "a")).unwrap();
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

    #[test]
    fn quota_marks_without_a_session_count_for_a_moment() {
        let data = tempfile::tempdir().unwrap();
        let config = config(data.path(), 1);
        assert!(take(&config, &key("alice", "a")).unwrap());
        assert!(!take(&config, &key("alice", "b")).unwrap());
        let mark =
            known::user_dir(data.path(), key("alice", "a").user()).join(key("alice", "a").hash().as_str());
        let file = fs::File::options().append(true).open(mark).unwrap();
        file.set_modified(SystemTime::now() - 2 * ON_ITS_WAY).unwrap();
        assert!(take(&config, &key("alice", "b")).unwrap());
    }
}
