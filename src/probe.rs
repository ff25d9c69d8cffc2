//! A trial start of the CLI: the real path, from directories to handshake, without spending a token.
//!
//! Used by `pilotlight check` and by the server before it calls itself ready. An instance of its own, in a directory
//! of its own, so that it touches neither the sessions nor the figures of a running one.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Config;
use crate::error::{StartError, TurnError};
use crate::pilotlight::Pilotlight;
use crate::program::Program;
use crate::session::{Session, SessionStatus};

/// The owner of the trial's session. Nobody else is in that directory.
const USER: &str = "probe";
/// Memory is measured this often during a trial, so that a figure is there soon.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// How long to wait for that figure.
const MEASURED_WITHIN: Duration = Duration::from_secs(2);
/// Nothing runs that would need grace.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// How long `--version` may take. The slowest known CLI needs a second and a half from a cold disk.
const VERSION_WITHIN: Duration = Duration::from_secs(20);
/// Longest version text kept.
const VERSION_CHARS: usize = 100;

/// A CLI that started.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed {
    /// From the decision to start it until it was ready.
    pub ready_after: Duration,
    /// Memory of its tree, once it was ready; 0 if it could not be measured.
    pub memory_bytes: u64,
    /// See [`Pilotlight::containment`].
    pub containment: &'static str,
}

/// A CLI that did not start, or an instance that could not try.
#[derive(Debug, thiserror::Error)]
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
    let mut config = config.clone();
    directory.clone_into(&mut config.data_dir);
    config.metrics.sample_interval = SAMPLE_INTERVAL;
    let pilot = Pilotlight::start_with(config, &::metrics::NoopRecorder).await?;
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

/// Where the CLI of `config` is, and what it says of its version. It runs in `home` and gets nothing of our environment
/// but the path to its own interpreter.
///
/// # Errors
/// [`TurnError::NotStarted`] if it is not found.
pub async fn version(config: &Config, home: &Path) -> Result<(PathBuf, Option<String>), TurnError> {
    let found = Program::of(&config.cli).find().map_err(TurnError::NotStarted)?;
    let mut command = tokio::process::Command::new(&found.path);
    command.args(&found.first_args).arg("--version").env_clear().env("HOME", home).current_dir(home);
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_WITHIN, command.output()).await;
    let told = output.ok().and_then(Result::ok).filter(|output| output.status.success());
    Ok((found.path, told.and_then(|output| first_line(&output.stdout))))
}

fn first_line(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    Some(line.chars().filter(|character| !character.is_control()).take(VERSION_CHARS).collect())
}

async fn try_start(pilot: &Pilotlight, session: &Session) -> Result<Probed, TurnError> {
    let begin = Instant::now();
    let ready = session.warm().await?;
    let ready_after = begin.elapsed();
    let memory_bytes = measured(session, ready).await;
    Ok(Probed { ready_after, memory_bytes, containment: pilot.containment() })
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
