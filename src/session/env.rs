//! What children and sessions are started with. No global: several systems may live in one process.

use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[cfg(feature = "broker")]
use crate::broker::Broker;
use crate::child::ShimProgram;
#[cfg(feature = "cluster")]
use crate::cluster::Cluster;
use crate::config::{Config, Rung};
use crate::installation::{program::Program, versions::Installed};
use crate::isolation::Isolator;
use crate::model::ids::UserId;
use crate::session::ImportAbility;
use crate::session::access::AccessRules;
use crate::session::cgroups::Cgroups;
use crate::spend::Spend;
use crate::support::lock::MutexExt;
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::flag;
use crate::workspace::{CredentialsPlace, user_env::UserEnv};

/// The environment of all sessions of one system: configuration, telemetry and the means to start a child.
#[derive(Debug)]
pub(crate) struct Env {
    /// The configuration at the start. Keys that change while the system runs are read from [`Env::current`].
    pub(crate) config: Arc<Config>,
    pub(crate) current: Mutex<Arc<Config>>,
    pub(crate) telemetry: Telemetry,
    pub(crate) shim: ShimProgram,
    pub(crate) program: Program,
    /// Which executable the program is, and what is known of it. A trial start shares it with its system.
    pub(crate) installed: Arc<Installed>,
    /// Whether the CLI resumes an imported conversation.
    pub(crate) import_ability: ImportAbility,
    pub(crate) cgroups: Cgroups,
    pub(crate) isolation: Isolator,
    pub(crate) user_env: UserEnv,
    /// The way of children to the model's API and to other hosts; `None` where they have their own.
    #[cfg(feature = "broker")]
    pub(crate) broker: Option<Broker>,
    /// The way of all children to the model's API and to other hosts.
    pub(crate) access: AccessRules,
    /// This node's part in a cluster; `None` where it is alone.
    #[cfg(feature = "cluster")]
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// What users spend.
    pub(crate) spend: Arc<Spend>,
    /// `NAME=value` in the environment of everything that this data directory's systems start.
    pub(crate) marker: Marker,
    /// How a trial start is made; `None` in the system of a trial start itself.
    pub(crate) trial: Option<TrialStart>,
    /// Every task of this system. Shutdown waits until all have ended.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the last supervisor has ended.
    pub(crate) ended: CancellationToken,
}

/// Starts the CLI once, beside the sessions, to find out whether its version starts at all.
pub(crate) type TrialStart = fn(&Env) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// An environment variable that all descendants inherit and that identifies their data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) name: &'static str,
    pub(crate) value: String,
}

impl Env {
    /// The configuration that is in effect now. Only keys that a reload may change differ from the one at the start.
    pub(crate) fn current(&self) -> Arc<Config> {
        self.current.lock_unpoisoned().clone()
    }

    /// Whether the broker counts what children request. The simulated CLI requests nothing, and has a cost.
    pub(crate) fn is_metered(&self) -> bool {
        self.access.is_brokered && self.program != Program::Sim
    }

    /// Whether this system exists for one trial start. It has no user's settings and decides whether a version starts.
    pub(crate) fn is_trial(&self) -> bool {
        self.trial.is_none()
    }

    /// Whether this node no longer holds its sessions, so that no child may start.
    pub(crate) fn is_fenced(&self) -> bool {
        #[cfg(feature = "cluster")]
        return self.cluster.as_ref().is_some_and(|cluster| cluster.fence().has_passed());
        #[cfg(not(feature = "cluster"))]
        false
    }

    /// The deadline up to which this node holds its sessions, for the shims of their children; `None` without a cluster.
    #[cfg_attr(not(feature = "cluster"), expect(clippy::unused_self, reason = "as with the feature"))]
    pub(crate) fn fence_page(&self) -> Option<BorrowedFd<'_>> {
        #[cfg(feature = "cluster")]
        return self.cluster.as_ref().map(|cluster| cluster.fence().page());
        #[cfg(not(feature = "cluster"))]
        None
    }

    /// Cancelled when another node may have the user, and what runs here must end at once; `None` without a cluster.
    #[cfg(feature = "cluster")]
    pub(crate) fn lost(&self, user: &UserId) -> Option<CancellationToken> {
        self.cluster.as_ref().map(|cluster| cluster.lost(user))
    }

    #[cfg(not(feature = "cluster"))]
    #[expect(clippy::unused_self, reason = "as with the feature")]
    pub(crate) fn lost(&self, _: &UserId) -> Option<CancellationToken> {
        None
    }

    /// Shows whether children have the limits of their cgroups: they can be lost and come back while the system runs.
    pub(crate) fn publish_limits(&self) {
        if self.isolation.proven().holds(Rung::Cgroup) {
            let (metrics, is_lost) = (&self.telemetry.metrics, self.cgroups.are_limits_lost());
            metrics.isolation.set(Rung::Cgroup, flag(!is_lost));
            metrics.isolation_missing.set(Rung::Cgroup, flag(is_lost));
        }
    }

    /// Where the OAuth credentials of sessions are.
    pub(crate) fn credentials_place(&self) -> CredentialsPlace {
        if self.access.is_brokered { CredentialsPlace::Record } else { CredentialsPlace::Cli }
    }

    /// Spawns a task that is dropped when the system ends.
    pub(crate) fn spawn_until_end(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = ended.cancelled() => {}
            }
        });
    }
}
