//! From a user to the node that has it, or that is to have it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Cluster;
use super::house::InProgress;
use super::ledger::{LedgerError, NodeId, UserHash};
use super::membership::{Claimed, Granted};
use super::ownership::Refusal;
use crate::model::ids::UserId;
use crate::telemetry::metrics::ClaimResult;

/// Time within which a node that takes users again is known to take them.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(2);
/// Interval of looking for such a node.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Time after which a claim that goes on counts as failed.
const FAILED_AFTER: Duration = Duration::from_secs(1);

/// Where a user is.
#[derive(Debug, Clone)]
pub(crate) enum Route {
    Here(Grant),
    Node(NodeAddress),
}

/// Keeps a user on this node until it is dropped, unless the ownership is lost.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    // In this order: a user who leaves after the last request has been in use until then.
    _request: Arc<InProgress>,
    _granted: Arc<Granted>,
    /// Cancelled when the user leaves this node, or is lost.
    pub(super) stay: CancellationToken,
}

/// A user whom a request wants.
enum Held {
    Here(Grant),
    Elsewhere(NodeId),
}

/// A node, and where other nodes reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeAddress {
    pub(crate) id: NodeId,
    pub(crate) address: String,
}

/// What becomes of a user whom no node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unowned {
    /// The node with the best place for it gets it.
    Place,
    /// This node gets it.
    Claim,
}

/// Why it is not known which node has a user, or none can.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no node of the cluster can take the user now: {0}")]
    Refused(#[from] Refusal),
    #[error("it is not known which node of the cluster has the user: {0}")]
    Ledger(#[from] LedgerError),
    #[error("the node of the cluster that has the user is not known here")]
    Unknown,
}

impl Cluster {
    /// When a request that comes now has waited long enough for its user.
    pub(crate) fn route_deadline(&self) -> Instant {
        Instant::now() + self.house.config.route_timeout
    }

    /// The node that has the user. A user without one gets one.
    ///
    /// # Errors
    /// [`RouteError`] if no node has the user by the deadline.
    pub(crate) async fn route(
        &self,
        user: &UserId,
        unowned: Unowned,
        deadline: Instant,
    ) -> Result<Route, RouteError> {
        let hash = UserHash::of(user);
        if !self.membership.has_left()
            && let Some(node) = self.elsewhere(hash, unowned)
        {
            return self.address(hash, node).await;
        }
        if self.has_left(hash) {
            let node = match timeout_at(deadline, self.membership.locate(hash)).await {
                Ok(Ok(owner)) => {
                    owner.filter(|node| node != self.membership.id()).or_else(|| self.place_elsewhere(hash))
                }
                // What was known last.
                Ok(Err(error)) => Some(self.elsewhere(hash, unowned).ok_or(error)?),
                Err(_) => self.elsewhere(hash, unowned),
            };
            return self.address(hash, node.ok_or(Refusal::Draining)?).await;
        }
        match self.claim(user, hash, deadline).await {
            Ok(Held::Here(grant)) => Ok(Route::Here(grant)),
            Ok(Held::Elsewhere(node)) => self.address(hash, node).await,
            // Another node may take the user. It was asked already if the request came from there.
            Err(Refusal::Draining | Refusal::Full) if unowned == Unowned::Place => {
                let until = deadline.min(Instant::now() + PUBLISHED_WITHIN);
                loop {
                    if let Some(node) = self.place_elsewhere(hash) {
                        return self.address(hash, node).await;
                    }
                    if Instant::now() >= until {
                        return Err(Refusal::Draining.into());
                    }
                    sleep(LOOK_AGAIN).await;
                }
            }
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Keeps the user here for a request that may do so already; `None` if the user is not here and does not come.
    pub(crate) async fn stay(&self, user: &UserId) -> Option<Grant> {
        let hash = UserHash::of(user);
        if self.elsewhere(hash, Unowned::Claim).is_some() || self.has_left(hash) {
            return None;
        }
        match self.hold(user, hash, self.membership.claim_again(hash, self.route_deadline())).await {
            Ok(Held::Here(grant)) => Some(grant),
            Ok(Held::Elsewhere(_)) | Err(_) => None,
        }
    }

    fn place_elsewhere(&self, hash: UserHash) -> Option<NodeId> {
        self.membership.place(hash, std::slice::from_ref(self.membership.id()))
    }

    /// The other node that has the user, or that should have it.
    fn elsewhere(&self, hash: UserHash, unowned: Unowned) -> Option<NodeId> {
        let node = match self.membership.owner_of(hash) {
            Some(owner) => owner,
            None if unowned == Unowned::Claim => return None,
            None => self.membership.place(hash, &[])?,
        };
        (node != *self.membership.id()).then_some(node)
    }

    /// Waits for a claim of a user, who is in use from now on.
    async fn hold(
        &self,
        user: &UserId,
        hash: UserHash,
        claiming: impl Future<Output = Result<Claimed, Refusal>>,
    ) -> Result<Held, Refusal> {
        let resident = self.house.admit(user, hash);
        resident.used_now();
        let request = InProgress::of(&resident);
        let claimed = claiming.await;
        let stay = resident.stay();
        drop(resident);
        if !matches!(claimed, Ok(Claimed::Here(_))) {
            self.house.dismiss_unless_here(hash);
        }
        Ok(match claimed? {
            Claimed::Here(granted) => {
                Held::Here(Grant { _request: Arc::new(request), _granted: Arc::new(granted), stay })
            }
            Claimed::Elsewhere(node) => Held::Elsewhere(node),
        })
    }

    async fn claim(&self, user: &UserId, hash: UserHash, deadline: Instant) -> Result<Held, Refusal> {
        let is_new = self.membership.stored(hash).is_none();
        let began = Instant::now();
        let held = self.hold(user, hash, self.membership.claim(hash, deadline)).await;
        if is_new {
            let metrics = &self.house.metrics;
            match &held {
                Ok(Held::Here(_)) => {
                    metrics.claim.record(began.elapsed().as_secs_f64());
                    metrics.claims.increment(ClaimResult::Won);
                }
                Ok(Held::Elsewhere(_)) => metrics.claims.increment(ClaimResult::Owned),
                // Another node gets the user.
                Err(Refusal::Draining | Refusal::Full) => {}
                // The request had waited elsewhere: nothing is known to be wrong here.
                Err(Refusal::Late)
                    if began.elapsed() < FAILED_AFTER.min(self.house.config.route_timeout / 2) => {}
                Err(_) => metrics.claims.increment(ClaimResult::Failed),
            }
        }
        held
    }

    async fn address(&self, hash: UserHash, id: NodeId) -> Result<Route, RouteError> {
        let address = |id: NodeId| {
            let info = self.membership.node(&id)?;
            Some(Route::Node(NodeAddress { id, address: info.address }))
        };
        if let Some(route) = address(id) {
            return Ok(route);
        }
        // The node has ended, or the watch is behind.
        let owner = self.membership.locate(hash).await?;
        owner.and_then(address).ok_or(RouteError::Unknown)
    }
}
