//! Users whose files were in the data directory before this node had a cluster: each is claimed here and stored, so that other
//! nodes know it.
//!
//! The node does it by itself, at each start: nothing is to be remembered by an operator, and an interrupted one is
//! continued. What came from the cluster or went there has a mark ([`mark`](super::mark)), so that usually nothing is found. Users
//! of whom the store lacks something are brought in as well: the latest of their files are here alone.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::sleep;

use super::Cluster;
use super::commit::{Extent, Files};
use super::ledger::UserHash;
use super::route::{Route, Unowned};
use crate::model::ids::UserId;
use crate::support::blocking::blocking_long;
use crate::workspace::users_dir;

/// Users that are stored at the same time, beside those who are talking.
const AT_ONCE: usize = 4;
/// Users that one round looks at. The next one continues.
const MOST: usize = 100_000;
/// Pause after a round that has left some; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// What became of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Brought {
    /// The store has it, or another node has the user, or it has too much: its files here stay until it comes.
    Done,
    Later,
}

impl Cluster {
    /// Users of the data directory whom the cluster may not have as a whole yet.
    pub(crate) fn coming(&self) -> usize {
        self.coming.load(Ordering::Acquire)
    }

    /// Brings all users in. Ends when nobody is left.
    pub(super) async fn bring_in(self: Arc<Self>) {
        // Those that are done, whatever their mark.
        let mut settled = HashSet::new();
        let mut pause = FIRST_PAUSE;
        loop {
            let left = self.round(&mut settled).await;
            self.coming.store(left, Ordering::Release);
            if left == 0 {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Tries once with all of them. Returns how many are left.
    async fn round(&self, settled: &mut HashSet<UserHash>) -> usize {
        let data_dir = self.house.data_dir.clone();
        let unknown = match blocking_long(move || unknown_users(&data_dir)).await {
            Ok(mut unknown) => {
                unknown.retain(|user| !settled.contains(user));
                unknown
            }
            Err(error) => {
                tracing::warn!(%error, "it cannot be read which users this node has");
                return 1;
            }
        };
        if unknown.is_empty() {
            return 0;
        }
        let all = unknown.len();
        self.coming.store(all, Ordering::Release);
        tracing::info!(users = all, "users of this data directory are brought into the cluster");
        let done = stream::iter(unknown).map(|hash| async move { (hash, self.bring(hash).await) });
        let mut done = std::pin::pin!(done.buffer_unordered(AT_ONCE));
        let mut count = 0;
        while let Some((hash, brought)) = done.next().await {
            if brought == Brought::Done {
                settled.insert(hash);
                count += 1;
                self.coming.store(all - count, Ordering::Release);
            }
        }
        tracing::info!(users = count, left = all - count, "users of this data directory are in the cluster");
        all - count
    }

    async fn bring(&self, hash: UserHash) -> Brought {
        let Some(residents) = self.house.residents.get() else { return Brought::Later };
        let Some(user) = residents.named(&hash.to_string()).await else {
            tracing::warn!(user = ?hash, "files of a user without a readable conversation are not brought into the cluster");
            return Brought::Done;
        };
        match self.route(&user, Unowned::Claim, self.route_deadline()).await {
            // Kept here while the grant is.
            Ok(Route::Here(_grant)) => self.store_first(&user).await,
            Ok(Route::Node(_)) => {
                tracing::warn!(user = ?hash, "another node has a user of whom this data directory has files");
                Brought::Done
            }
            Err(error) => {
                tracing::debug!(%error, "a user is brought into the cluster later");
                Brought::Later
            }
        }
    }

    /// Stores a user unless the store has it.
    async fn store_first(&self, user: &UserId) -> Brought {
        let hash = UserHash::of(user);
        let Some(resident) = self.house.resident(hash) else { return Brought::Later };
        // A change that is being stored has it in it, up to the limits of a turn.
        let is_missing = resident.files.lock().await.as_ref().is_some_and(Files::are_missing);
        if !is_missing && self.membership.stored(hash).is_some_and(|stored| stored.head.is_some()) {
            return Brought::Done;
        }
        match self.house.commit(&resident, Extent::Snapshot).await {
            Ok(()) => Brought::Done,
            // Tried again with the user's turns, once there may be less.
            Err(_) if resident.is_too_large.load(Ordering::Acquire) => Brought::Done,
            Err(error) => {
                tracing::debug!(%error, "a user is brought into the cluster later");
                Brought::Later
            }
        }
    }
}

/// Users with files here that the cluster may not have. Blocking.
pub(super) fn unknown_users(data_dir: &Path) -> std::io::Result<Vec<UserHash>> {
    let entries = match std::fs::read_dir(users_dir(data_dir)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut unknown = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some(hash) = name.to_str().and_then(|name| name.parse::<UserHash>().ok()) else { continue };
        if super::mark::may_lack(data_dir, hash)? {
            unknown.push(hash);
        }
        if unknown.len() == MOST {
            break;
        }
    }
    Ok(unknown)
}
