//! One probe: started like every child, read to its end.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use pilotlight_shim::isolation::Isolation;
use pilotlight_shim::probe::PROBE_ARG;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::judge::Seen;
use crate::child::{self, ChildLimits, Launch, ShimProgram, SpawnError};
use crate::config::Rung;
use crate::workspace::Owner;

/// Maximum time of a probe, which takes some milliseconds on an idle machine.
const WITHIN: Duration = Duration::from_secs(20);
/// Longest report: a dozen short lines.
const MAX_REPORT: u64 = 4096;

/// Why a probe has no report.
#[derive(Debug)]
pub(super) struct Failure {
    /// The rung that could not be applied.
    pub(super) rung: Option<Rung>,
    pub(super) reason: String,
}

impl From<SpawnError> for Failure {
    fn from(error: SpawnError) -> Self {
        match error {
            SpawnError::Unisolated { rung, source, .. } => {
                Self { rung: Some(rung), reason: format!("the system refuses it ({source})") }
            }
            other => Self { rung: None, reason: other.to_string() },
        }
    }
}

/// A probe with its isolation.
pub(super) struct Probe<'a> {
    pub(super) shim: &'a ShimProgram,
    pub(super) isolation: Isolation,
    pub(super) owner: Option<Owner>,
    pub(super) cwd: PathBuf,
    /// The group by which it is killed.
    pub(super) group: Option<PathBuf>,
    /// Groups of version 1 that limit it.
    pub(super) groups: Vec<PathBuf>,
}

impl Probe<'_> {
    /// Starts it, waits for its end and returns its report.
    pub(super) async fn run(self, attempts: &[String]) -> Result<Seen, Failure> {
        let shim = self.shim;
        let words = shim.args().iter().copied().chain([PROBE_ARG]).map(OsString::from);
        let args: Vec<OsString> = words.chain(attempts.iter().map(OsString::from)).collect();
        let owner = self.owner.map(|owner| (owner.uid, owner.gid));
        let launch = Launch {
            program: shim.path(),
            args: &args,
            env: &[],
            cwd: &self.cwd,
            limits: &ChildLimits { owner, groups: self.groups, ..ChildLimits::default() },
            cgroup: self.group,
            fence: None,
            isolation: &self.isolation,
        };
        let mut child = child::spawn(shim, &launch)?;
        let mut report = String::new();
        let read = timeout(WITHIN, async {
            child.shim.started().await?;
            // A report that cannot be read lacks lines, which is judged.
            (&mut child.output).take(MAX_REPORT).read_to_string(&mut report).await.ok();
            Ok::<_, SpawnError>(())
        });
        let result = read.await;
        child.shim.kill_tree();
        child.shim.gone().await;
        match result {
            Ok(Ok(())) => Ok(Seen::parse(&report)),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => {
                let reason = format!("a probe did not end within {} s", WITHIN.as_secs());
                Err(Failure { rung: None, reason })
            }
        }
    }
}
