//! Metrics of a node of a cluster, under the same prefix as those of the core. A server that is alone has none of them.

use ::metrics::{Counter, Gauge, Histogram};

use super::catalogue::{Metric, Unit, declare};
use super::labels::{ClaimResult, CommitResult, ForwardResult};
use super::series::{By, Family, Registrar};

declare! {
    /// Metrics of one node.
    ClusterMetrics:

    nodes: Gauge = "cluster_nodes", Count, "Nodes of the cluster that this node sees.";
    users: Gauge = "cluster_users", Count, "Users whom this node of the cluster has.";
    claims: By<ClaimResult, Counter> = "cluster_claims_total", Count,
        "Claims of users by this node of the cluster, by result.";
    commits: By<CommitResult, Counter> = "cluster_commits_total", Count,
        "Commits of users' changes to the store of the cluster, by result.";
    commit_bytes: Counter = "cluster_commit_bytes_total", Bytes,
        "Bytes of objects written to the store of the cluster.";
    left_out: Counter = "cluster_left_out_files_total", Count,
        "Changed workspace files that were too large or too many for the object of a turn, or that could not be read.";
    lag: Gauge = "cluster_lag_seconds", Seconds,
        "Age of the oldest change that is not in the store of the cluster.";
    forwarded: By<ForwardResult, Counter> = "cluster_forwarded_total", Count,
        "Requests sent to the node of the cluster that has their user, by result.";
    lease_lost: Counter = "cluster_lease_lost_total", Count,
        "Leases of this node in the cluster that ended before it left.";
    lost_users: Counter = "cluster_lost_users_total", Count,
        "Users whose ownership this node of the cluster has lost: their children were ended at once.";
    claim: Histogram = "cluster_claim_seconds", Seconds,
        "Time to claim a user in the cluster and to fetch its files.",
        &[0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0];
    commit: Histogram = "cluster_commit_seconds", Seconds,
        "Time of a commit to the store of the cluster.",
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
}
