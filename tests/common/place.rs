//! The place of a test: its directory, which outlives the servers started in it, and the mark by which everything
//! that was started there is found again, wherever in the process table it went.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{Process, all};

/// The mark's name in the environment of every process.
pub const MARK: &str = "PILOTLIGHT_TEST_ID";

/// How long after the end of a server, even by SIGKILL, anything of it may still be there.
pub(crate) const GONE_WITHIN: Duration = Duration::from_secs(1);

/// A directory and a mark. At its end nothing with the mark may be left.
pub struct Place {
    directory: TempDir,
    id: String,
}

impl Place {
    pub fn new() -> Self {
        let directory = TempDir::with_prefix("pilotlight-test-").expect("a temporary directory");
        // tests/run looks for what is left of its whole run by the beginning of the mark.
        let run = std::env::var("PILOTLIGHT_TEST_RUN").unwrap_or_default();
        Self { directory, id: format!("{run}/{}", uuid::Uuid::new_v4()) }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }

    /// The value of the mark.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Everything alive that was started here, servers included.
    pub fn processes(&self) -> Vec<Process> {
        let entry = format!("{MARK}={}", self.id);
        all().into_iter().filter(|process| process.was_given(&entry)).collect()
    }

    /// The CLIs running here, `program` without symbolic links. A CLI that runs itself as a helper counts once.
    pub fn clis(&self, program: &Path) -> Vec<Process> {
        let runs_it = |process: &Process| process.program().is_some_and(|running| running == program);
        let is_helper =
            |process: &Process| process.parent().and_then(Process::of).is_some_and(|it| runs_it(&it));
        self.processes().into_iter().filter(|it| runs_it(it) && !is_helper(it)).collect()
    }

    /// The processes here that were called exactly so.
    pub fn running(&self, command: &[&str]) -> Vec<Process> {
        self.processes().into_iter().filter(|process| process.arguments() == command).collect()
    }

    /// Waits until nothing is left here; gives what is still there when patience is over, after having ended it.
    pub fn leftovers(&self) -> Vec<String> {
        wait_until(GONE_WITHIN, || self.processes().is_empty());
        let left = self.processes();
        let described = left.iter().map(|process| process.describe()).collect();
        left.iter().for_each(|process| process.kill());
        described
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = self.leftovers();
        assert!(left.is_empty() || std::thread::panicking(), "left behind: {left:#?}");
    }
}

/// The blocking form of `eventually`, for the ends of things: whether `met` came true in time.
pub fn wait_until(within: Duration, mut met: impl FnMut() -> bool) -> bool {
    let deadline = tokio::time::Instant::now() + within;
    while !met() {
        if tokio::time::Instant::now() >= deadline {
            return false;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a look at the process table is repeated; no event announces it"
        )]
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
