//! A trial start of the CLI: the real path, from directories to handshake, without spending a token.
//!
//! Used by `pilotlight check` and by the server before it calls itself ready. An instance of its own, in a directory
//! of its own, so that it touches neither the sessions nor the figures of a running one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use crate::child::{Contained, Exit, Launch, Limits, ShimProgram, SpawnError, spawn};
use crate::config::Config;
use crate::error::{StartError, StartFailure, TurnError};
use crate::pilotlight::Pilotlight;
use crate::program::Program;
use crate::session::{Session, SessionStatus};
use crate::trust;

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
/// Bytes read for it: the version is in the first line.
const VERSION_BYTES: u64 = 16 << 10;

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

/// Where the CLI of `config` is, and what it says of its version. It runs in `home`, through the shim as every child
/// does, and gets nothing of our environment but the path to its own interpreter.
///
/// # Errors
/// [`TurnError::NotStarted`] if it is not found.
pub async fn version(config: &Config, home: &Path) -> Result<(PathBuf, Option<String>), TurnError> {
    let found = Program::of(&config.cli).find().map_err(TurnError::NotStarted)?;
    let mut args = found.first_args;
    args.push("--version".into());
    let path = std::env::var_os("PATH").map(|path| ("PATH".into(), path));
    let env: Vec<_> = [("HOME".into(), home.into())].into_iter().chain(path).collect();
    let launch = Launch {
        program: &found.path,
        args: &args,
        env: &env,
        cwd: home,
        limits: &Limits::default(),
        cgroup: None,
    };
    let not_started = |error: SpawnError| {
        TurnError::NotStarted(StartFailure::Spawn { reason: error.reason(), message: error.to_string() })
    };
    let shim = ShimProgram::locate(config.cli.shim.as_deref()).map_err(not_started)?;
    let child = spawn(&shim, &launch).map_err(not_started)?;
    let told = tokio::time::timeout(VERSION_WITHIN, output_of(child)).await.ok().flatten();
    Ok((found.path, told.and_then(|output| first_line(&output))))
}

/// What a child writes that ends well, as far as it is kept. Dropped, the child is ended.
async fn output_of(child: Box<Contained>) -> Option<Vec<u8>> {
    let Contained { input, output, mut stderr, mut shim } = *child;
    drop(input);
    let (mut kept, mut nowhere) = (Vec::new(), tokio::io::sink());
    let mut output = output.take(VERSION_BYTES);
    // Complaints are drained, or they would hold it up.
    let (read, _) = tokio::join!(output.read_to_end(&mut kept), tokio::io::copy(&mut stderr, &mut nowhere));
    read.ok()?;
    (shim.exited().await == Exit::Code(0)).then_some(kept)
}

/// Who but us and root could put another program in the place of the CLI of `config`: a sentence for each file and
/// directory on the way to it that others own or may write. Empty also if it is not found. Blocking.
#[must_use]
pub fn doubts(config: &Config) -> Vec<String> {
    Program::of(&config.cli).find().map(|found| trust::doubts(&found.path)).unwrap_or_default()
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
