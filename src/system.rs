//! The handle: what an embedding program holds.

pub mod probe;
mod session;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pilotlight_shim::report::KillMethod;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::session::Session;
use crate::adapter::Adapter;
use crate::adapter::claude::CLAUDE;
use crate::admission::{Admission, Pressure};
use crate::child::{CgroupBase, ShimProgram, UNKILLABLE, sweep_marked};
use crate::config::Config;
use crate::error::{StartError, TurnError};
use crate::installation::program::Program;
use crate::installation::versions::Installed;
#[cfg(feature = "server")]
use crate::model::ids::SessionHash;
use crate::model::ids::{DEFAULT_CONVERSATION, InvalidName, SessionKey, UserId};
use crate::session::actor_refs::SupervisorMessage;
use crate::session::env::{Cgroups, Env, Marker, TrialStart};
use crate::session::sessions::Sessions;
use crate::session::{ImportAbility, OnDisk, SessionMessage, SessionStatus, on_disk};
use crate::session::{executable, storage};
use crate::supervisor;
use crate::support::take_once::TakeOnce;
use crate::telemetry::Telemetry;
use crate::telemetry::events::EventStream;
use crate::telemetry::metrics::Metrics;
use crate::workspace::user_env::UserEnv;
use crate::workspace::{self, DataDirLock};
#[cfg(feature = "server")]
use crate::workspace::{CredentialsFile, Workspace};

/// In the environment of everything that an instance starts, with a value that tells its data directory.
const MARKER: &str = "PILOTLIGHT_INSTANCE";

/// Tasks that are still there so long after all children are gone are named in the log and left.
const LAST_TASKS: Duration = Duration::from_secs(5);

/// A running system of supervisor, sessions and children. Cheap to clone; all clones are the same system.
///
/// When the last clone and the last [`Session`] are dropped without [`Pilotlight::shutdown`], no more turns are taken
/// and all children are stopped in the background. When the runtime itself is dropped, their trees are killed.
#[derive(Clone, Debug)]
pub struct Pilotlight {
    system: Arc<System>,
}

/// What the handles share.
#[derive(Debug)]
pub(crate) struct System {
    pub(crate) sessions: Arc<Sessions>,
    shut_down: OnceCell<()>,
    /// Held until nothing of this system runs any more.
    data_dir: Arc<TakeOnce<DataDirLock>>,
}

/// Whether turns can be taken, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// All is well.
    pub ready: bool,
    /// What is not, in words; empty when ready.
    pub reasons: Vec<String>,
}

impl Pilotlight {
    /// Starts the system: locks the data directory, ends what a former instance left, starts the actors. No child
    /// is started before the first turn. Metrics go to the recorder that is installed now.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        config.validate()?;
        let metrics = Metrics::register_current(&config.metrics.prefix);
        Self::start_inside(config, metrics, None, Some(probe::beside_sessions)).await
    }

    /// As [`Pilotlight::start`], without metrics; what it learns of the CLI is shared with `installed`.
    pub(crate) async fn start_trial(
        config: Config,
        installed: Option<Arc<Installed>>,
    ) -> Result<Self, StartError> {
        config.validate()?;
        let metrics = Metrics::register(&metrics::NoopRecorder, &config.metrics.prefix);
        Self::start_inside(config, metrics, installed, None).await
    }

    /// As [`Pilotlight::start`], with metrics that go to `recorder` and not to the one that is installed.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_with(
        config: Config,
        recorder: &dyn metrics::Recorder,
    ) -> impl Future<Output = Result<Self, StartError>> + Send + use<> {
        let registered = config.validate().map(|()| Metrics::register(recorder, &config.metrics.prefix));
        async move { Self::start_inside(config, registered?, None, Some(probe::beside_sessions)).await }
    }

    async fn start_inside(
        config: Config,
        metrics: Metrics,
        installed: Option<Arc<Installed>>,
        trial: Option<TrialStart>,
    ) -> Result<Self, StartError> {
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let program = Program::of(&config.cli);
        program.check_is_built()?;
        let shim = ShimProgram::locate(config.cli.shim.as_deref())
            .map_err(|error| StartError::Shim(error.to_string()))?;
        let metrics = Arc::new(metrics);
        let data_dir = config.data_dir.clone();
        let users = config.cli.user_env_file.clone();
        let prepare = move || {
            let user_env = UserEnv::open(users.as_deref(), CLAUDE.fixed_variables())?;
            let ground = Ground::prepare(&data_dir)?;
            let installed = installed.unwrap_or_else(|| Arc::new(Installed::open(&ground.data_dir)));
            Ok::<_, StartError>((user_env, ground, installed))
        };
        let prepared = runtime.spawn_blocking(prepare).await;
        let (user_env, ground, installed) =
            prepared.map_err(|_| StartError::Supervisor("the preparing task failed".to_owned()))??;
        ROOT_WARNING.call_once(warn_of_root);
        metrics.swept_at_start.increment(ground.swept as u64);
        if ground.swept > 0 {
            tracing::warn!(processes = ground.swept, "ended what a former instance had left");
        }
        metrics.containment.select(if ground.cgroups.is_some() {
            KillMethod::Cgroup
        } else {
            KillMethod::Walk
        });
        let config = Config { data_dir: ground.data_dir, ..config };
        metrics.sessions_limit.set(config.limits.max_sessions as f64);
        metrics.children_limit.set(config.limits.max_children as f64);
        let admission = Admission::new(&config.limits, metrics.clone());
        let marker = Marker { name: MARKER, value: ground.marker };
        let env = Arc::new(Env {
            config: Arc::new(config),
            adapter: &CLAUDE,
            telemetry: Telemetry::new(metrics),
            shim,
            program,
            installed,
            import_ability: ImportAbility::default(),
            cgroups: Cgroups::new(ground.cgroups),
            user_env,
            marker,
            trial,
            tasks: TaskTracker::new(),
            ended: CancellationToken::new(),
        });
        let sessions = Arc::new(Sessions::new(env.clone(), admission));
        // If it panics, the watch says so.
        storage::check(&sessions).await;
        env.spawn_until_end(storage::watch(sessions.clone()));
        let (ready, started) = oneshot::channel();
        env.tasks.spawn(supervisor::run(sessions.clone(), ready));
        match started.await {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => return Err(StartError::Supervisor(problem)),
            Err(_) => return Err(StartError::Supervisor("it failed at once".to_owned())),
        }
        let system =
            System { sessions, shut_down: OnceCell::new(), data_dir: Arc::new(TakeOnce::new(ground.lock)) };
        Ok(Self { system: Arc::new(system) })
    }

    /// Waits until the version of the CLI that was started is known.
    pub(crate) async fn look_at_version(&self) {
        executable::learn_version(self.env()).await;
    }

    /// What a trial start shares with this instance.
    #[cfg(feature = "server")]
    pub(crate) fn installed(&self) -> Arc<Installed> {
        self.env().installed.clone()
    }

    /// Shows in the metrics what a trial start has found out.
    #[cfg(feature = "server")]
    pub(crate) fn publish_version(&self) {
        self.env().installed.publish(&self.env().telemetry.metrics);
    }

    /// What an operator should know of the CLI that is started: it is of a version that was not judged, or not the
    /// configured one, which does not start. `None` before the first start.
    #[must_use]
    pub fn cli_warning(&self) -> Option<String> {
        self.env().installed.warning()
    }

    /// The configuration that this instance runs with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.env().config
    }

    /// The default conversation of `user`. Nothing is started or checked before the first turn.
    #[must_use]
    pub fn session(&self, user: impl AsRef<[u8]>) -> Session {
        self.conversation(user, DEFAULT_CONVERSATION)
    }

    /// A named conversation of `user`.
    #[must_use]
    pub fn conversation(&self, user: impl AsRef<[u8]>, conversation: &str) -> Session {
        let key: Result<SessionKey, InvalidName> =
            UserId::new(user).and_then(|user| SessionKey::new(user, conversation));
        Session::new(self.system.clone(), key)
    }

    /// The sessions that are in memory now (a session that is only on disk is not).
    #[must_use]
    pub fn sessions(&self) -> Vec<(SessionKey, SessionStatus)> {
        let entries = self.shared().registry.entries();
        entries.into_iter().map(|entry| (entry.key.clone(), entry.status.status())).collect()
    }

    /// The sessions of `user`, or of all users: those in memory, and those that are only on disk as far as they are
    /// looked at (a thousand). Those used last come first. Whether there are more is said beside.
    ///
    /// # Errors
    /// [`TurnError::Storage`] if the data directory cannot be read.
    pub async fn known_sessions(
        &self,
        user: Option<&UserId>,
    ) -> Result<(Vec<(SessionKey, SessionStatus)>, bool), TurnError> {
        let (data_dir, owner) = (self.config().data_dir.clone(), user.cloned());
        let found = tokio::task::spawn_blocking(move || on_disk(&data_dir, owner.as_ref())).await;
        let found = found.map_err(|_| TurnError::Internal("the list of sessions could not be made"))?;
        let OnDisk { sessions, truncated } = found.map_err(|error| TurnError::Storage(error.to_string()))?;
        let mut known: HashMap<SessionKey, SessionStatus> = sessions.into_iter().collect();
        // What is in memory is newer, and may not be on disk yet.
        known.extend(
            self.sessions().into_iter().filter(|(key, _)| user.is_none_or(|user| key.user() == user)),
        );
        let mut known: Vec<_> = known.into_iter().collect();
        known.sort_by_key(|(_, status)| std::cmp::Reverse(status.last_used));
        Ok((known, truncated))
    }

    /// Subscribes to the events of all sessions, beginning with the oldest in the log (the last few hundred).
    #[must_use]
    pub fn events(&self) -> EventStream {
        EventStream::of(self.env().telemetry.events.clone())
    }

    /// Whether a turn of a new user would be taken now.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let sessions = self.shared();
        let mut reasons = Vec::new();
        if sessions.is_draining() {
            reasons.push("stopping".to_owned());
        }
        if sessions.admission.pressure() >= Pressure::NoNewChildren {
            reasons.push("no memory is left for another child (limits.memory_budget)".to_owned());
        }
        if sessions.admission.is_full() && sessions.admission.wants_room() {
            reasons.push("as many children live as may (limits.max_children)".to_owned());
        }
        if let Some(problem) = sessions.storage.problem() {
            reasons.push(format!("nothing can be written to the data directory (data_dir): {problem}"));
        }
        Readiness { ready: reasons.is_empty(), reasons }
    }

    /// By what everything that a child started is found when it is stopped: `cgroup`, or `walk` (by ancestry) where no
    /// group can be made.
    #[must_use]
    pub fn containment(&self) -> &'static str {
        self.env().cgroups.containment().as_str()
    }

    /// Refuses new turns from now on ([`crate::TurnError::Draining`]); running ones go on.
    pub fn drain(&self) {
        self.shared().drain();
    }

    /// Drains, waits for running turns up to `grace`, then stops every child in order (interrupt, end of input,
    /// SIGTERM, kill of the tree). When it returns nothing that this instance started is left. Further calls wait for
    /// the first; a call that is dropped before its end leaves the rest to the next one.
    pub async fn shutdown(&self, grace: Duration) {
        let System { sessions, data_dir, shut_down: once } = &*self.system;
        once.get_or_init(|| shut_down(sessions.clone(), data_dir.clone(), grace)).await;
    }

    /// The sessions on disk, by the hashes of their keys. Blocking.
    #[cfg(feature = "server")]
    pub(crate) fn workspaces(&self) -> impl Iterator<Item = (SessionHash, Workspace)> {
        Workspace::all(&self.config().data_dir)
    }

    /// Whose session it is. Blocking.
    #[cfg(feature = "server")]
    pub(crate) fn owner(&self, session: &SessionHash) -> Option<UserId> {
        crate::session::owner_on_disk(&self.config().data_dir, session)
    }

    /// The credentials file of a session; `None` if sessions share one file.
    #[cfg(feature = "server")]
    pub(crate) fn credentials_file(&self, workspace: &Workspace) -> Option<CredentialsFile> {
        workspace.credentials_file(self.env().adapter, &self.config().cli)
    }

    fn shared(&self) -> &Arc<Sessions> {
        &self.system.sessions
    }

    fn env(&self) -> &Env {
        &self.system.sessions.env
    }

    /// Makes an actor panic.
    #[cfg(feature = "failpoints")]
    #[doc(hidden)]
    pub async fn fail(&self, actor: &str, user: &str) {
        use crate::session::actor_refs::{IdleMessage, SamplerMessage};
        let sessions = self.shared();
        match actor {
            "supervisor" => {
                let supervisor = sessions.actor_refs.supervisor().await;
                drop(supervisor.map(|supervisor| supervisor.cast(SupervisorMessage::Panic)));
            }
            "evictor" => sessions.actor_refs.cast_evictor(IdleMessage::Panic),
            "sampler" => sessions.actor_refs.cast_sampler(SamplerMessage::Panic),
            _ => {
                let key = UserId::new(user).and_then(|user| SessionKey::new(user, DEFAULT_CONVERSATION));
                if let Some(entry) = key.ok().and_then(|key| sessions.registry.get(&key)) {
                    drop(entry.actor.cast(SessionMessage::Panic));
                }
            }
        }
    }
}

/// Upper bound of an orderly stop of a child.
fn longest_stop(config: &Config) -> Duration {
    let limits = &config.session;
    // The steps, then a tree that does not die (waited for twice, see the driver), then the answer.
    limits.stop_interrupt + limits.stop_eof + limits.stop_term + 2 * UNKILLABLE + Duration::from_secs(5)
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

async fn shut_down(sessions: Arc<Sessions>, data_dir: Arc<TakeOnce<DataDirLock>>, grace: Duration) {
    sessions.drain();
    sessions.open_turns.close();
    if timeout(grace, sessions.open_turns.wait()).await.is_err() {
        tracing::warn!(turns = sessions.open_turns.len(), "turns are interrupted: they did not end in time");
    }
    let stopped: Vec<_> = sessions
        .registry
        .entries()
        .into_iter()
        .map(|entry| {
            let (reply, gone) = oneshot::channel();
            drop(entry.actor.cast(SessionMessage::ShutDown(reply)));
            (entry, gone)
        })
        .collect();
    let deadline = Instant::now() + longest_stop(&sessions.env.config);
    for (entry, gone) in stopped {
        if timeout_at(deadline, gone).await.is_err() {
            tracing::error!(session = %entry.key.hash(), "a child could not be stopped");
        }
        sessions.registry.forget_actor(entry.actor.get_id());
        entry.actor.stop(None);
    }
    // A former try may have stopped it.
    if let Ok(Some(supervisor)) = timeout(LAST_TASKS, sessions.actor_refs.supervisor()).await {
        drop(supervisor.cast(SupervisorMessage::Stop));
    }
    sessions.env.tasks.close();
    if timeout(LAST_TASKS, sessions.env.tasks.wait()).await.is_err() {
        tracing::error!(tasks = sessions.env.tasks.len(), "tasks are still running after the shutdown");
    }
    if let Some(cgroups) = sessions.env.cgroups.base().cloned() {
        drop(tokio::task::spawn_blocking(move || cgroups.remove()).await);
    }
    // Another instance may have the directory now.
    drop(data_dir.take());
}

impl Drop for System {
    fn drop(&mut self) {
        if self.shut_down.initialized() {
            return;
        }
        self.sessions.drain();
        // Outside a runtime everything has been dropped already, and with the lifelines all children.
        if let Ok(runtime) = Handle::try_current() {
            let (sessions, data_dir) = (self.sessions.clone(), self.data_dir.clone());
            runtime.spawn(shut_down(sessions, data_dir, Duration::ZERO));
        }
    }
}

/// What has to be found and done before there can be sessions. Blocks.
struct Ground {
    data_dir: PathBuf,
    lock: DataDirLock,
    cgroups: Option<CgroupBase>,
    marker: String,
    swept: usize,
}

impl Ground {
    fn prepare(data_dir: &Path) -> Result<Self, StartError> {
        let lock = workspace::open(data_dir)?;
        // One name for one directory, however it was written: children are found again by it.
        let data_dir = data_dir
            .canonicalize()
            .map_err(|source| StartError::DataDir { path: data_dir.to_owned(), source })?;
        let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
        let marker: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        // We hold the lock: whatever bears the marker belongs to an instance that is no more.
        let cgroups = CgroupBase::detect(&format!("pilotlight-{marker}"));
        let in_groups = cgroups.as_ref().map_or(0, CgroupBase::sweep);
        let swept = in_groups + sweep_marked(&format!("{MARKER}={marker}"), &[]);
        workspace::finish_deletions(&data_dir);
        Ok(Self { data_dir, lock, cgroups, marker, swept })
    }
}
