//! The installed CLI: which executable a start uses, which version that is, whether it is judged, and whether it has
//! ever worked.
//!
//! An executable is known by its path without links and by what the file system says of it, so one that was replaced is
//! looked at again and one that was not costs a `stat`. The last that became ready is recorded in the data directory.
//! One that fails before it was ever ready gives way to that one, as long as that is still there unchanged: a version
//! that was installed beside the old one, as the CLI's own updater does. A package manager that replaces the files in
//! place leaves nothing to go back to.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

use crate::child::{Contained, Exit, Launch, Limits, ShimProgram, SpawnError, spawn};
use crate::cli::Adapter;
use crate::config::UnknownVersion;
use crate::error::StartFailure;
use crate::instance::Instance;
use crate::metrics::Metrics;
use crate::program::Found;
use crate::workspace::{Durability, write_private};

/// The record in the data directory.
const RECORD: &str = "cli.json";
/// It holds a path and some numbers.
const RECORD_LIMIT: u64 = 16 << 10;
/// How long `--version` may take. The slowest known CLI needs a second and a half from a cold disk.
const VERSION_WITHIN: Duration = Duration::from_secs(20);
/// Longest version text kept.
const VERSION_CHARS: usize = 100;
/// Bytes read for it: the version is in the first line.
const VERSION_BYTES: u64 = 16 << 10;

/// What an executable is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Executable {
    /// Without links in it.
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: i64,
    modified_nanos: i64,
}

impl Executable {
    fn at(path: &Path) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        let metadata = path.metadata().ok().filter(Metadata::is_file)?;
        Some(Self {
            path,
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: metadata.mtime(),
            modified_nanos: metadata.mtime_nsec(),
        })
    }

    fn is_unchanged(&self) -> bool {
        Self::at(&self.path).as_ref() == Some(self)
    }
}

/// A program that a start uses.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub(crate) found: Found,
    /// Not the configured one, which has failed, but the last that worked.
    pub(crate) is_fallback: bool,
    /// `None` for one that is not looked at: the simulation is part of this program.
    executable: Option<Executable>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Installed {
    record: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last that became ready.
    worked: Option<Executable>,
    /// One that failed before it was ever ready.
    failed: Option<Executable>,
    /// The text of `--version`, of the executable that was asked last.
    version: Option<(Executable, Option<String>)>,
    /// Whose version is being asked for.
    asked: Option<Executable>,
    /// What is started now.
    current: Option<Executable>,
    is_fallback: bool,
    is_unjudged: bool,
    /// What an operator should know.
    warning: Option<String>,
}

impl Installed {
    /// Reads what an earlier server recorded. Blocking.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let record = data_dir.join(RECORD);
        let size = record.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let content = (size <= RECORD_LIMIT).then(|| std::fs::read(&record).ok()).flatten();
        // An unreadable record is no record: the next start that works writes one.
        let worked = content.and_then(|content| serde_json::from_slice(&content).ok());
        Self { record, state: Mutex::new(State { worked, ..State::default() }) }
    }

    /// `found`, or the last that worked if that one has failed.
    fn choose(&self, found: Found) -> Chosen {
        // The simulation is a part of this program.
        let executable = if found.first_args.is_empty() { Executable::at(&found.path) } else { None };
        let fallback = executable.as_ref().and_then(|executable| self.instead_of(executable));
        let chosen = match fallback {
            Some(worked) => {
                let found = Found { path: worked.path.clone(), first_args: Vec::new() };
                Chosen { found, is_fallback: true, executable: Some(worked) }
            }
            None => Chosen { found, is_fallback: false, executable },
        };
        let mut state = self.lock();
        state.current.clone_from(&chosen.executable);
        state.is_fallback = chosen.is_fallback;
        chosen
    }

    /// The version of what is started now, if it was asked for. Inside: what it said, if it said anything.
    fn known_version(&self) -> Option<Option<String>> {
        let state = self.lock();
        let known = state.version.as_ref().filter(|(asked, _)| Some(asked) == state.current.as_ref());
        known.map(|(_, version)| version.clone())
    }

    /// Whether the version of what is started now is unknown and not being asked for; from now on it is.
    fn is_to_be_asked(&self) -> bool {
        if self.known_version().is_some() {
            return false;
        }
        let mut state = self.lock();
        if state.current.is_none() || state.asked == state.current {
            return false;
        }
        state.asked = state.current.clone();
        true
    }

    /// Takes in what is known of what is started now.
    fn judge(&self, adapter: &dyn Adapter) {
        let version = self.known_version();
        let mut state = self.lock();
        let judged =
            version.as_ref().map(|version| version.as_deref().is_some_and(|it| adapter.is_judged(it)));
        // Unknown until it has been asked, and the simulation is never asked.
        state.is_unjudged = judged == Some(false);
        let warning = warning(version.flatten().as_deref(), state.is_unjudged, state.is_fallback);
        if state.warning != warning {
            if let Some(warning) = &warning {
                tracing::warn!("{warning}");
            }
            state.warning = warning;
        }
    }

    /// Shows what is known in the metrics.
    pub(crate) fn publish(&self, metrics: &Metrics) {
        let state = self.lock();
        metrics.cli_version(state.is_unjudged, state.is_fallback);
    }

    /// What an operator should know of the CLI that was chosen last.
    pub(crate) fn warning(&self) -> Option<String> {
        self.lock().warning.clone()
    }

    /// It became ready. Blocking when it is another than before.
    pub(crate) fn worked(&self, chosen: &Chosen) {
        let Some(executable) = &chosen.executable else { return };
        {
            let mut state = self.lock();
            if state.worked.as_ref() == Some(executable) {
                return;
            }
            state.worked = Some(executable.clone());
        }
        let written = serde_json::to_vec(executable)
            .map_err(std::io::Error::from)
            .and_then(|content| write_private(&self.record, &content, Durability::Kernel));
        if let Err(error) = written {
            tracing::warn!(%error, "the executable of the CLI that works was not recorded");
        }
    }

    /// It ended before it was ready. Whether another one is there to be tried now.
    pub(crate) fn failed(&self, chosen: &Chosen) -> bool {
        let Some(executable) = &chosen.executable else { return false };
        {
            let mut state = self.lock();
            if state.worked.as_ref() == Some(executable) || state.failed.as_ref() == Some(executable) {
                return false;
            }
            state.failed = Some(executable.clone());
        }
        let is_there = self.instead_of(executable).is_some();
        if is_there {
            tracing::warn!(
                "the CLI does not start; the version that worked last is used until it is replaced"
            );
        } else {
            tracing::warn!("the CLI does not start, and no version that has worked is there to go back to");
        }
        is_there
    }

    fn instead_of(&self, executable: &Executable) -> Option<Executable> {
        let worked = {
            let state = self.lock();
            let has_failed = state.failed.as_ref() == Some(executable);
            state.worked.clone().filter(|worked| has_failed && worked != executable)
        };
        worked.filter(Executable::is_unchanged)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The program of the next start. Its version is asked for when the executable is a new one: before the start if that
/// depends on it, else beside it.
///
/// # Errors
/// [`StartFailure::Spawn`] if there is no program, or if it is of a version that is not judged and those are refused.
pub(crate) async fn choose(instance: &Arc<Instance>) -> Result<Chosen, StartFailure> {
    let installed = &instance.installed;
    let chosen = installed.choose(instance.program.find()?);
    match instance.config.cli.unknown_version {
        UnknownVersion::Refuse => look(instance).await,
        UnknownVersion::Warn if installed.is_to_be_asked() => {
            let asking = instance.clone();
            instance.spawn(async move {
                let ended = asking.helpers.ended();
                tokio::select! {
                    () = look(&asking) => {}
                    () = ended.cancelled() => {}
                }
            });
        }
        UnknownVersion::Warn => {}
    }
    installed.judge(instance.adapter);
    installed.publish(&instance.metrics);
    let is_refused =
        instance.config.cli.unknown_version == UnknownVersion::Refuse && installed.lock().is_unjudged;
    match installed.warning() {
        Some(message) if is_refused => Err(StartFailure::Spawn {
            reason: "unjudged_version",
            message: format!("{message}; cli.unknown_version = \"warn\" starts it all the same"),
        }),
        _ => Ok(chosen),
    }
}

/// Asks what is started now for its version, if that is not known yet.
pub(crate) async fn look(instance: &Instance) {
    let installed = &instance.installed;
    let current = installed.lock().current.clone();
    if let Some(executable) = current
        && installed.known_version().is_none()
    {
        let found = Found { path: executable.path.clone(), first_args: Vec::new() };
        // Why it does not start is found out when it is started.
        let version = version(&found, &instance.shim, &instance.config.data_dir).await.ok().flatten();
        let mut state = installed.lock();
        // Another may have been chosen meanwhile.
        if state.current.as_ref() == Some(&executable) {
            state.version = Some((executable, version));
        }
        drop(state);
    }
    installed.judge(instance.adapter);
    installed.publish(&instance.metrics);
}

fn warning(version: Option<&str>, is_unjudged: bool, is_fallback: bool) -> Option<String> {
    let version = version.unwrap_or("of an unknown version");
    match (is_unjudged, is_fallback) {
        (false, false) => None,
        (false, true) => {
            Some(format!("the configured CLI does not start; {version}, which worked last, is used"))
        }
        (true, false) => {
            Some(format!("the CLI {version} is not judged: it may do more by itself than is stopped"))
        }
        (true, true) => {
            Some(format!("the configured CLI does not start; {version} is used, which is not judged"))
        }
    }
}

/// What a program says of its version. It runs in `home`, through the shim as every child does, and gets nothing of this
/// program's environment but the path to its own interpreter.
pub(crate) async fn version(
    found: &Found,
    shim: &ShimProgram,
    home: &Path,
) -> Result<Option<String>, SpawnError> {
    let mut args = found.first_args.clone();
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
    let child = spawn(shim, &launch)?;
    let output = tokio::time::timeout(VERSION_WITHIN, output_of(child)).await.ok().flatten();
    Ok(output.and_then(|output| first_line(&output)))
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

fn first_line(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    Some(line.chars().filter(|character| !character.is_control()).take(VERSION_CHARS).collect())
}
