//! The cluster as this node sees it, for operators.

use serde::Serialize;

use super::Cluster;

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
    /// The live nodes and their users.
    pub(crate) fn status(&self) -> ClusterStatus {
        let owners = self.owners();
        let mut nodes: Vec<_> = self
            .membership
            .nodes()
            .into_iter()
            .map(|(id, info)| NodeStatus {
                users: owners.get(id.as_str()).copied().unwrap_or_default(),
                name: id.to_string(),
                address: info.address,
                version: info.version,
                draining: info.draining,
                room: info.room,
            })
            .collect();
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        ClusterStatus {
            node: self.name().to_owned(),
            is_member: self.problem().is_none(),
            coming: self.coming(),
            nodes,
        }
    }
}
