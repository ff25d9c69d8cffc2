//! What of a user's data outlives the node: an object in a store after each turn, and the way back on another node.
//!
//! The caller owns the user (a fence), counts the objects (`seq`) and names them in the user's head. An object counts once
//! the head names it. `delta` is the form of an object, `collect` makes one of what has changed, `store` keeps it, `fetch`
//! reads a chain, `apply` makes files of it, and `chain` decides when a snapshot is due and what it has replaced.
//!
//! Replicated are the server's own files of a user: records and journals of the sessions, their list, stored responses,
//! digests of histories, usage; and the working directories, as far as the limits allow ([`collect::Summary`]). Not
//! replicated is what belongs to a node (locks, user ids of children, spares, copies of broken records), what is made
//! again (the CLI's transcript, which `session::recovery` writes from the journal; its home and temporary files), the
//! index of OAuth tokens, which is asked before a user has an owner, and OAuth credentials unless the operator wants it.

pub(crate) mod apply;
pub(crate) mod chain;
pub(crate) mod collect;
pub(crate) mod delta;
pub(crate) mod fetch;
pub(crate) mod key;
mod limits;
mod places;
mod state;
pub(crate) mod store;
mod take_over;
#[cfg(test)]
pub(in crate::cluster) mod testing;
#[cfg(test)]
mod tests;
mod write;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub(crate) use apply::recover;
use chain::{Chain, HeadView};
use collect::Options;
use fetch::{Fetch, Loss};
use key::{Key, UserHash};
use limits::{DELETED_AT_ONCE, SNAPSHOTS_AT_ONCE, TAKEN_AT_ONCE, TURNS_AT_ONCE, WHOLES_AT_ONCE};
use places::UserPlaces;
pub(crate) use state::UserState;
use store::{OpenError, Store, StoreConfig, StoreError};
pub(crate) use take_over::{TakeOverError, TakenOut};
pub(crate) use write::ReplicateError;

use crate::model::ids::UserId;
use crate::support::blocking::blocking_long;

/// Age from which what a writer has left is nobody's any more. No write takes longer.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Lists of one cleaning, each with [`limits::LISTED_PER_USER`] objects at most: more than a user can have written.
const MOST_LISTS: usize = 100;

/// What a replica is opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplicaConfig {
    pub(crate) store: StoreConfig,
    /// OAuth credentials that the broker renews go to the store as well.
    pub(crate) credentials: bool,
    /// Bytes that the files of a session may take, if they have a limit.
    pub(crate) workspace_bytes: Option<u64>,
}

/// The replica of one data directory. Cheap to clone. Calls about one user must not overlap.
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    store: Store,
    data_dir: PathBuf,
    options: Options,
    /// Each holds some parts of an object in memory.
    turns: Arc<Semaphore>,
    wholes: Arc<Semaphore>,
    /// Places of [`collect::Scope::Due`]. Taken before anything that turns wait for.
    pub(crate) snapshots: Arc<Semaphore>,
    taking_over: Arc<Semaphore>,
}

impl Replica {
    /// `tasks`: requests that are in progress.
    ///
    /// # Errors
    /// The configuration or the directory of the store cannot be used. A store that does not answer is no error here.
    pub(crate) fn open(
        config: &ReplicaConfig,
        data_dir: &Path,
        tasks: TaskTracker,
    ) -> Result<Self, OpenError> {
        let store = Store::open(&config.store, tasks)?;
        let [turns, wholes, snapshots, taking_over] =
            [TURNS_AT_ONCE, WHOLES_AT_ONCE, SNAPSHOTS_AT_ONCE, TAKEN_AT_ONCE]
                .map(|most| Arc::new(Semaphore::new(most)));
        let options = Options { credentials: config.credentials, workspace_bytes: config.workspace_bytes };
        Ok(Self { store, data_dir: data_dir.to_owned(), options, turns, wholes, snapshots, taking_over })
    }

    /// Moves what this node has of a user out of the way, where nothing else has it. Returns the directory, if there was any.
    ///
    /// # Errors
    /// A file cannot be moved; a repetition continues.
    pub(crate) async fn set_aside(&self, user: &UserId, number: u64) -> io::Result<Option<PathBuf>> {
        let places = UserPlaces::of(&self.data_dir, user);
        blocking_long(move || apply::set_aside(&places, number)).await
    }

    /// The objects of a chain, checked, in order.
    ///
    /// # Errors
    /// The chain itself has gaps.
    pub(crate) fn fetch(&self, user: UserHash, chain: &Chain) -> Result<Fetch, Loss> {
        Fetch::new(self.store.clone(), user, chain)
    }

    /// Deletes all objects that a snapshot has replaced and those that no head has ever named: with the snapshot of a user
    /// without data, all data of the user. Returns their number.
    ///
    /// # Errors
    /// The store, or there are more than [`MOST_LISTS`] lists have: some may be deleted, and a repetition continues.
    pub(crate) async fn clean(&self, user: UserHash, head: &HeadView) -> Result<usize, StoreError> {
        let mut count = 0;
        for _ in 0..MOST_LISTS {
            let (listed, is_all) = self.store.list(user).await?;
            let mut replaced: Vec<Key> =
                listed.iter().map(|it| it.key).filter(|key| head.has_replaced(key)).collect();
            // The oldest first: what is left of a chain after a failure has no gap in it.
            replaced.sort_unstable_by_key(|key| (key.id.seq, key.id.fence));
            for keys in replaced.chunks(DELETED_AT_ONCE) {
                self.store.delete(keys).await?;
                count += keys.len();
            }
            if is_all {
                self.store.sweep(user, ABANDONED).await?;
                return Ok(count);
            }
        }
        Err(StoreError::Unavailable("the user's objects do not end".to_owned()))
    }
}
