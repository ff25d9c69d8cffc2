//! The system and its public handles: start, readiness, drain, shutdown and trial starts.

#[cfg(feature = "server")]
pub mod at_rest;
#[cfg(feature = "cluster")]
pub(crate) mod hand_over;
#[cfg(feature = "server")]
mod load;
pub mod probe;
mod session;
mod shutdown;
mod start;
mod user;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::OnceCell;

#[cfg(feature = "cluster")]
use self::hand_over::HandOver;
#[cfg(feature = "server")]
pub(crate) use self::load::Load;
pub(crate) use self::session::blocking;
pub use self::session::{Compacted, Session};
pub(crate) use self::start::Parent;
use self::start::Registered;
use crate::admission::{NO_MEMORY, Pressure};
#[cfg(feature = "cluster")]
use crate::cluster::Cluster;
use crate::config::{self, Config, ConfigError, Reloaded, Rung};
use crate::error::{StartError, TurnError};
use crate::isolation::{NetworkMeans, RungState};
#[cfg(feature = "server")]
use crate::model::ids::SessionHash;
use crate::model::ids::{DEFAULT_CONVERSATION, InvalidName, SessionKey, UserId};
#[cfg(feature = "server")]
use crate::session::Record;
use crate::session::env::{Env, TrialStart};
use crate::session::{SessionStatus, on_disk, sessions::Sessions, shelf::SparePhase};
#[cfg(feature = "server")]
use crate::spend::Spend;
#[cfg(feature = "server")]
use crate::support::keyed_gates::Inside;
use crate::support::lock::MutexExt;
use crate::telemetry::events::EventStream;
use crate::workspace::DataDirLock;
#[cfg(feature = "server")]
use crate::workspace::{CredentialsFile, Workspace};

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
    /// How users leave this node; `None` where it is alone.
    #[cfg(feature = "cluster")]
    hand_over: Option<Arc<HandOver>>,
    /// Held until nothing of this system runs any more.
    data_dir: Arc<Mutex<Option<DataDirLock>>>,
}

/// Whether turns can be taken, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
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
        metrics::with_recorder(|recorder| Self::start_with(config, recorder)).await
    }

    /// As [`Pilotlight::start`], without metrics; what it learns of the CLI is shared with `parent`, and what that has
    /// proven of the isolation is used.
    pub(crate) async fn start_trial(config: Config, parent: Parent) -> Result<Self, StartError> {
        config.validate()?;
        let registered = Registered::of_trial(&config);
        Self::of(config, registered, parent, None).await
    }

    /// As [`Pilotlight::start`], with metrics that go to `recorder` and not to the one that is installed.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_with(
        config: Config,
        recorder: &dyn metrics::Recorder,
    ) -> impl Future<Output = Result<Self, StartError>> + Send + use<> {
        let registered = config.validate().map(|()| Registered::with(recorder, &config));
        async move { Self::of(config, registered?, Parent::default(), Some(probe::beside_sessions)).await }
    }

    async fn of(
        config: Config,
        registered: Registered,
        parent: Parent,
        trial: Option<TrialStart>,
    ) -> Result<Self, StartError> {
        Ok(Self { system: Arc::new(start::start(config, registered, parent, trial).await?) })
    }

    /// What a trial start shares with this instance.
    #[cfg(feature = "server")]
    pub(crate) fn parent(&self) -> Parent {
        Parent::of(self.env())
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

    /// This node's part in a cluster; `None` where it is alone.
    #[cfg(feature = "cluster")]
    pub(crate) fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.env().cluster.as_ref()
    }

    /// How users leave this node of a cluster.
    #[cfg(feature = "cluster")]
    pub(crate) fn hand_over(&self) -> Option<&Arc<HandOver>> {
        self.system.hand_over.as_ref()
    }

    /// The configuration that this instance was started with. [`Pilotlight::reload`] does not change it.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.env().config
    }

    /// The configuration that is in effect now.
    #[must_use]
    pub fn current(&self) -> Arc<Config> {
        self.env().current()
    }

    /// What a changed configuration would mean: the one that would be in effect, and the keys that change at once or wait for
    /// the next start.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration is invalid, or contradicts keys that wait.
    pub(crate) fn prepare_reload(&self, config: &Config) -> Result<(Config, Reloaded), ConfigError> {
        config.validate()?;
        // The start made it absolute.
        let same = config.data_dir.canonicalize().is_ok_and(|path| path == self.config().data_dir);
        let config = match same {
            true => &Config { data_dir: self.config().data_dir.clone(), ..config.clone() },
            false => config,
        };
        let (merged, reloaded) = config::merged(&self.current(), config);
        merged.validate()?;
        Ok((merged, reloaded))
    }

    /// Takes over what a running instance can of a changed configuration, without ending a child or a turn. Keys of a child
    /// are in effect from its next start. The result names the other changed keys: they wait for the next start of the
    /// instance. After an error nothing has changed. Keys of the HTTP server are changed by `Server::reload`.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration is invalid, or contradicts keys that wait.
    pub fn reload(&self, config: &Config) -> Result<Reloaded, ConfigError> {
        let (merged, reloaded) = self.prepare_reload(config)?;
        self.put_config(merged);
        Ok(reloaded)
    }

    /// Takes over a configuration that [`Pilotlight::prepare_reload`] has returned.
    pub(crate) fn put_config(&self, config: Config) {
        let env = self.env();
        let metrics = &env.telemetry.metrics;
        metrics.sessions_limit.set(config.limits.max_sessions as f64);
        metrics.children_limit.set(config.limits.max_children as f64);
        env.spend.set_limit(config.limits.usd_per_user_day);
        let limits = config.limits.clone();
        *env.current.lock_unpoisoned() = Arc::new(config);
        self.shared().admission.reconfigure(&limits);
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
    /// looked at (a thousand of a user, ten thousand of all). Those used last come first. The second value is whether there are more.
    ///
    /// # Errors
    /// [`TurnError::Storage`] if the data directory cannot be read.
    pub async fn known_sessions(
        &self,
        user: Option<&UserId>,
    ) -> Result<(Vec<(SessionKey, SessionStatus)>, bool), TurnError> {
        let (data_dir, owner) = (self.config().data_dir.clone(), user.cloned());
        let (sessions, truncated) = blocking(move || on_disk(&data_dir, owner.as_ref())).await?;
        let mut known: HashMap<SessionKey, SessionStatus> = sessions.into_iter().collect();
        // What is in memory is newer, and may not be on disk yet.
        known.extend(
            self.sessions().into_iter().filter(|(key, _)| user.is_none_or(|user| key.user() == user)),
        );
        let mut known: Vec<_> = known.into_iter().collect();
        known.sort_by_key(|(_, status)| std::cmp::Reverse(status.last_used));
        Ok((known, truncated))
    }

    /// As [`Pilotlight::known_sessions`], of those in memory alone, in no order. Reads no file.
    #[cfg(feature = "server")]
    pub(crate) fn loaded_sessions(&self, user: Option<&UserId>) -> Vec<(SessionKey, SessionStatus)> {
        let mut entries = self.shared().registry.entries();
        // The statuses of others are not looked at.
        entries.retain(|entry| user.is_none_or(|user| entry.key.user() == user));
        entries.into_iter().map(|entry| (entry.key.clone(), entry.status.status())).collect()
    }

    /// What is in use of what the limits give, at this moment.
    #[cfg(feature = "server")]
    pub(crate) async fn load(&self) -> load::Load {
        load::of(self.shared()).await
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
            reasons.push(NO_MEMORY.to_owned());
        }
        if sessions.admission.wants_room() {
            reasons.push("as many children live as may (limits.max_children)".to_owned());
        }
        if let Some(problem) = sessions.storage.problem() {
            reasons.push(format!("nothing can be written to the data directory (data_dir): {problem}"));
        }
        Readiness { ready: reasons.is_empty(), reasons }
    }

    /// By what everything that a child started is found when it is stopped: `namespace` (nothing outlives it), `cgroup`, or
    /// `walk` (by ancestry) where neither can be made.
    #[must_use]
    pub fn containment(&self) -> &'static str {
        self.env().cgroups.containment().as_str()
    }

    /// The rungs of isolation, each with its state: whether children of this instance get it, and if not, why.
    #[must_use]
    pub fn isolation(&self) -> Vec<(Rung, RungState)> {
        self.env().isolation.proven().states().to_vec()
    }

    /// What of `isolation.egress` is not held, though a rung restricts the network of children; `None` if all of it is.
    #[must_use]
    pub fn egress_warning(&self) -> Option<&'static str> {
        self.env().access.warning()
    }

    /// Number of children that are ready for users who are not known yet (`spares.min`).
    #[must_use]
    pub fn spares_ready(&self) -> usize {
        self.system.sessions.shelf.count(SparePhase::Ready)
    }

    /// Number of spares that start.
    #[cfg(feature = "server")]
    pub(crate) fn spares_warming(&self) -> usize {
        self.system.sessions.shelf.count(SparePhase::Warming)
    }

    /// A sentence for each rung that the configuration expects and children do not get, and for a part of
    /// `isolation.egress` that is not held. Reasons are in the log.
    #[cfg(feature = "server")]
    pub(crate) fn isolation_warnings(&self) -> Vec<String> {
        let expected = |rung: &Rung| self.config().isolation.expects(*rung);
        let missing = self.env().isolation.proven().missing().map(|(rung, _)| rung).filter(expected);
        // One that was proven may be lost since.
        let lost = self.env().cgroups.are_limits_lost().then_some(Rung::Cgroup);
        let named = |rung: Rung| format!("children do not get the isolation rung {}", rung.as_str());
        missing.chain(lost).map(named).chain(self.egress_warning().map(str::to_owned)).collect()
    }

    /// Whether proven rungs keep the tools of one user from the data and the processes of another.
    #[must_use]
    pub fn separates_users(&self) -> bool {
        self.env().isolation.separates_users()
    }

    /// Whether a rung keeps tools from connecting to other programs of this host, such as a server without keys.
    #[must_use]
    pub fn restricts_network(&self) -> bool {
        self.env().access.means != NetworkMeans::Open
    }

    /// Refuses new turns from now on ([`crate::TurnError::Draining`]); running ones go on.
    pub fn drain(&self) {
        self.shared().drain();
    }

    /// Ends attached clients, each once it is idle.
    #[cfg(feature = "cluster")]
    pub(crate) fn end_idle_clients(&self) {
        self.shared().end_idle_clients();
    }

    /// Drains, waits for running turns up to `grace`, then stops every child in order (interrupt, end of input,
    /// SIGTERM, kill of the tree). When it returns nothing that this instance started is left. Further calls wait for
    /// the first; a call that is dropped before its end leaves the rest to the next one.
    pub async fn shutdown(&self, grace: Duration) {
        self.system.shut_down(grace).await;
    }

    /// Keeps a user from being deleted until the result is dropped.
    #[cfg(feature = "server")]
    pub(crate) fn enter(&self, user: &UserId) -> Result<Inside<UserId>, TurnError> {
        self.shared().enter(user)
    }

    /// The workspace of a session on disk. Blocking.
    #[cfg(feature = "server")]
    pub(crate) fn workspace(&self, session: &SessionHash) -> Option<Workspace> {
        Workspace::known(&self.config().data_dir, session)
    }

    /// Runs `action` if the session has no child; none starts meanwhile. Blocking.
    #[cfg(feature = "server")]
    pub(crate) fn without_child<T>(&self, session: &SessionHash, action: impl FnOnce() -> T) -> Option<T> {
        self.shared().slots.try_with(session, action)
    }

    /// Whose session it is. Blocking.
    #[cfg(feature = "server")]
    pub(crate) fn owner(&self, session: &SessionHash) -> Option<UserId> {
        Record::read(&self.config().data_dir, session).map(|(key, _)| key.user().clone())
    }

    /// The credentials file of a session; `None` if sessions share one file.
    #[cfg(feature = "server")]
    pub(crate) fn credentials_file(&self, workspace: &Workspace) -> Option<CredentialsFile> {
        workspace.credentials_file(&self.config().cli, self.env().credentials_place())
    }

    /// What users spend.
    #[cfg(feature = "server")]
    pub(crate) fn spend(&self) -> &Spend {
        &self.env().spend
    }

    fn shared(&self) -> &Arc<Sessions> {
        &self.system.sessions
    }

    fn env(&self) -> &Env {
        &self.system.sessions.env
    }

    /// Makes an actor panic, or the task of the next spare, or the next start fail.
    #[cfg(feature = "failpoints")]
    #[doc(hidden)]
    pub async fn fail(&self, actor: &str, user: &str) {
        use crate::session::SessionMessage;
        use crate::session::actor_refs::{IdleMessage, SamplerMessage, SupervisorMessage};
        let sessions = self.shared();
        match actor {
            "supervisor" => {
                let supervisor = sessions.actor_refs.supervisor().await;
                drop(supervisor.map(|supervisor| supervisor.cast(SupervisorMessage::Panic)));
            }
            "evictor" => sessions.actor_refs.cast_evictor(IdleMessage::Panic),
            "spare" => sessions.shelf.fails_next.store(true, std::sync::atomic::Ordering::Relaxed),
            "start" => sessions.fails_start.store(true, std::sync::atomic::Ordering::Relaxed),
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
