//! A trial start of the CLI: the real path, from directories to handshake, without spending a token.
//!
//! Used by `pilotlight check` and by the server before it calls itself ready. An instance of its own, in a directory
//! of its own, so that it touches neither the sessions nor the metrics of a running one.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

use crate::child::{ShimProgram, SpawnError};
use crate::config::{Config, Rung};
use crate::error::{StartError, TurnError};
use crate::installation::{program::Program, trust, version_query};
use crate::isolation::RungState;
use crate::session::{SessionStatus, env::Env};
use crate::system::{Parent, Pilotlight, Session};

/// Where the trials of an instance run, below its data directory. Always the same, so that leftovers of a killed trial
/// are found by the next.
const DIRECTORY: &str = "probe";
/// The owner of the trial's session. Nobody else is in that directory.
const USER: &str = "probe";
/// Memory is measured this often during a trial, so that a figure is there soon.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// How long to wait for that figure.
const MEASURED_WITHIN: Duration = Duration::from_secs(2);
/// Nothing runs that would need grace.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// A CLI that started.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Probed {
    /// From the decision to start it until it was ready.
    pub ready_after: Duration,
    /// Memory of its tree, once it was ready; 0 if it could not be measured.
    pub memory_bytes: u64,
    /// See [`Pilotlight::containment`].
    pub containment: &'static str,
    /// See [`Pilotlight::isolation`].
    pub isolation: Vec<(Rung, RungState)>,
    /// See [`Pilotlight::separates_users`].
    pub separates_users: bool,
    /// See [`Pilotlight::restricts_network`].
    pub restricts_network: bool,
    /// See [`Pilotlight::egress_warning`].
    pub egress_warning: Option<&'static str>,
    /// See [`Pilotlight::cli_warning`].
    pub warning: Option<String>,
}

/// A CLI that did not start, or an instance that could not try.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// There is something wrong with the configuration, the directory or the shim.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The CLI did not become ready.
    #[error(transparent)]
    Cli(#[from] TurnError),
}

impl ProbeError {
    /// A stable word for programs and logs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Start(_) => "not_startable",
            Self::Cli(error) => error.code(),
        }
    }
}

/// Starts the CLI of `config` once in `directory`, which is made for that and removed afterwards, and stops it.
///
/// # Errors
/// [`ProbeError`] with the reason; nothing is left running in any case.
pub async fn probe(config: &Config, directory: &Path) -> Result<Probed, ProbeError> {
    let data_dir = std::path::absolute(&config.data_dir).ok();
    probe_with(config, directory, Parent { data_dir, ..Parent::default() }).await
}

/// A trial start for a running instance, one at a time. What it learns of the CLI is shared with `installed`.
pub(crate) async fn trial(config: &Config, parent: Parent) -> Result<Probed, ProbeError> {
    let installed = parent.installed.clone();
    let _one_at_a_time = match &installed {
        Some(installed) => Some(installed.trial().await),
        None => None,
    };
    let mut config = config.clone();
    // One failure decides: the sessions wait for it.
    config.restart.intensity = 0;
    probe_with(&config, &config.data_dir.join(DIRECTORY), parent).await
}

/// The trial start that the sessions of a running system ask for.
pub(super) fn beside_sessions(env: &Env) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let (config, parent) = (env.config.clone(), Parent::of(env));
    Box::pin(async move {
        if let Err(error) = trial(&config, parent).await {
            tracing::warn!(code = error.code(), "a trial start of the CLI failed");
        }
    })
}

/// As [`probe`], with what the system that makes the trial start knows.
async fn probe_with(config: &Config, directory: &Path, parent: Parent) -> Result<Probed, ProbeError> {
    let mut config = config.clone();
    // A trial has no use for files.
    config.workspace.template = None;
    directory.clone_into(&mut config.data_dir);
    config.metrics.sample_interval = SAMPLE_INTERVAL;
    // No user's settings: what fails here fails for all.
    config.cli.user_env_file = None;
    let pilot = Pilotlight::start_trial(config, parent).await?;
    let session = pilot.session(USER);
    let probed = try_start(&pilot, &session).await;
    pilot.shutdown(STOP_GRACE).await;
    // The lock goes with the last handle.
    drop((session, pilot));
    if let Err(error) = tokio::fs::remove_dir_all(directory).await {
        tracing::warn!(%error, path = %directory.display(), "the directory of a trial start was not removed");
    }
    Ok(probed?)
}

/// Where the CLI of `config` is, and the version that it prints. It runs in `home`, through the shim as every child
/// does. Of the environment of this process it gets only the path to its own interpreter.
///
/// # Errors
/// [`TurnError::NotStarted`] if it is not found.
pub async fn version(config: &Config, home: &Path) -> Result<(PathBuf, Option<String>), TurnError> {
    let found = Program::of(&config.cli).find().map_err(TurnError::NotStarted)?;
    let not_started = |error: SpawnError| TurnError::NotStarted(error.into());
    let shim = ShimProgram::locate(config.cli.shim.as_deref()).map_err(not_started)?;
    let version = version_query::version(&found, &shim, home).await.map_err(not_started)?;
    Ok((found.path, version.flatten()))
}

/// Who, except this user and root, could replace the CLI of `config` by another program: a sentence for each file and
/// directory on the way to it that others own or may write. Empty also if it is not found. Blocking.
#[must_use]
pub fn doubts(config: &Config) -> Vec<String> {
    Program::of(&config.cli).find().map(|found| trust::doubts(&found.path)).unwrap_or_default()
}

async fn try_start(pilot: &Pilotlight, session: &Session) -> Result<Probed, TurnError> {
    let begin = Instant::now();
    let ready = session.warm().await?;
    let ready_after = begin.elapsed();
    let memory_bytes = measured(session, ready).await;
    crate::session::executable::learn_version(pilot.env()).await;
    Ok(Probed {
        ready_after,
        memory_bytes,
        containment: pilot.containment(),
        isolation: pilot.isolation(),
        separates_users: pilot.separates_users(),
        restricts_network: pilot.restricts_network(),
        egress_warning: pilot.egress_warning(),
        warning: pilot.cli_warning(),
    })
}

/// The first figure of the sampler, which looks at intervals.
async fn measured(session: &Session, mut status: SessionStatus) -> u64 {
    let deadline = Instant::now() + MEASURED_WITHIN;
    while status.memory_bytes == 0 && Instant::now() < deadline {
        tokio::time::sleep(SAMPLE_INTERVAL / 2).await;
        let Some(now) = session.status() else { break };
        status = now;
    }
    status.memory_bytes
}
