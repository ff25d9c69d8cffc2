//! How many sessions a user may have. Blocks.
//!
//! Sessions outlive everything but their deletion, so a caller that names a new one with each request would fill disk
//! and lists. Counted on disk at the one moment in which a session begins, see [`super::take_up`].

use std::io;

use super::known;
use crate::config::Config;
use crate::model::ids::{DEFAULT_CONVERSATION, SessionKey};

/// Conversations that the service begins for clients without a name for them have a limit of their own
/// (`http.conversations_per_user`): as many are free, and again as many while old ones are deleted. A caller that
/// chooses such names gets no more by it.
const UNNAMED_ROOM: usize = 2;

/// Whether the session may begin. The caller sees to it that no other one begins meanwhile.
pub(super) fn has_room(config: &Config, key: &SessionKey) -> io::Result<bool> {
    if key.conversation() == DEFAULT_CONVERSATION {
        return Ok(true);
    }
    let count = known::count(&config.data_dir, key.user())?.and(key.conversation());
    let free = config.unnamed_conversations() * UNNAMED_ROOM;
    Ok(count.named + count.unnamed.saturating_sub(free) <= config.limits.sessions_per_user)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::ids::UserId;

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
            known::note(&config.data_dir, &key).unwrap();
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
}
