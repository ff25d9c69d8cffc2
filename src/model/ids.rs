//! Names: of users, conversations, sessions, generations and turns.
//!
//! A user id is an opaque byte string chosen by the embedding service. It never becomes a path, a label or a log
//! field: everything on disk and in logs is named by [`SessionKey::hash`].

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::support::hex;

/// Longest accepted user id or conversation name, in bytes. Long enough for an e-mail address or a signed subject,
/// short enough that a million of them fit into memory.
pub const MAX_NAME_BYTES: usize = 256;

/// The conversation of a user who does not name one.
pub const DEFAULT_CONVERSATION: &str = "default";

/// A name that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be 1 to {MAX_NAME_BYTES} bytes long, not {length}")]
pub struct InvalidName {
    what: &'static str,
    length: usize,
}

/// Who owns sessions: 1 to [`MAX_NAME_BYTES`] arbitrary bytes. Prints redacted.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<[u8]>);

impl UserId {
    /// Accepts any bytes within the length limit.
    ///
    /// # Errors
    /// [`InvalidName`] if `id` is empty or too long.
    pub fn new(id: impl AsRef<[u8]>) -> Result<Self, InvalidName> {
        checked("a user id", id.as_ref()).map(|bytes| Self(bytes.into()))
    }

    /// The bytes as they were given.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserId(redacted)")
    }
}

/// One conversation of one user: the identity of a session.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionKey {
    user: UserId,
    conversation: Arc<str>,
}

impl SessionKey {
    /// The key of `conversation` of `user`.
    ///
    /// # Errors
    /// [`InvalidName`] if the conversation's name is empty or too long.
    pub fn new(user: UserId, conversation: &str) -> Result<Self, InvalidName> {
        checked("a conversation name", conversation.as_bytes())?;
        Ok(Self { user, conversation: conversation.into() })
    }

    /// The owner.
    #[must_use]
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// The conversation's name as its user calls it.
    #[must_use]
    pub fn conversation(&self) -> &str {
        &self.conversation
    }

    /// The name of this session on disk, in markers and in logs.
    #[must_use]
    pub fn hash(&self) -> SessionHash {
        // The length goes first, so that no two keys can be cut differently into the same bytes.
        let mut digest = Sha256::new();
        digest.update((self.user.0.len() as u64).to_le_bytes());
        digest.update(&self.user.0);
        digest.update(self.conversation.as_bytes());
        let digest = digest.finalize();
        // 128 bits: no collision among any number of sessions that a disk holds.
        SessionHash(hex::encode(digest.get(..16).unwrap_or_default()))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionKey({})", self.hash())
    }
}

/// 32 hexadecimal digits that stand for a session where its key must not be seen.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionHash(String);

impl SessionHash {
    /// The hash that a directory is named by.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == 32 && text.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which start of the child a message belongs to. Messages of earlier generations are late and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Generation(pub u64);

impl Generation {
    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A turn within one instance of pilotlight; counted up, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TurnId(pub u64);

fn checked<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], InvalidName> {
    let length = bytes.len();
    if (1..=MAX_NAME_BYTES).contains(&length) { Ok(bytes) } else { Err(InvalidName { what, length }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(user: &[u8], conversation: &str) -> SessionKey {
        SessionKey::new(UserId::new(user).unwrap(), conversation).unwrap()
    }

    #[test]
    fn names_have_a_length() {
        assert!(UserId::new("").is_err());
        assert!(UserId::new([0xff; MAX_NAME_BYTES]).is_ok());
        let error = UserId::new([b'a'; MAX_NAME_BYTES + 1]).unwrap_err();
        assert_eq!(error.to_string(), "a user id must be 1 to 256 bytes long, not 257");
        assert!(SessionKey::new(UserId::new("a").unwrap(), "").is_err());
    }

    #[test]
    fn the_hash_tells_user_and_conversation_apart() {
        assert_ne!(key(b"ab", "c").hash(), key(b"a", "bc").hash());
        assert_eq!(key(b"ab", "c").hash(), key(b"ab", "c").hash());
        assert_eq!(key(b"../../etc", "x").hash().as_str().len(), 32);
    }

    #[test]
    fn debug_shows_no_name() {
        let shown = format!("{:?} {:?}", key(b"alice", "secret"), UserId::new("alice").unwrap());
        assert!(!shown.contains("alice") && !shown.contains("secret"), "{shown}");
    }
}
