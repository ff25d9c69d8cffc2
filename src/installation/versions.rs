//! The installed CLI: which executable a start uses, which version that is, whether it is judged, and whether it has
//! ever worked.
//!
//! An executable is identified by its path without links and by its metadata: one that was replaced is
//! looked at again and one that was not costs a `stat`. The last that became ready is recorded among the server's own
//! records. One that fails before it was ever ready gives way to that one, as long as that is still there unchanged: a
//! version that was installed beside the old one, as the CLI's own updater does. A package manager that replaces the
//! files in place leaves nothing to go back to.
//!
//! A session's start that fails decides nothing for others: the user's settings or files may be the reason. It leads to
//! a trial start, which has no user's settings, and that decides. A version that gave way is tried again at intervals,
//! and takes its place back once it has become ready anywhere.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::adapter;
use crate::child::ShimProgram;
use crate::installation::version_query::version;
use crate::installation::{
    program::{Found, Program},
    trust,
};
use crate::support::atomic_file::{self, Durability};
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::{Metrics, flag};
use crate::workspace::{read_own, records_dir};

/// The file among the records.
const RECORD: &str = "cli.json";
/// It holds a path and some numbers.
const RECORD_LIMIT: u64 = 16 << 10;
/// A version that failed its trial is tried again after this time: the host may have been the reason.
const TRY_AGAIN: Duration = Duration::from_secs(300);
/// Why an unjudged version is not started, in [`crate::error::StartFailure::Spawn`].
pub(crate) const UNJUDGED: &str = "unjudged_version";

/// Identity of an executable: its path and its metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Executable {
    /// Without symbolic links.
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) found: Found,
    /// Not the configured one, which has failed, but the last that worked.
    pub(crate) is_fallback: bool,
    /// `None` for one that is not looked at: the simulation is part of this program.
    executable: Option<Executable>,
}

impl Chosen {
    /// Whether the program is still there unchanged, and the configured one unless it had failed. Blocking.
    pub(crate) fn is_current(&self, program: &Program) -> bool {
        let is_configured = || program.find().is_ok_and(|found| found == self.found);
        let is_unchanged = self.executable.as_ref().is_none_or(Executable::is_unchanged);
        is_unchanged && (self.is_fallback || is_configured())
    }
}

/// Knowledge about the installed executables of the CLI.
#[derive(Debug)]
pub(crate) struct Installed {
    data_dir: PathBuf,
    known: Mutex<Knowledge>,
    /// Held by the trial start that runs.
    trial: tokio::sync::Mutex<()>,
}

/// Everything that is known of the executables.
#[derive(Debug, Default)]
struct Knowledge {
    /// The last that became ready.
    worked: Option<Executable>,
    /// One that failed its trial before it was ever ready, and when.
    failed: Option<(Executable, Instant)>,
    /// The text of `--version`, of the executable that was asked last.
    version: Option<(Executable, Option<String>)>,
    /// Whose version is being asked for.
    asked: Option<Executable>,
    /// What is started now.
    current: Option<Executable>,
    /// One that cannot repeat its transcript.
    mirrorless: Option<Executable>,
    is_fallback: bool,
    is_unjudged: bool,
    /// What an operator should know.
    warning: Option<String>,
}

impl Installed {
    /// Reads what an earlier server recorded. Blocking.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let content = read_own(&records_dir(data_dir).join(RECORD), RECORD_LIMIT).ok();
        // An unreadable record is no record: the next start that works writes one.
        let worked = content.and_then(|content| serde_json::from_slice(&content).ok());
        let known = Mutex::new(Knowledge { worked, ..Knowledge::default() });
        Self { data_dir: data_dir.to_owned(), known, trial: tokio::sync::Mutex::default() }
    }

    /// `found`, or the last that worked if that one has failed. A trial start of it comes first.
    pub(crate) fn choose(&self, found: Found, is_trial: bool) -> Chosen {
        // The simulation is a part of this program.
        let executable = if found.first_args.is_empty() { Executable::at(&found.path) } else { None };
        let fallback = executable.as_ref().filter(|_| !(is_trial && self.is_trial_due()));
        let fallback = fallback.and_then(|executable| self.instead_of(executable));
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

    /// The version of the executable that is started now, if it was queried. Inside: its output, if any.
    fn known_version(&self) -> Option<Option<String>> {
        let state = self.lock();
        let known = state.version.as_ref().filter(|(asked, _)| Some(asked) == state.current.as_ref());
        known.map(|(_, version)| version.clone())
    }

    /// Whether the version of what is started now is unknown and not being asked for; from now on it is.
    pub(crate) fn is_to_be_asked(&self) -> bool {
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
    pub(crate) fn judge(&self) {
        let version = self.known_version();
        let mut state = self.lock();
        let judged = version.as_ref().map(|version| version.as_deref().is_some_and(adapter::is_judged));
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
        metrics.cli_unjudged.set(flag(state.is_unjudged));
        metrics.cli_fallback.set(flag(state.is_fallback));
    }

    /// What an operator should know of the CLI that was chosen last.
    pub(crate) fn warning(&self) -> Option<String> {
        self.lock().warning.clone()
    }

    /// Whether nothing is to be recorded when it becomes ready.
    pub(crate) fn is_proven(&self, chosen: &Chosen) -> bool {
        let state = self.lock();
        let has_failed =
            state.failed.as_ref().is_some_and(|(failed, _)| chosen.executable.as_ref() == Some(failed));
        chosen.executable.is_none() || (state.worked == chosen.executable && !has_failed)
    }

    /// It became ready. Blocking when it is another than before.
    pub(crate) fn worked(&self, chosen: &Chosen) {
        let Some(executable) = &chosen.executable else { return };
        {
            let mut state = self.lock();
            state.failed.take_if(|(failed, _)| failed == executable);
            if state.worked.as_ref() == Some(executable) {
                return;
            }
            state.worked = Some(executable.clone());
        }
        let written = serde_json::to_vec(executable).map_err(std::io::Error::from).and_then(|content| {
            atomic_file::replace(&records_dir(&self.data_dir).join(RECORD), &content, Durability::Kernel)
        });
        if let Err(error) = written {
            tracing::warn!(%error, "the executable of the CLI that works was not recorded");
        }
    }

    /// It ended in a trial start before it was ready. Whether another one is there to be tried now.
    pub(crate) fn failed(&self, chosen: &Chosen) -> bool {
        let Some(executable) = &chosen.executable else { return false };
        {
            let mut state = self.lock();
            if state.worked.as_ref() == Some(executable) {
                return false;
            }
            state.failed = Some((executable.clone(), Instant::now()));
        }
        let is_there = self.instead_of(executable).is_some();
        if is_there {
            tracing::warn!(
                "the CLI does not start; the version that worked last is used until it is replaced or starts"
            );
        } else {
            tracing::warn!("the CLI does not start, and no version that has worked is there to go back to");
        }
        is_there
    }

    /// Whether `chosen` has neither become ready nor failed a trial start.
    pub(crate) fn is_untried(&self, chosen: &Chosen) -> bool {
        let Some(executable) = &chosen.executable else { return false };
        let state = self.lock();
        let has_failed = state.failed.as_ref().is_some_and(|(failed, _)| failed == executable);
        state.worked.as_ref() != Some(executable) && !has_failed
    }

    /// Whether there is another version to start instead of `chosen`, which has failed its trial start.
    pub(crate) fn has_fallback(&self, chosen: &Chosen) -> bool {
        chosen.executable.as_ref().is_some_and(|executable| self.instead_of(executable).is_some())
    }

    /// Why `chosen` is not started where unjudged versions are refused; `None` if it may start.
    pub(crate) fn refusal(&self, chosen: &Chosen) -> Option<String> {
        let is_unknown = chosen.executable.is_some() && self.known_version().is_none();
        match self.warning() {
            Some(message) if self.lock().is_unjudged => Some(message),
            _ if is_unknown => {
                Some("the CLI did not say its version in time; the next start asks it again".to_owned())
            }
            _ => None,
        }
    }

    /// Asks the current executable for its version, unless that is known.
    pub(crate) async fn ask_version(&self, shim: &ShimProgram, home: &Path) {
        let Some(executable) = self.lock().current.clone() else { return };
        if self.known_version().is_some() {
            return;
        }
        let found = Found { path: executable.path.clone(), first_args: Vec::new() };
        // Why it does not start is found out when it is started.
        let answer = version(&found, shim, home).await.ok().flatten();
        let mut state = self.lock();
        match answer {
            Some(version) if state.current.as_ref() == Some(&executable) => {
                state.version = Some((executable, version));
            }
            // The next start of it queries it again: it may have had no time, or another was chosen meanwhile.
            _ => drop(state.asked.take_if(|asked| *asked == executable)),
        }
    }

    /// Whether `chosen` may be able to repeat its transcript. Found out by starting it: no help names the flag.
    pub(crate) fn mirrors(&self, chosen: &Chosen) -> bool {
        chosen.executable.is_none() || self.lock().mirrorless != chosen.executable
    }

    /// `chosen` cannot repeat its transcript.
    pub(crate) fn mirrors_not(&self, chosen: &Chosen) {
        self.lock().mirrorless.clone_from(&chosen.executable);
    }

    /// Whether the version that failed has not been tried for some time.
    pub(crate) fn is_trial_due(&self) -> bool {
        self.lock().failed.as_ref().is_some_and(|(_, at)| at.elapsed() >= TRY_AGAIN)
    }

    /// Waits for the trial start that runs; the guard makes the next one wait.
    pub(crate) async fn trial(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.trial.lock().await
    }

    fn instead_of(&self, executable: &Executable) -> Option<Executable> {
        let worked = {
            let state = self.lock();
            let has_failed = state.failed.as_ref().is_some_and(|(failed, _)| failed == executable);
            state.worked.clone().filter(|worked| has_failed && worked != executable)
        };
        worked.filter(|worked| worked.is_unchanged() && self.is_trusted(worked))
    }

    /// Whether only the operator could have put it there: it is named by a record, not by the configuration.
    fn is_trusted(&self, executable: &Executable) -> bool {
        let is_below = self.data_dir.canonicalize().is_ok_and(|dir| executable.path.starts_with(dir));
        let is_trusted = !is_below && trust::doubts(&executable.path).is_empty();
        if !is_trusted {
            tracing::warn!(
                "the version of the CLI that worked last is not used: others could have put it in its place"
            );
        }
        is_trusted
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Knowledge> {
        self.known.lock_unpoisoned()
    }
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
