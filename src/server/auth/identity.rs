//! Identifies the users of OAuth credentials, for callers that name no user.
//!
//! Tokens rotate: the access token every few hours, the refresh token when used. So each user is known by digests of
//! recent tokens. A request belongs to the user with its access token, else with its refresh token; else to a new user,
//! whose id derives from the refresh token, so that concurrent first requests agree. Digests are in an index on the disk
//! ([`TokenIndex`]), of which the memory holds what was used lately. Tokens that a CLI has renewed are found in its
//! credentials file (`renewed`). A new user is marked, and deleted again if no answer comes (`unanswered`).

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use crate::model::OauthCredentials;
use crate::model::ids::{InvalidName, UserId};
use crate::support::atomic_file::Durability;
use crate::support::blocking::blocking;
use crate::support::hex;
use crate::support::lock::MutexExt;
use crate::workspace::{TokenIndex, user_digest_long};

mod renewed;
mod rounds;
mod unanswered;

pub(crate) use renewed::{Renewed, settle};
pub(crate) use unanswered::reclaim;

/// Tokens in memory, some 150 bytes each. Beyond it all are dropped: each is read again in some 20 µs.
const MAX_CACHED: usize = 10_000;

pub(crate) type Digest = [u8; 32];

/// The user of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    Known(UserId),
    /// Both tokens are unknown.
    New(UserId),
}

impl Owner {
    pub(crate) fn user(&self) -> &UserId {
        match self {
            Self::Known(user) | Self::New(user) => user,
        }
    }
}

/// Users by the digests of their tokens.
#[derive(Clone)]
pub(crate) struct Identities {
    index: TokenIndex,
    /// Held while the index changes, across waits for the disk: requests wait for it without a thread.
    changes: Arc<tokio::sync::Mutex<()>>,
    cached: Arc<Mutex<HashMap<Digest, UserId>>>,
    /// Tokens of new users whom another node of the cluster has. In memory only: nothing of theirs is here.
    #[cfg(feature = "cluster")]
    elsewhere: Arc<Mutex<HashMap<Digest, UserId>>>,
}

impl Identities {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self {
            index: TokenIndex::of(data_dir),
            changes: Arc::default(),
            cached: Arc::default(),
            #[cfg(feature = "cluster")]
            elsewhere: Arc::default(),
        }
    }

    /// The user of the credentials; a new one if both tokens are unknown. `elsewhere` searches credentials files for
    /// unknown tokens, or refuses those that it does not find.
    pub(crate) async fn owner<E: From<InvalidName>, S: Future<Output = Result<Option<UserId>, E>>>(
        &self,
        credentials: &OauthCredentials,
        elsewhere: impl FnOnce([Digest; 2]) -> S,
    ) -> Result<Owner, E> {
        let presented = digests(credentials);
        if let Some(user) = presented.iter().find_map(|token| self.cached(token)) {
            return Ok(Owner::Known(user));
        }
        let identities = self.clone();
        let search = move || presented.iter().find_map(|token| identities.indexed(token));
        // A failed search is that of an unknown token.
        let found = tokio::task::spawn_blocking(search).await.unwrap_or_default();
        #[cfg(feature = "cluster")]
        if found.is_none()
            && let Some(user) = self.passed_on(&presented)
        {
            return Ok(Owner::New(user));
        }
        let found = match found {
            None => elsewhere(presented).await?,
            found => found,
        };
        let new = || new_user(&digest("refresh", credentials.refresh_token.as_bytes())).map(Owner::New);
        Ok(found.map_or_else(new, |user| Ok(Owner::Known(user)))?)
    }

    /// Records tokens of `user`. A token of another user stays with that user.
    pub(crate) async fn learn(&self, user: &UserId, credentials: &OauthCredentials) {
        self.learn_as(user, credentials, false).await;
    }

    /// As [`Identities::learn`], of a user who is new.
    pub(crate) async fn learn_new(&self, user: &UserId, credentials: &OauthCredentials) {
        self.learn_as(user, credentials, true).await;
    }

    /// Records tokens of a user whom another node of the cluster has, so that they are not unknown with each request. The
    /// tokens of a new user are not stored: only the node that has the user sees whether an answer comes.
    #[cfg(feature = "cluster")]
    pub(crate) async fn learn_elsewhere(&self, owner: &Owner, credentials: &OauthCredentials) {
        match owner {
            Owner::Known(user) => self.learn(user, credentials).await,
            Owner::New(user) => {
                let mut elsewhere = self.elsewhere.lock_unpoisoned();
                if elsewhere.len() >= MAX_CACHED {
                    elsewhere.clear();
                }
                elsewhere.extend(digests(credentials).map(|token| (token, user.clone())));
            }
        }
    }

    #[cfg(feature = "cluster")]
    fn passed_on(&self, presented: &[Digest; 2]) -> Option<UserId> {
        let elsewhere = self.elsewhere.lock_unpoisoned();
        presented.iter().find_map(|token| elsewhere.get(token).cloned())
    }

    async fn learn_as(&self, user: &UserId, credentials: &OauthCredentials, is_new: bool) {
        let presented = digests(credentials);
        let is_known = || presented.iter().all(|token| self.cached(token).is_some());
        if is_known() {
            return;
        }
        let one_at_a_time = self.changes.clone().lock_owned().await;
        // Concurrent requests have the same tokens.
        if is_known() {
            return;
        }
        let (identities, user) = (self.clone(), user.clone());
        let learned = blocking(move || {
            let _held = one_at_a_time;
            if is_new {
                identities.index.mark_new(&user)?;
            }
            // The id of a new user follows from the refresh token: a lost entry is made again by the next request.
            let durability = if is_new { Durability::Kernel } else { Durability::Disk };
            identities.enter(&user, presented, durability)
        });
        if let Err(error) = learned.await {
            tracing::warn!(%error, "the digests of a user's tokens could not be saved: they will not be known");
        }
    }

    /// As [`Identities::learn`]. Blocking.
    fn learn_now(&self, user: &UserId, presented: [Digest; 2]) -> std::io::Result<()> {
        let _one_at_a_time = self.changes.blocking_lock();
        self.enter(user, presented, Durability::Disk)
    }

    /// Under the lock of the changes.
    fn enter(&self, user: &UserId, presented: [Digest; 2], durability: Durability) -> std::io::Result<()> {
        let dropped = self.index.learn(user, &presented.map(|token| hex::encode(&token)), durability)?;
        for token in dropped.iter().filter_map(|token| hex::decode_array(token)) {
            self.cached.lock_unpoisoned().remove(&token);
        }
        presented.iter().for_each(|token| drop(self.indexed(token)));
        Ok(())
    }

    /// Drops the tokens of a user from the index and from memory. Blocking.
    fn forget_now(&self, user: &UserId) -> std::io::Result<()> {
        let _one_at_a_time = self.changes.blocking_lock();
        self.index.forget(&user_digest_long(user))?;
        self.forget(user);
        Ok(())
    }

    /// Drops the tokens of a user from memory. The index forgets them with the user's files.
    pub(crate) fn forget(&self, user: &UserId) {
        self.cached.lock_unpoisoned().retain(|_, owner| owner != user);
        #[cfg(feature = "cluster")]
        self.elsewhere.lock_unpoisoned().retain(|_, owner| owner != user);
    }

    fn cached(&self, token: &Digest) -> Option<UserId> {
        self.cached.lock_unpoisoned().get(token).cloned()
    }

    /// The owner by the index. Blocking.
    fn indexed(&self, token: &Digest) -> Option<UserId> {
        let user = self.index.owner(&hex::encode(token))?;
        let mut cached = self.cached.lock_unpoisoned();
        if cached.len() >= MAX_CACHED {
            cached.clear();
        }
        cached.insert(*token, user.clone());
        Some(user)
    }
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

    /// The owner of the credentials, whose tokens are learned.
    async fn owner(
        identities: &Identities,
        credentials: &OauthCredentials,
        elsewhere: impl FnOnce([Digest; 2]) -> Option<UserId>,
    ) -> UserId {
        match identities
            .owner(credentials, async |presented| Ok::<_, InvalidName>(elsewhere(presented)))
            .await
            .unwrap()
        {
            Owner::Known(user) | Owner::New(user) => {
                identities.learn(&user, credentials).await;
                user
            }
        }
    }

    #[tokio::test]
    async fn user_is_stable_over_refreshes_and_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let identities = Identities::new(directory.path());
        let alice = owner(&identities, &tokens("a1", "r1"), |_| None).await;
        let bob = owner(&identities, &tokens("b1", "s1"), |_| None).await;
        assert_ne!(alice, bob);
        // First the access token is new, then the refresh token.
        assert_eq!(owner(&identities, &tokens("a2", "r1"), |_| None).await, alice);
        assert_eq!(owner(&identities, &tokens("a2", "r2"), |_| None).await, alice);

        let again = Identities::new(directory.path());
        assert_eq!(owner(&again, &tokens("a3", "r2"), |_| None).await, alice);
        assert_eq!(owner(&again, &tokens("b1", "s2"), |_| None).await, bob);
    }

    #[tokio::test]
    async fn unknown_tokens_are_searched_elsewhere_once() {
        let directory = tempfile::tempdir().unwrap();
        let identities = Identities::new(directory.path());
        let alice = UserId::new("alice").unwrap();
        let (expected, theirs) = (digests(&tokens("a2", "r2")), alice.clone());
        let elsewhere = move |presented| (presented == expected).then_some(theirs);
        assert_eq!(owner(&identities, &tokens("a2", "r2"), elsewhere).await, alice);
        let never = |_| -> Option<UserId> { panic!("it is known by now") };
        assert_eq!(owner(&identities, &tokens("a2", "r9"), never).await, alice);
    }

    #[tokio::test]
    async fn access_and_refresh_tokens_are_not_confused() {
        let directory = tempfile::tempdir().unwrap();
        let identities = Identities::new(directory.path());
        let alice = owner(&identities, &tokens("x", "y"), |_| None).await;
        assert_ne!(owner(&identities, &tokens("y", "x"), |_| None).await, alice);
    }

    #[tokio::test]
    async fn named_user_owns_only_unclaimed_tokens() {
        let directory = tempfile::tempdir().unwrap();
        let identities = Identities::new(directory.path());
        let (alice, bob) = (UserId::new("alice").unwrap(), UserId::new("bob").unwrap());
        identities.learn(&alice, &tokens("a", "r")).await;
        identities.learn(&bob, &tokens("a", "r")).await;
        assert_eq!(owner(&identities, &tokens("a", "r"), |_| None).await, alice);
    }

    #[tokio::test]
    async fn no_token_is_on_disk() {
        let data = tempfile::tempdir().unwrap();
        owner(&Identities::new(data.path()), &tokens("secret-a", "secret-r"), |_| None).await;
        let found = pilotlight_test_support::program::holding(data.path(), "secret");
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(pilotlight_test_support::program::holding(data.path(), "").len(), 4);
    }

    #[tokio::test]
    async fn deleted_user_is_unknown() {
        let data = tempfile::tempdir().unwrap();
        let identities = Identities::new(data.path());
        let alice = owner(&identities, &tokens("a", "r"), |_| None).await;
        let bob = owner(&identities, &tokens("b", "s"), |_| None).await;
        identities.forget(&alice);
        identities.index.forget(&user_digest_long(&alice)).unwrap();
        let other = UserId::new("other").unwrap();
        let found = other.clone();
        assert_eq!(owner(&identities, &tokens("a", "x"), move |_| Some(found)).await, other);
        assert_eq!(owner(&identities, &tokens("b", "x"), |_| None).await, bob);
    }

    #[tokio::test]
    async fn full_cache_forgets_and_reads_again() {
        let data = tempfile::tempdir().unwrap();
        let identities = Identities::new(data.path());
        let alice = owner(&identities, &tokens("a", "r"), |_| None).await;
        let other = |number: usize| (digest("x", &number.to_le_bytes()), alice.clone());
        *identities.cached.lock_unpoisoned() = (0..MAX_CACHED).map(other).collect();
        let never = |_| -> Option<UserId> { panic!("it is in the index") };
        assert_eq!(owner(&identities, &tokens("a", "other"), never).await, alice);
        assert!(identities.cached.lock_unpoisoned().len() < 4);
    }
}
