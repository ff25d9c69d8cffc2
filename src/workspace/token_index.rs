//! The users of OAuth tokens: a file per token, found by its digest, however many there are.
//!
//! `tokens/<digest>` holds the user. `users/<digest of the user>/` lists the tokens of a user, each name with a number, so
//! that the oldest are known. A token is listed before it is found, and removed before its name: none is left when a
//! user is forgotten, also after a crash. `renewing/<session>` marks sessions whose child may have renewed its tokens.
//! `new/<digest of the user>` holds a user who came with unknown tokens and has no answer yet. Blocking.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
#[cfg(feature = "server")]
use std::time::SystemTime;

use super::data_dir::{identities_dir, user_digest_long};
use super::own::{open_own, read_own};
use super::remove::remove_any;
use crate::model::ids::{SessionHash, UserId};
use crate::support::atomic_file::{self, Durability};
use crate::support::hex;

/// Tokens of one user: the current pair and the two before, for requests in progress.
pub(crate) const TOKENS_PER_USER: usize = 6;
/// Longest file of a token: 256 bytes of user, in hexadecimal.
const MAX_FILE_BYTES: u64 = 512;
/// Entries read of a user's list. It has at most two more than [`TOKENS_PER_USER`].
const MAX_LISTED: usize = 64;

/// A digest in hexadecimal.
pub(crate) type TokenName = String;

/// The index of one data directory. Changes need the caller's lock.
#[derive(Debug, Clone)]
pub(crate) struct TokenIndex {
    directory: PathBuf,
}

impl TokenIndex {
    pub(crate) fn of(data_dir: &Path) -> Self {
        Self { directory: identities_dir(data_dir) }
    }

    /// Whose token it is.
    pub(crate) fn owner(&self, token: &str) -> Option<UserId> {
        user_in(&self.tokens().join(token))
    }

    /// Records tokens of `user`, except those of other users. Returns the tokens that became too many.
    pub(crate) fn learn(
        &self,
        user: &UserId,
        tokens: &[TokenName],
        durability: Durability,
    ) -> io::Result<Vec<TokenName>> {
        let news: Vec<_> = tokens.iter().filter(|token| self.owner(token).is_none()).collect();
        if news.is_empty() {
            return Ok(Vec::new());
        }
        let name = user_digest_long(user);
        let list = self.list_of(&name);
        for directory in [&list, &self.tokens()] {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let mut listed = listed(&list)?;
        let next = listed.last().map_or(0, |last| last.number + 1);
        let news: Vec<_> =
            (next..).zip(news).map(|(number, token)| Listed { number, token: token.clone() }).collect();
        for entry in &news {
            open_own(&list.join(entry.name()))?;
        }
        let sync =
            |path: &Path| if durability == Durability::Disk { File::open(path)?.sync_all() } else { Ok(()) };
        sync(&list)?;
        let content = hex::encode(user.as_bytes());
        for entry in &news {
            let file = self.tokens().join(&entry.token);
            atomic_file::replace(&file, content.as_bytes(), Durability::Kernel)?;
            // After the rename: a file without content is that of an unknown token.
            sync(&file)?;
        }
        sync(&self.tokens())?;
        listed.extend(news);
        let old = listed.len().saturating_sub(TOKENS_PER_USER);
        let old: Vec<_> = listed.drain(..old).collect();
        for entry in &old {
            self.remove(&list, entry, &name)?;
        }
        Ok(old.into_iter().map(|entry| entry.token).collect())
    }

    /// Removes all tokens of the user with this digest.
    pub(crate) fn forget(&self, user: &str) -> io::Result<()> {
        let list = self.list_of(user);
        loop {
            let found = listed(&list)?;
            if found.is_empty() {
                remove_any(&list)?;
                // Last: until then the user is found again after a crash.
                return remove_any(&self.new_users().join(user));
            }
            for entry in &found {
                self.remove(&list, entry, user)?;
            }
        }
    }

    /// Removes a token that is listed, unless it belongs to another user by now.
    fn remove(&self, list: &Path, entry: &Listed, user: &str) -> io::Result<()> {
        if self.owner(&entry.token).is_none_or(|owner| user_digest_long(&owner) == user) {
            remove_any(&self.tokens().join(&entry.token))?;
        }
        remove_any(&list.join(entry.name()))
    }

    /// Notes a user who came with unknown tokens. Before anything else is stored of the user.
    #[cfg(feature = "server")]
    pub(crate) fn mark_new(&self, user: &UserId) -> io::Result<()> {
        let file = self.new_users().join(user_digest_long(user));
        if user_in(&file).is_some() {
            // The first request counts.
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(self.new_users())?;
        atomic_file::replace(&file, hex::encode(user.as_bytes()).as_bytes(), Durability::Kernel)
    }

    /// The user is not new any more.
    #[cfg(feature = "server")]
    pub(crate) fn settle_new(&self, user: &UserId) -> io::Result<()> {
        remove_any(&self.new_users().join(user_digest_long(user)))
    }

    /// Users without an answer who came before this moment.
    #[cfg(feature = "server")]
    pub(crate) fn new_before(&self, moment: SystemTime) -> impl Iterator<Item = UserId> + use<> {
        let entries = fs::read_dir(self.new_users()).into_iter().flatten().flatten();
        entries.filter_map(move |entry| {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            modified.is_ok_and(|modified| modified < moment).then(|| user_in(&entry.path())).flatten()
        })
    }

    /// Users whose last token came before this moment, each by one of the tokens.
    #[cfg(feature = "server")]
    pub(crate) fn known_before(&self, moment: SystemTime) -> impl Iterator<Item = UserId> + use<> {
        let (index, entries) = (self.clone(), fs::read_dir(self.directory.join("users")));
        entries.into_iter().flatten().flatten().filter_map(move |entry| {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let tokens = modified.is_ok_and(|modified| modified < moment).then(|| listed(&entry.path()));
            let owners = tokens?.ok()?.into_iter().filter_map(|listed| index.owner(&listed.token));
            let name = entry.file_name();
            let mut own = owners.filter(|owner| name.to_str() == Some(&user_digest_long(owner)));
            own.next()
        })
    }

    /// Marks a session whose child may renew its tokens. Before the child starts.
    #[cfg(feature = "server")]
    pub(crate) fn mark_renewing(&self, session: &SessionHash) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(self.renewing())?;
        open_own(&self.renewing().join(session.as_str())).map(drop)
    }

    /// Removes the mark.
    pub(crate) fn settle(&self, session: &SessionHash) -> io::Result<()> {
        remove_any(&self.renewing().join(session.as_str()))
    }

    /// The marked sessions.
    #[cfg(feature = "server")]
    pub(crate) fn marked(&self) -> impl Iterator<Item = SessionHash> + use<> {
        let entries = fs::read_dir(self.renewing()).into_iter().flatten().flatten();
        entries.filter_map(|entry| SessionHash::parse(entry.file_name().to_str()?))
    }

    fn tokens(&self) -> PathBuf {
        self.directory.join("tokens")
    }

    fn list_of(&self, user: &str) -> PathBuf {
        self.directory.join("users").join(user)
    }

    fn renewing(&self) -> PathBuf {
        self.directory.join("renewing")
    }

    fn new_users(&self) -> PathBuf {
        self.directory.join("new")
    }
}

/// The user in a file.
fn user_in(path: &Path) -> Option<UserId> {
    let content = read_own(path, MAX_FILE_BYTES).ok()?;
    UserId::new(hex::decode(std::str::from_utf8(&content).ok()?)?).ok()
}

/// An entry of a user's list.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    number: u64,
    token: TokenName,
}

impl Listed {
    fn name(&self) -> String {
        format!("{:016x}-{}", self.number, self.token)
    }

    fn parse(name: &str) -> Option<Self> {
        let (number, token) = name.split_once('-')?;
        let is_name = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(number, 16).ok()?;
        let entry = Self { number, token: token.to_owned() };
        (is_name && entry.name() == name).then_some(entry)
    }
}

/// The tokens of a list, the oldest first.
fn listed(list: &Path) -> io::Result<Vec<Listed>> {
    let entries = match fs::read_dir(list) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries.take(MAX_LISTED) {
        found.extend(entry?.file_name().to_str().and_then(Listed::parse));
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::own::tests::TRAPS;
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn token(number: usize) -> TokenName {
        format!("{number:064x}")
    }

    fn names(directory: &Path) -> usize {
        fs::read_dir(directory).map_or(0, Iterator::count)
    }

    #[test]
    fn token_is_found_and_only_the_latest_are_kept() {
        let data = tempfile::tempdir().unwrap();
        let index = TokenIndex::of(data.path());
        let (alice, bob) = (user("alice"), user("bob"));
        assert_eq!(index.owner(&token(1)), None);
        assert!(index.learn(&alice, &[token(1), token(2)], Durability::Disk).unwrap().is_empty());
        index.learn(&bob, &[token(1), token(3)], Durability::Disk).unwrap();
        assert_eq!(index.owner(&token(1)), Some(alice.clone()), "a token stays with its first user");
        assert_eq!(index.owner(&token(3)), Some(bob.clone()));
        for number in 10..100 {
            let dropped = index.learn(&alice, &[token(number)], Durability::Disk).unwrap();
            assert_eq!(dropped.len(), usize::from(number > 13), "{number}");
        }
        let kept = (0..100).filter(|number| index.owner(&token(*number)) == Some(alice.clone()));
        assert_eq!(kept.collect::<Vec<_>>(), (94..100).collect::<Vec<_>>());
        assert_eq!(names(&index.list_of(&user_digest_long(&alice))), TOKENS_PER_USER);
    }

    #[test]
    fn forgotten_user_leaves_nothing_and_others_stay() {
        let data = tempfile::tempdir().unwrap();
        let index = TokenIndex::of(data.path());
        let (alice, bob) = (user("alice"), user("bob"));
        index.learn(&alice, &[token(1), token(2)], Durability::Disk).unwrap();
        index.learn(&bob, &[token(3)], Durability::Disk).unwrap();
        // A crash listed a token that was not written; it became another user's.
        let list = index.list_of(&user_digest_long(&alice));
        fs::write(list.join(Listed { number: 0, token: token(3) }.name()), "").unwrap();
        for _ in 0..2 {
            index.forget(&user_digest_long(&alice)).unwrap();
        }
        assert!(!list.exists());
        assert_eq!([1, 2, 3].map(|number| index.owner(&token(number))), [None, None, Some(bob)]);
        assert_eq!(names(&index.tokens()), 1);
    }

    #[test]
    fn damaged_file_is_no_token() {
        let data = tempfile::tempdir().unwrap();
        let index = TokenIndex::of(data.path());
        fs::create_dir_all(index.tokens()).unwrap();
        for (number, set) in TRAPS.iter().enumerate() {
            set(&index.tokens().join(token(number)));
            assert_eq!(index.owner(&token(number)), None);
        }
        fs::write(index.tokens().join(token(9)), "xyz").unwrap();
        assert_eq!(index.owner(&token(9)), None);
        index.learn(&user("alice"), &[token(9)], Durability::Disk).unwrap();
        assert_eq!(index.owner(&token(9)), Some(user("alice")));
    }

    #[test]
    fn marks_come_and_go() {
        let data = tempfile::tempdir().unwrap();
        let index = TokenIndex::of(data.path());
        let session = SessionHash::parse(&"a".repeat(32)).unwrap();
        index.settle(&session).unwrap();
        assert_eq!(index.marked().count(), 0);
        for _ in 0..2 {
            index.mark_renewing(&session).unwrap();
        }
        assert!(index.marked().eq([&session].map(Clone::clone)));
        index.settle(&session).unwrap();
        assert_eq!(index.marked().count(), 0);
    }
}
