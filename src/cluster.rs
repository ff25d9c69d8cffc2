//! Several nodes as one service: any node takes any request, and no node's end loses a conversation.
//!
//! etcd agrees on who has which user, object storage has the users' files. Without `[cluster]` in the configuration nothing of it
//! exists. The unit is the user and not the session: what is counted or looked up per user then lives on one node.
//!
//! | module | content |
//! |---|---|
//! | `ledger` | keys, records and transactions; a client of etcd, and a store in memory for tests |
//! | `ownership` | pure decisions on the users of one node: claim, lose, release, drain |
//! | `membership` | tasks that keep the lease, watch nodes and owners, and carry out the decisions |
//! | `pace` | how fast users go to other nodes |
//! | `placement` | the node for a user without an owner |
//! | `replica` | users' files as objects of a store |
//! | `fence` | the deadline up to which this node holds its users, for the shims of their children |
//! | `house` | what this node has of its users: files come with a claim, and go to the store after each turn |
//! | `bring_in` | users of a single node's data directory come into the cluster |
//! | `export` | all users of a cluster as the data directory of a single node |
//! | `commit` | one change of a user on its way to the store and the ledger |
//! | `mark` | whether files of a user that are here are newer than those of the cluster |
//! | `lately` | what went wrong on this node, and which nodes were there |
//! | `status` | the cluster as this node sees it |

mod bring_in;
mod commit;
pub(crate) mod export;
pub(crate) mod fence;
#[cfg(test)]
mod formats;
mod house;
mod lately;
pub(crate) mod ledger;
mod mark;
pub(crate) mod membership;
pub(crate) mod ownership;
mod pace;
pub(crate) mod placement;
pub(crate) mod replica;
mod route;
mod start;
mod status;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::fence::Fence;
use self::house::House;
use self::ledger::UserHash;
pub(crate) use self::membership::ForgetError;
use self::membership::Membership;
use self::ownership::Drain;
use self::pace::Pace;
pub(crate) use self::route::{Grant, NodeAddress, Route, RouteError, Unowned};
pub(crate) use self::status::ClusterStatus;
use crate::config::Replication;
use crate::error::TurnError;
use crate::model::ids::{SessionHash, UserId};
use crate::support::blocking::blocking_long;
use crate::support::lock::MutexExt as _;
use crate::telemetry::metrics::ForwardResult;

/// Time after a node has left from which nothing more is expected of it.
const LEFT_FOR: Duration = Duration::from_secs(3);
/// The same after the end of the lease of a node that was not leaving: it has ended its turns before, or it stands still.
const LOST_FOR: Duration = Duration::from_millis(500);
/// Time in which the disk takes everything at the end.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);
/// Interval of looking for a node.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The result of an operation, later.
pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What runs on this node of its users.
pub(crate) trait Residents: Send + Sync {
    /// Ends the children of a user without a running turn, in order, and puts the user away. Whether they ended.
    fn rest<'a>(&'a self, user: &'a UserId) -> Later<'a, bool>;
    /// Ends everything of a user at once, and puts the user away: what memory has goes to the files, and nothing of it is left.
    /// Returns when no child is left.
    fn end<'a>(&'a self, user: &'a UserId) -> Later<'a, ()>;
    /// Removes the files of a user who was put away. Whether all are gone.
    fn forget<'a>(&'a self, user: &'a UserId) -> Later<'a, bool>;
    /// The user with this short digest, if something here names it.
    fn named<'a>(&'a self, digest: &'a str) -> Later<'a, Option<UserId>>;
    /// Whether there is nothing of a user here.
    fn has_no_files<'a>(&'a self, user: &'a UserId) -> Later<'a, bool>;
    /// Notes in all conversations of a user that their latest turns may be lost.
    fn report_loss<'a>(&'a self, user: &'a UserId) -> Later<'a, ()>;
}

/// This node's part in a cluster.
pub(crate) struct Cluster {
    house: Arc<House>,
    membership: Membership,
    fence: Arc<Fence>,
    is_leaving: Arc<AtomicBool>,
    /// Users of the data directory whom the cluster may not have as a whole yet.
    coming: AtomicUsize,
    /// How many users go by [`Self::rebalance`] in a minute.
    pace: Mutex<Pace>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("node", self.membership.id()).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Name of this node.
    pub(crate) fn name(&self) -> &str {
        self.membership.id().as_str()
    }

    /// The deadline up to which this node holds its users.
    pub(crate) fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Cancelled when this node has lost the user, and what runs of it must end at once.
    pub(crate) fn lost(&self, user: &UserId) -> CancellationToken {
        let resident = self.house.resident(UserHash::of(user));
        resident.map_or_else(
            || {
                // Another node may have the user.
                let lost = CancellationToken::new();
                lost.cancel();
                lost
            },
            |resident| resident.lost(),
        )
    }

    /// Whether the end of a turn, or of another change, waits for the store. With `async` the first one of a user does: after it
    /// the next node knows that later ones may be missing.
    pub(crate) fn waits(&self, user: &UserId) -> bool {
        let is_announced = || {
            let resident = self.house.resident(UserHash::of(user));
            resident.is_some_and(|resident| resident.is_announced.load(Ordering::Acquire))
        };
        self.house.config.replication == Replication::Turn || !is_announced()
    }

    /// Whether this node has the user.
    pub(crate) fn has(&self, user: &UserId) -> bool {
        self.membership.fence(UserHash::of(user)).is_some()
    }

    /// Why this node takes no new users.
    pub(crate) fn problem(&self) -> Option<String> {
        let is_member = self.membership.deadline().borrow().is_some();
        (!is_member).then(|| "this node has no lease in the cluster (cluster.etcd)".to_owned())
    }

    /// Counts a request that was sent to another node.
    pub(crate) fn count_forwarded(&self, result: ForwardResult) {
        self.house.metrics.forwarded.increment(result);
    }

    /// Notes that something of a session has changed: the next commit looks at its files.
    pub(crate) fn touch(&self, user: &UserId, session: &SessionHash) {
        if let Some(resident) = self.house.resident(UserHash::of(user)) {
            resident.touch(session);
        }
    }

    /// Hands all users over to other nodes and leaves the cluster. Running turns get `grace`. Returns the number of users that
    /// could not leave in order.
    pub(crate) async fn leave(&self, grace: Duration) -> usize {
        self.is_leaving.store(true, Ordering::Release);
        self.membership.drain(Drain::Now);
        let is_empty = self.membership.drained(grace).await;
        let left = if is_empty { 0 } else { self.membership.held().len() };
        if let Err(error) = self.membership.leave(Duration::ZERO).await {
            tracing::warn!(%error, "the lease of this node could not be ended: it ends by itself");
        }
        let data_dir = self.house.data_dir.clone();
        let settling = timeout(SETTLES_WITHIN, blocking_long(move || mark::settle(&data_dir)));
        if !matches!(settling.await, Ok(Ok(()))) {
            tracing::warn!(
                "files of users that could not be stored may be lost if this machine loses its power"
            );
        }
        left
    }

    /// Takes no further users and lets all go, or takes users again. Returns false if the node is about to stop: it lets all go.
    pub(crate) fn drain(&self, draining: bool) -> bool {
        let is_leaving = || self.is_leaving.load(Ordering::Acquire);
        if is_leaving() {
            return false;
        }
        self.membership.drain(if draining { Drain::WhenIdle } else { Drain::Off });
        // The stop may have begun meanwhile.
        if is_leaving() {
            self.membership.drain(Drain::Now);
            return false;
        }
        true
    }

    /// Whether this node leaves the cluster and a user is no longer here.
    fn has_left(&self, user: UserHash) -> bool {
        self.is_leaving.load(Ordering::Acquire) && self.membership.stored(user).is_none()
    }

    /// Returns once a node has been gone for some time: who ends in order has sent its last answers by then.
    pub(crate) fn gone(&self, node: &ledger::NodeId) -> impl Future<Output = ()> + Send + use<> {
        let (membership, node) = (self.membership.clone(), node.clone());
        async move {
            let (mut since, mut limit): (Option<Instant>, _) = (None, LOST_FOR);
            while since.is_none_or(|since| since.elapsed() < limit) {
                tokio::time::sleep(LOOK_EVERY).await;
                since = match membership.node(&node) {
                    Some(info) => {
                        limit = if info.draining { LEFT_FOR } else { LOST_FOR };
                        None
                    }
                    None => since.or_else(|| Some(Instant::now())),
                };
            }
        }
    }

    /// The other live nodes.
    pub(crate) fn others(&self) -> Vec<NodeAddress> {
        let nodes = self.membership.nodes().into_iter().filter(|(id, _)| id != self.membership.id());
        nodes.map(|(id, info)| NodeAddress { id, address: info.address }).collect()
    }

    /// Lets users go who rest and have their place on another node: as many as `most`, and as
    /// `cluster.rebalance_per_minute` allows. Returns how many go, and how many with such a place stay for now.
    pub(crate) fn rebalance(&self, most: usize) -> (usize, usize) {
        let (own, now) = (self.membership.id(), Instant::now());
        let mut placed_elsewhere = self.membership.served();
        placed_elsewhere
            .retain(|(user, _)| self.membership.place(*user, &[]).is_some_and(|node| node != *own));
        let may_leave = |user: UserHash| {
            self.house.resident(user).is_some_and(|resident| self.house.may_leave(&resident, now))
        };
        let resting = placed_elsewhere.iter().filter(|(user, rests)| *rests && may_leave(*user));
        let mut leaving: Vec<_> = resting.map(|(user, _)| *user).take(most).collect();
        leaving.truncate(self.pace.lock_unpoisoned().take(now, leaving.len()));
        // One that is in use again by now goes after that.
        leaving.iter().for_each(|user| self.membership.evict(*user));
        (leaving.len(), placed_elsewhere.len() - leaving.len())
    }

    /// Removes what a dead node has left in the ledger.
    ///
    /// # Errors
    /// The node is alive, or nothing is known of it.
    pub(crate) async fn forget(&self, node: &str) -> Result<membership::Forgotten, ForgetError> {
        let node = node.parse().map_err(|_| ForgetError::Unknown)?;
        self.membership.forget(&node).await
    }

    /// Deletes what the store and the ledger have of a user whose files were deleted here.
    pub(crate) async fn delete(&self, user: &UserId) -> Result<(), TurnError> {
        self.house.delete(user).await
    }

    /// Number of users of each node.
    pub(crate) fn owners(&self) -> BTreeMap<String, usize> {
        self.membership.owners().into_iter().map(|(node, count)| (node.to_string(), count)).collect()
    }
}
