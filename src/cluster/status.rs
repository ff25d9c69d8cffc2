//! The cluster as this node sees it, for operators.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use super::Cluster;
use super::lately::{GoneNode, Moments};
use super::ledger::NodeId;
use crate::support::lock::MutexExt as _;

/// See the module.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ClusterStatus {
    /// Name of the node that answers.
    pub(crate) node: String,
    /// Whether it has a lease.
    pub(crate) is_member: bool,
    /// Users of its data directory who are not in the cluster yet: other nodes do not know what they have here.
    pub(crate) coming: usize,
    pub(crate) nodes: Vec<NodeStatus>,
    /// Other nodes that were there within the last hour.
    pub(crate) gone: Vec<GoneNode>,
    /// Age of the oldest change that only this node has.
    pub(crate) lag_seconds: f64,
    /// Commits of this node that failed, or were late.
    pub(crate) not_stored: Moments,
    /// Commits of this node that were refused, because another one may have the user.
    pub(crate) fenced: Moments,
    /// Leases of this node that ended before it left.
    pub(crate) leases_lost: Moments,
    /// Users whose children were ended at once, because another node may have them.
    pub(crate) users_lost: Moments,
}

/// One node.
#[derive(Debug, Serialize)]
pub(crate) struct NodeStatus {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) version: String,
    pub(crate) draining: bool,
    /// Its share of new users (`cluster.room`).
    pub(crate) room: u32,
    /// Users that it has.
    pub(crate) users: usize,
}

impl Cluster {
    /// The nodes and their users, and how this one fares.
    pub(crate) fn status(&self) -> ClusterStatus {
        let owners = self.owners();
        let own = self.membership.id();
        let live = self.membership.nodes();
        let lately = self.house.lately.lock_unpoisoned();
        // Both are sorted by name.
        let is_live = |id: &NodeId| live.binary_search_by(|(node, _)| node.cmp(id)).is_ok();
        let gone = lately.gone(|id| id == own || is_live(id));
        let nodes = live.into_iter().map(|(id, info)| NodeStatus {
            users: owners.get(id.as_str()).copied().unwrap_or_default(),
            name: id.to_string(),
            address: info.address,
            version: info.version,
            draining: info.draining,
            room: info.room,
        });
        ClusterStatus {
            node: own.to_string(),
            is_member: self.problem().is_none(),
            coming: self.coming(),
            nodes: nodes.collect(),
            gone,
            lag_seconds: Duration::from_millis(self.house.lag_millis.load(Ordering::Relaxed)).as_secs_f64(),
            not_stored: lately.not_stored.clone(),
            fenced: lately.fenced.clone(),
            leases_lost: lately.leases_lost.clone(),
            users_lost: lately.users_lost.clone(),
        }
    }
}
