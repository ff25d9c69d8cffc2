//! The start of a system: the data directory, the leftovers of a former system, the actors.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[cfg(feature = "cluster")]
use super::hand_over::HandOver;
use super::{System, user};
use crate::adapter;
use crate::admission::Admission;
#[cfg(feature = "broker")]
use crate::broker::{Broker, BrokerParts};
use crate::child::{Groups, ShimProgram, memory_limit, sweep_marked};
#[cfg(feature = "cluster")]
use crate::cluster::Cluster;
use crate::config::{Config, ConfigError, Rung};
use crate::error::{Cause, StartError};
use crate::installation::{program::Program, versions::Installed};
use crate::isolation::{Cli, Isolator, Proven, RungState};
use crate::session::access;
use crate::session::cgroups::Cgroups;
use crate::session::env::{Env, Marker, TrialStart};
use crate::session::{ImportAbility, quota, sessions::Sessions, shares_home, storage};
use crate::spares;
use crate::spend::Spend;
use crate::supervisor::{self, retention};
use crate::support::hex;
use crate::telemetry::Telemetry;
#[cfg(feature = "cluster")]
use crate::telemetry::metrics::ClusterMetrics;
use crate::telemetry::metrics::{Metrics, flag};
use crate::workspace::{self, DataDirLock, user_env::UserEnv};

/// Environment variable of all descendants of a system; its value identifies the data directory.
const MARKER: &str = "PILOTLIGHT_INSTANCE";

/// Starts a system. `trial`: how its sessions make trial starts; `None` in the system of one.
pub(super) async fn start(
    config: Config,
    registered: Registered,
    parent: Parent,
    trial: Option<TrialStart>,
) -> Result<System, StartError> {
    let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
    let program = Program::of(&config.cli);
    program.check_is_built()?;
    let shim =
        ShimProgram::locate(config.cli.shim.as_deref()).map_err(|error| StartError::Shim(error.into()))?;
    let metrics = Arc::new(registered.metrics);
    let data_dir = config.data_dir.clone();
    let users = config.cli.user_env_file.clone();
    let template = config.workspace.template.clone();
    let limits_wanted = config.isolation.rungs.contains(&Rung::Cgroup);
    let prepare = move || {
        if let Some(Err(error)) = template.as_deref().map(workspace::template::check) {
            let (key, problem) = ("workspace.template".to_owned(), format!("cannot be copied: {error}"));
            return Err(ConfigError::Key { key, problem }.into());
        }
        let user_env = UserEnv::open(users.as_deref(), adapter::FIXED_VARIABLES)?;
        let prepared = Prepared::prepare(&data_dir, limits_wanted)?;
        let installed = parent.installed.unwrap_or_else(|| Arc::new(Installed::open(&prepared.data_dir)));
        Ok::<_, StartError>((user_env, prepared, installed))
    };
    let task = runtime.spawn_blocking(prepare).await;
    let (user_env, prepared, installed) =
        task.map_err(|error| not_supervised("the preparing task failed", Some(error.into())))??;
    ROOT_WARNING.call_once(warn_of_root);
    metrics.swept_at_start.increment(prepared.swept as u64);
    if prepared.swept > 0 {
        tracing::warn!(processes = prepared.swept, "ended what a former instance had left");
    }
    let config = Config { data_dir: prepared.data_dir, ..config };
    let found = program.find().ok();
    let cli = Cli {
        data_dir: parent.data_dir.as_deref().unwrap_or(&config.data_dir),
        program: found.as_ref().map(|found| found.path.as_path()),
        shares_home: shares_home(&config.cli),
    };
    let limits = prepared.groups.limits.as_ref();
    let isolation = Isolator::start(&config, &config.data_dir, &shim, cli, limits, parent.proven).await?;
    publish(isolation.proven(), &config, &metrics, trial.is_some());
    let access = access::rules(&config, isolation.network_means(false))?;
    if let Some(warning) = access.warning().filter(|_| trial.is_some()) {
        tracing::warn!("{warning}");
    }
    let memory = config.limits.memory_of_session(memory_limit().unwrap_or(u64::MAX));
    let cgroups = Cgroups::new(prepared.groups, isolation.proven(), &config, memory);
    metrics.containment.select(cgroups.containment());
    metrics.sessions_limit.set(config.limits.max_sessions as f64);
    metrics.children_limit.set(config.limits.max_children as f64);
    let admission = Admission::new(&config.limits, metrics.clone());
    let marker = Marker { name: MARKER, value: prepared.marker };
    let tasks = TaskTracker::new();
    let ended = CancellationToken::new();
    let limit = config.limits.usd_per_user_day;
    let spend = Arc::new(Spend::new(&config.data_dir, limit, tasks.clone(), ended.clone()));
    #[cfg(feature = "broker")]
    let broker = {
        let parts = BrokerParts {
            config: config.broker.clone(),
            spend: spend.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            ended: ended.clone(),
        };
        // A trial start has no user and sends nothing to the API.
        let is_needed = trial.is_some() && access.has_endpoint;
        let begun = is_needed.then(|| runtime.spawn_blocking(|| Broker::new(parts)));
        match begun {
            Some(begun) => Some(
                begun.await.map_err(|error| not_supervised("the broker failed", Some(error.into())))??,
            ),
            None => None,
        }
    };
    #[cfg(feature = "cluster")]
    let cluster = match registered.cluster {
        Some(metrics) => Some(Cluster::join(&config, metrics, &tasks, &ended).await?),
        None => None,
    };
    let config = Arc::new(config);
    let env = Arc::new(Env {
        current: Mutex::new(config.clone()),
        config,
        telemetry: Telemetry::new(metrics),
        shim,
        program,
        installed,
        import_ability: ImportAbility::default(),
        cgroups,
        isolation,
        user_env,
        #[cfg(feature = "broker")]
        broker,
        access,
        #[cfg(feature = "cluster")]
        cluster: cluster.clone(),
        spend,
        marker,
        trial,
        tasks,
        ended,
    });
    let sessions = Arc::new(Sessions::new(env.clone(), admission));
    // If it panics, the watch reports it.
    storage::check(&sessions).await;
    env.spawn_until_end(storage::watch(sessions.clone()));
    env.spawn_until_end(quota::watch(sessions.clone()));
    // A trial start has no sessions to keep.
    if !env.is_trial() {
        env.spawn_until_end(retention::watch(sessions.clone()));
        env.spawn_until_end(spares::run(sessions.clone()));
    }
    let (ready, started) = oneshot::channel();
    env.tasks.spawn(supervisor::run(sessions.clone(), ready));
    match started.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(not_supervised(&error.to_string(), Some(error.into()))),
        Err(_) => return Err(not_supervised("it failed at once", None)),
    }
    #[cfg(feature = "cluster")]
    let hand_over = cluster.map(|cluster| {
        let hand_over = Arc::new(HandOver::new(sessions.clone()));
        env.spawn_until_end(cluster.serve(hand_over.clone()));
        hand_over
    });
    Ok(System {
        sessions,
        #[cfg(feature = "cluster")]
        hand_over,
        shut_down: OnceCell::new(),
        data_dir: Arc::new(Mutex::new(Some(prepared.lock))),
    })
}

/// The metrics of a system.
pub(super) struct Registered {
    metrics: Metrics,
    /// Those of a node of a cluster.
    #[cfg(feature = "cluster")]
    cluster: Option<ClusterMetrics>,
}

impl Registered {
    /// Those of a trial start, which nobody sees. It joins no cluster.
    pub(super) fn of_trial(config: &Config) -> Self {
        Self {
            metrics: Metrics::register(&::metrics::NoopRecorder, &config.metrics.prefix),
            #[cfg(feature = "cluster")]
            cluster: None,
        }
    }

    pub(super) fn with(recorder: &dyn ::metrics::Recorder, config: &Config) -> Self {
        let prefix = &config.metrics.prefix;
        Self {
            metrics: Metrics::register(recorder, prefix),
            #[cfg(feature = "cluster")]
            cluster: config.cluster.is_on().then(|| ClusterMetrics::register(recorder, prefix)),
        }
    }
}

/// What a trial start shares with the system that makes it.
#[derive(Debug, Default)]
pub(crate) struct Parent {
    pub(crate) installed: Option<Arc<Installed>>,
    pub(crate) proven: Option<Arc<Proven>>,
    /// The data directory that rungs are proven for, if it is another one.
    pub(crate) data_dir: Option<PathBuf>,
}

impl Parent {
    pub(crate) fn of(env: &Env) -> Self {
        let proven = Some(env.isolation.proven().clone());
        Self { installed: Some(env.installed.clone()), proven, data_dir: None }
    }
}

/// Shows which rungs children get. A trial start has nothing new to say.
fn publish(proven: &Proven, config: &Config, metrics: &Metrics, log: bool) {
    let mut held = Vec::new();
    for (rung, state) in proven.states() {
        metrics.isolation.set(*rung, flag(*state == RungState::Held));
        let is_missing = matches!(state, RungState::Unavailable { .. });
        metrics.isolation_missing.set(*rung, flag(is_missing && config.isolation.expects(*rung)));
        match state {
            RungState::Held => held.push(rung.as_str()),
            RungState::Unavailable { reason, remedy } if log && config.isolation.expects(*rung) => {
                tracing::warn!(
                    rung = rung.as_str(),
                    reason,
                    remedy,
                    "children do not get a rung of isolation"
                );
            }
            RungState::Unavailable { reason, .. } if log => {
                tracing::info!(rung = rung.as_str(), reason, "a rung of isolation is not available");
            }
            _ => {}
        }
    }
    if log {
        tracing::info!(rungs = held.join(","), "isolation of children");
    }
}

fn not_supervised(message: &str, source: Option<Cause>) -> StartError {
    StartError::Supervisor { message: message.to_owned(), source }
}

/// Once in a process: trial starts are instances too.
static ROOT_WARNING: std::sync::Once = std::sync::Once::new();

fn warn_of_root() {
    if rustix::process::geteuid().is_root() {
        tracing::warn!(
            "running as root: children get no capabilities, but they own all that root owns; give the server a user \
             of its own"
        );
    }
}

/// What is found and done before there can be sessions.
struct Prepared {
    data_dir: PathBuf,
    lock: DataDirLock,
    groups: Groups,
    marker: String,
    swept: usize,
}

impl Prepared {
    /// Locks the data directory and ends what a former system left. Blocks.
    fn prepare(data_dir: &Path, limits_wanted: bool) -> Result<Self, StartError> {
        let lock = workspace::open(data_dir)?;
        // One name for one directory, however it was written: children are found again by it.
        let data_dir = data_dir
            .canonicalize()
            .map_err(|source| StartError::DataDir { path: data_dir.to_owned(), source })?;
        let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
        let marker = hex::encode(digest.get(..16).unwrap_or_default());
        // The lock is held: a process with the marker belongs to an instance that has ended.
        let name = format!("pilotlight-{marker}");
        let groups = Groups::detect(&name, limits_wanted);
        let swept = groups.sweep() + sweep_marked(&format!("{MARKER}={marker}"), &[]);
        spares::sweep(&data_dir);
        workspace::finish_deletions(&data_dir);
        user::finish_deletions(&data_dir);
        Ok(Self { data_dir, lock, groups, marker, swept })
    }
}
