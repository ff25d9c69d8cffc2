//! This node's part in a cluster, as seen by requests: each goes to the node that has its user.
//!
//! A handler that meets a user of another node answers with an error that names the node ([`App::route`]). The outermost layer
//! then sends the request there ([`forward`]), with the identity of its caller, signed with the secret of the cluster
//! ([`peer`]). A request that came from another node is never sent on: one hop at most.

mod answer;
mod content;
mod forward;
mod lost;
mod merge;
mod peer;
mod tls;

use std::sync::{Arc, OnceLock};

use axum::http::HeaderName;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

pub(super) use answer::answer;
pub(super) use peer::Peers;

use super::api::error::ApiError;
use super::app::App;
use super::auth::caller::Caller;
use crate::cluster::{Cluster, Route, RouteError, Unowned};
use crate::error::TurnError;
use crate::model::ids::UserId;
use forward::Forwarder;

/// Header of answers with the name of the node that gave them.
pub(crate) const NODE_HEADER: &str = "x-pilotlight-node";

/// Headers that errors have as well.
pub(super) const OF_ERRORS: [HeaderName; 2] =
    [HeaderName::from_static(NODE_HEADER), HeaderName::from_static(answer::NOT_OWNER_HEADER)];

/// What the server has of the cluster.
pub(super) struct ClusterSide {
    cluster: Arc<Cluster>,
    peers: Arc<Peers>,
    forwarder: Forwarder,
    /// Requests that may go to another node, and answers of other nodes that are passed through.
    passing: TaskTracker,
    /// When this node, which stops, cuts what still passes. What is not passed on by then is answered with an error.
    closes_by: OnceLock<Instant>,
}

impl ClusterSide {
    pub(super) fn new(cluster: Arc<Cluster>, peers: Arc<Peers>) -> Self {
        let forwarder = Forwarder::new(&peers.tls);
        Self { cluster, peers, forwarder, passing: TaskTracker::new(), closes_by: OnceLock::new() }
    }

    /// The deadline of a request, if this node is not to close before it.
    fn at_close(&self, deadline: Instant) -> Instant {
        self.closes_by.get().map_or(deadline, |close| deadline.min(*close))
    }

    /// Why this node takes no requests of new users.
    pub(super) fn problem(&self) -> Option<String> {
        self.cluster.problem()
    }
}

impl App {
    /// Sets when requests and answers that pass through this node are cut.
    pub(super) fn closes_by(&self, until: Instant) {
        if let Some(side) = &self.cluster {
            side.closes_by.set(until).ok();
        }
    }

    /// Waits until nothing passes through this node any more, until it is to be cut at the latest. False if nothing had passed, or
    /// it was to be cut before.
    pub(super) async fn passed_on(&self) -> bool {
        let Some(side) = self.cluster.as_ref().filter(|side| !side.passing.is_empty()) else { return false };
        let now = Instant::now();
        let Some(until) = side.closes_by.get().filter(|until| now < **until) else { return false };
        side.passing.close();
        timeout_at(*until, side.passing.wait()).await.ok();
        true
    }

    /// Has what the server knows of a user written and forgotten when the user leaves this node.
    pub(super) fn put_away_users_who_leave(self: &Arc<Self>) {
        let Some(hand_over) = self.pilot.hand_over() else { return };
        let app = Arc::downgrade(self);
        hand_over.on_leave(Box::new(move |user| {
            let app = app.clone();
            Box::pin(async move {
                if let Some(app) = app.upgrade() {
                    app.put_away(&user).await;
                }
            })
        }));
    }

    /// Makes sure that this node has the user, which is the case without a cluster.
    ///
    /// # Errors
    /// Another node has the user (the error names it), or it is not known which has.
    pub(super) async fn route(&self, caller: &Caller, user: &UserId) -> Result<(), ApiError> {
        let Some(side) = &self.cluster else { return Ok(()) };
        // Where a request comes from another node, that one has chosen this one.
        let unowned = if caller.is_forwarded() { Unowned::Claim } else { Unowned::Place };
        let own = side.cluster.route_deadline();
        let deadline = side.at_close(caller.route_deadline().map_or(own, |deadline| deadline.min(own)));
        match side.cluster.route(user, unowned, deadline).await {
            Ok(Route::Here(grant)) => {
                caller.routed(user, grant);
                Ok(())
            }
            Ok(Route::Node(node)) => Err(ApiError::elsewhere(node)),
            // It is asked again for some time.
            Err(RouteError::Unknown) => Err(TurnError::Moved.into()),
            Err(error) => Err(ApiError::no_node(&error)),
        }
    }
}
