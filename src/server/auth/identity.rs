//! Identifies the users of OAuth credentials, for callers that name no user.
//!
//! Tokens rotate: the access token every few hours, the refresh token when used. So each user is known by digests of
//! recent tokens. A request belongs to the user with its access token, else with its refresh token; else to a new user,
//! whose id derives from the refresh token, so that concurrent first requests agree. Digests are stored in one small
//! file per user. Tokens that a CLI has renewed are found in its credentials file (`rotated`).

use std::collections::{HashMap, VecDeque};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::model::OauthCredentials;
use crate::model::ids::{InvalidName, UserId};
use crate::support::atomic_file::{self, Durability};
use crate::support::hex;
use crate::support::lock::MutexExt;
use crate::workspace::read_own;

mod rotated;

pub(crate) use rotated::Rotated;

/// Tokens kept per user: the current pair and the two before, for requests in progress.
const TOKENS_PER_USER: usize = 6;
/// Maximum users in memory, some 700 bytes each. Others are known as long as their refresh token is unchanged.
const MAX_USERS: usize = 100_000;
/// Maximum record size: 256 bytes of user and six digests, in hexadecimal.
const MAX_RECORD_BYTES: u64 = 4096;

pub(crate) type Digest = [u8; 32];

/// Users by the digests of their tokens.
pub(crate) struct Identities {
    directory: PathBuf,
    known: Mutex<TokenOwners>,
}

#[derive(Default)]
struct TokenOwners {
    owners: HashMap<Digest, UserId>,
    tokens: HashMap<UserId, VecDeque<Digest>>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    user: String,
    tokens: Vec<String>,
}

impl Identities {
    /// Loads the records. Unreadable ones are ignored.
    pub(crate) async fn load(directory: PathBuf) -> Self {
        let from = directory.clone();
        let known = tokio::task::spawn_blocking(move || load(&from)).await.unwrap_or_default();
        Self { directory, known: Mutex::new(known) }
    }

    /// The user of the credentials. `elsewhere` searches credentials files for unknown tokens; it may block.
    pub(crate) async fn owner(
        &self,
        credentials: &OauthCredentials,
        elsewhere: impl FnOnce([Digest; 2]) -> Option<UserId> + Send + 'static,
    ) -> Result<UserId, InvalidName> {
        let [access, refresh] = digests(credentials);
        let found = {
            let known = self.known.lock_unpoisoned();
            known.owners.get(&access).or_else(|| known.owners.get(&refresh)).cloned()
        };
        let found = match found {
            Some(user) => Some(user),
            None => {
                let looking = tokio::task::spawn_blocking(move || elsewhere([access, refresh]));
                looking.await.unwrap_or_default()
            }
        };
        let user = found.map_or_else(|| new_user(&refresh), Ok)?;
        self.learn(&user, credentials).await;
        Ok(user)
    }

    /// Records tokens of `user`. A token of another user stays with that user.
    pub(crate) async fn learn(&self, user: &UserId, credentials: &OauthCredentials) {
        let changed = {
            let mut known = self.known.lock_unpoisoned();
            known.learn(user, digests(credentials))
        };
        let Some(record) = changed else { return };
        let (directory, name) = (self.directory.clone(), hex::encode(&digest("user", user.as_bytes())));
        let saved = tokio::task::spawn_blocking(move || save(&directory, &name, &record)).await;
        if !matches!(saved, Ok(Ok(()))) {
            tracing::warn!(
                "a user's tokens will not be known after a restart: their digests could not be saved"
            );
        }
    }
}

impl TokenOwners {
    /// The record to save, if it has changed.
    fn learn(&mut self, user: &UserId, presented: [Digest; 2]) -> Option<Record> {
        if self.tokens.len() >= MAX_USERS && !self.tokens.contains_key(user) {
            return None;
        }
        let news: Vec<Digest> =
            presented.into_iter().filter(|token| !self.owners.contains_key(token)).collect();
        if news.is_empty() {
            return None;
        }
        let tokens = self.tokens.entry(user.clone()).or_default();
        for token in news {
            self.owners.insert(token, user.clone());
            tokens.push_back(token);
        }
        while tokens.len() > TOKENS_PER_USER {
            if let Some(old) = tokens.pop_front() {
                self.owners.remove(&old);
            }
        }
        Some(Record {
            user: hex::encode(user.as_bytes()),
            tokens: tokens.iter().map(|token| hex::encode(token)).collect(),
        })
    }

    fn restore(&mut self, record: &Record) -> Option<()> {
        let user = UserId::new(hex::decode(&record.user)?).ok()?;
        for token in record.tokens.iter().take(TOKENS_PER_USER) {
            let token: Digest = hex::decode_array(token)?;
            self.owners.insert(token, user.clone());
            self.tokens.entry(user.clone()).or_default().push_back(token);
        }
        Some(())
    }
}

fn load(directory: &Path) -> TokenOwners {
    let mut known = TokenOwners::default();
    let Ok(entries) = std::fs::read_dir(directory) else { return known };
    for entry in entries.flatten().take(MAX_USERS) {
        if entry.path().extension().is_some() {
            // Left by an interrupted write. If removal fails, the next start retries.
            std::fs::remove_file(entry.path()).ok();
            continue;
        }
        let text = read_own(&entry.path(), MAX_RECORD_BYTES).ok();
        let record = text.and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        if record.and_then(|record| known.restore(&record)).is_none() {
            tracing::warn!(path = %entry.path().display(), "a file that is no record of a user's tokens is passed over");
        }
    }
    known
}

fn save(directory: &Path, name: &str, record: &Record) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    atomic_file::replace(&directory.join(name), &serde_json::to_vec(record)?, Durability::Disk)
}

fn digests(credentials: &OauthCredentials) -> [Digest; 2] {
    [
        digest("access", credentials.access_token.as_bytes()),
        digest("refresh", credentials.refresh_token.as_bytes()),
    ]
}

fn digest(purpose: &str, bytes: &[u8]) -> Digest {
    Sha256::new().chain_update(purpose).chain_update([0]).chain_update(bytes).finalize().into()
}

/// 128 bits of the digest rule out collisions.
fn new_user(refresh: &Digest) -> Result<UserId, InvalidName> {
    let half: String = hex::encode(refresh).chars().take(32).collect();
    UserId::new(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(access: &str, refresh: &str) -> OauthCredentials {
        let text = format!(r#"{{"access_token":"{access}","refresh_token":"{refresh}","expires_at":1}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[tokio::test]
    async fn user_is_stable_over_refreshes_and_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let identities = Identities::load(directory.path().join("identities")).await;
        let alice = identities.owner(&tokens("a1", "r1"), |_| None).await.unwrap();
        let bob = identities.owner(&tokens("b1", "s1"), |_| None).await.unwrap();
        assert_ne!(alice, bob);
        // First the access token is new, then the refresh token.
        assert_eq!(identities.owner(&tokens("a2", "r1"), |_| None).await.unwrap(), alice);
        assert_eq!(identities.owner(&tokens("a2", "r2"), |_| None).await.unwrap(), alice);

        let again = Identities::load(directory.path().join("identities")).await;
        assert_eq!(again.owner(&tokens("a3", "r2"), |_| None).await.unwrap(), alice);
        assert_eq!(again.owner(&tokens("b1", "s2"), |_| None).await.unwrap(), bob);
    }

    #[tokio::test]
    async fn unknown_tokens_are_searched_elsewhere_once() {
        let directory = tempfile::tempdir().unwrap();
        let identities = Identities::load(directory.path().to_owned()).await;
        let alice = UserId::new("alice").unwrap();
        let (expected, theirs) = (digests(&tokens("a2", "r2")), alice.clone());
        let elsewhere = move |presented| (presented == expected).then_some(theirs);
        assert_eq!(identities.owner(&tokens("a2", "r2"), elsewhere).await.unwrap(), alice);
        let never = |_| -> Option<UserId> { panic!("it is known by now") };
        assert_eq!(identities.owner(&tokens("a2", "r9"), never).await.unwrap(), alice);
    }

    #[tokio::test]
    async fn access_and_refresh_tokens_are_not_confused() {
        let directory = tempfile::tempdir().unwrap();
        let identities = Identities::load(directory.path().to_owned()).await;
        let alice = identities.owner(&tokens("x", "y"), |_| None).await.unwrap();
        assert_ne!(identities.owner(&tokens("y", "x"), |_| None).await.unwrap(), alice);
    }

    #[tokio::test]
    async fn named_user_owns_only_unclaimed_tokens() {
        let directory = tempfile::tempdir().unwrap();
        let identities = Identities::load(directory.path().to_owned()).await;
        let (alice, bob) = (UserId::new("alice").unwrap(), UserId::new("bob").unwrap());
        identities.learn(&alice, &tokens("a", "r")).await;
        identities.learn(&bob, &tokens("a", "r")).await;
        assert_eq!(identities.owner(&tokens("a", "r"), |_| None).await.unwrap(), alice);
    }

    #[tokio::test]
    async fn no_token_is_on_disk_and_partial_files_go() {
        let directory = tempfile::tempdir().unwrap();
        let identities = Identities::load(directory.path().to_owned()).await;
        identities.owner(&tokens("secret-a", "secret-r"), |_| None).await.unwrap();
        std::fs::write(directory.path().join("partial.tmp"), "{").unwrap();
        std::fs::write(directory.path().join("nonsense"), "{").unwrap();
        Identities::load(directory.path().to_owned()).await;
        assert!(!directory.path().join("partial.tmp").exists());
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            assert!(!std::fs::read_to_string(entry.unwrap().path()).unwrap().contains("secret"));
        }
    }

    #[test]
    fn only_latest_tokens_are_kept() {
        let mut known = TokenOwners::default();
        let user = UserId::new("u").unwrap();
        for number in 0..100 {
            known.learn(&user, digests(&tokens(&format!("a{number}"), &format!("r{number}"))));
        }
        assert_eq!((known.owners.len(), known.tokens[&user].len()), (TOKENS_PER_USER, TOKENS_PER_USER));
    }
}
