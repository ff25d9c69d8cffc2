//! The start of this node's part in a cluster.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fence::Fence;
use super::house::{House, Steward};
use super::ledger::{Credentials, Etcd, EtcdSettings, NodeInfo, TlsFiles};
use super::membership::{Clock, MemberSettings, Membership};
use super::ownership::Limits;
use super::pace::Pace;
use super::replica::store::StoreConfig;
use super::replica::{Replica, ReplicaConfig};
use super::{Cluster, Residents};
use crate::config::{self, Config};
use crate::error::{Cause, StartError};
use crate::support::blocking::blocking;
use crate::support::secret_file;
use crate::telemetry::metrics::ClusterMetrics;

/// Users of one node, in any state: some kilobytes of memory each.
const MAX_USERS: usize = 100_000;
/// Requests of one user that wait for it to come, or work.
pub(super) const MAX_WAITING: usize = 1024;
/// Owners that a node knows of: some 100 bytes each.
const MAX_OWNERS: usize = 2_000_000;
/// Longest password.
const MAX_PASSWORD: u64 = 4096;

impl Cluster {
    /// Joins the cluster. Waits until etcd answers.
    ///
    /// # Errors
    /// [`StartError::Cluster`]
    pub(crate) async fn join(
        config: &Config,
        metrics: ClusterMetrics,
        tasks: &TaskTracker,
        end: &CancellationToken,
    ) -> Result<Arc<Self>, StartError> {
        let failed = |error: Cause| StartError::Cluster(error);
        let cluster = &config.cluster;
        let ledger = etcd(cluster).await?;
        let replica = replica(config, &config.data_dir, tasks)?;
        let data_dir = config.data_dir.clone();
        let recovered = blocking(move || {
            super::replica::recover(&data_dir)?;
            super::mark::begin(&data_dir)?;
            Ok(super::bring_in::unknown_users(&data_dir)?.len())
        });
        let coming = recovered.await;
        let coming =
            coming.map_err(|source| StartError::DataDir { path: config.data_dir.clone(), source })?;
        let metrics = Arc::new(metrics);
        let house =
            Arc::new(House::new(cluster.clone(), config.data_dir.clone(), replica, metrics, tasks.clone()));
        // Validated.
        let listen = cluster.listen.map(|address| address.to_string()).unwrap_or_default();
        let address = cluster.address.clone().unwrap_or(listen);
        let settings = MemberSettings {
            id: cluster.node.parse().map_err(|error: super::ledger::RecordError| failed(error.into()))?,
            info: NodeInfo::new(address, cluster.room, env!("CARGO_PKG_VERSION").to_owned()),
            prefix: cluster.prefix.clone(),
            ttl: cluster.lease,
            limits: Limits { users: MAX_USERS, requests: MAX_WAITING },
            max_owners: MAX_OWNERS,
            clock: Clock::Boot,
        };
        let steward = Arc::new(Steward(house.clone()));
        let joined =
            Membership::join(Arc::new(ledger), steward, settings, tasks.clone(), end.child_token()).await;
        let membership = joined.map_err(|error| failed(error.into()))?;
        house.joined(membership.clone());
        let fence = Arc::new(Fence::new().map_err(|error| failed(error.into()))?);
        let mut deadline = membership.deadline();
        fence.put(deadline.borrow_and_update().map(|deadline| deadline.nanos));
        let is_leaving = Arc::<AtomicBool>::default();
        let (leaves, keeper) = (is_leaving.clone(), house.clone());
        let (moved, ended, mut is_member) = (fence.clone(), end.child_token(), true);
        tasks.spawn(async move {
            // Shims look at the page themselves: it may be behind, and never ahead.
            while let Some(Ok(())) = ended.run_until_cancelled(deadline.changed()).await {
                let held = deadline.borrow_and_update().map(|deadline| deadline.nanos);
                moved.put(held);
                if std::mem::replace(&mut is_member, held.is_some())
                    && held.is_none()
                    && !leaves.load(Ordering::Acquire)
                {
                    keeper.lease_lost();
                }
            }
        });
        let pace = Mutex::new(Pace::new(cluster.rebalance_per_minute as usize));
        Ok(Arc::new(Self { house, membership, fence, is_leaving, coming: AtomicUsize::new(coming), pace }))
    }

    /// Serves users with what runs here, until the result is dropped. Users whose files were here before the cluster are
    /// brought into it meanwhile.
    pub(crate) fn serve(
        self: &Arc<Self>,
        residents: Arc<dyn Residents>,
    ) -> impl Future<Output = ()> + Send + use<> {
        self.house.inhabit(residents);
        let (house, cluster) = (self.house.clone(), self.clone());
        async move {
            tokio::join!(house.look_after(), cluster.bring_in());
        }
    }
}

/// The client of etcd. It connects at the first request.
pub(super) async fn etcd(cluster: &config::Cluster) -> Result<Etcd, StartError> {
    let credentials = match (&cluster.etcd_user, &cluster.etcd_password_file) {
        (Some(user), Some(path)) => Some(Credentials { user: user.clone(), password: password(path).await? }),
        _ => None,
    };
    let settings = EtcdSettings {
        credentials,
        tls: TlsFiles { ca: cluster.etcd_ca_file.clone(), client: cluster.etcd_identity_file.clone() },
        ..EtcdSettings::new(cluster.etcd.clone(), cluster.lease)
    };
    Etcd::new(settings).map_err(|error| StartError::Cluster(error.into()))
}

/// The users' objects, whose files are in `data_dir`.
pub(super) fn replica(config: &Config, data_dir: &Path, tasks: &TaskTracker) -> Result<Replica, StartError> {
    let replica = ReplicaConfig {
        store: StoreConfig::new(&config.cluster.store),
        credentials: config.cluster.credentials,
        workspace_bytes: config.limits.workspace_bytes,
    };
    Replica::open(&replica, data_dir, tasks.clone()).map_err(|error| StartError::Cluster(error.into()))
}

async fn password(path: &Path) -> Result<String, StartError> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || secret_file::read(&path, MAX_PASSWORD)).await;
    let (content, _) = read
        .map_err(|error| StartError::Cluster(error.into()))?
        .map_err(|error| StartError::Cluster(error.into()))?;
    let text = String::from_utf8(content.trim_ascii().to_vec());
    text.map_err(|error| StartError::Cluster(error.utf8_error().into()))
}
