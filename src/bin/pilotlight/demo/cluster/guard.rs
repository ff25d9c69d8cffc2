//! A process that ends what the demo has started if the demo is killed: its standard input then closes without a last word.

use std::io::Read as _;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::super::process::{MARK, started_here};
use super::super::show::Problem;
use super::node::ended;
use super::stage::LOOK_EVERY;

/// What the demo writes when it has ended everything itself.
const LAST_WORD: &[u8] = b".";
/// Maximum time for the end of all processes.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// The demo's side.
pub(super) struct Guard(Child);

impl Guard {
    /// Starts the process.
    pub(super) fn start(directory: &std::path::Path, mark: &str, keep: bool) -> Result<Self, Problem> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["demo", "--cluster", "--guard", mark]).current_dir(directory).env(MARK, mark);
        if keep {
            command.arg("--keep");
        }
        // Neither Ctrl-C nor the end of the demo reaches it otherwise.
        let command =
            command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().map_err(|error| Problem::seen(format!("the guard: {error}")))?))
    }

    /// Everything has ended in order.
    pub(super) async fn dismiss(mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            // A guard that is gone has nothing to do either.
            input.write_all(LAST_WORD).await.ok();
        }
        ended(&mut self.0, ENDS_WITHIN).await;
    }
}

/// The process itself, in the directory of the demo.
pub(super) fn watch(mark: &str, keep: bool) -> ExitCode {
    let mut word = Vec::new();
    // An error is an end as well.
    std::io::stdin().read_to_end(&mut word).ok();
    if word == LAST_WORD {
        return ExitCode::SUCCESS;
    }
    let deadline = Instant::now() + ENDS_WITHIN;
    loop {
        let left = started_here(mark);
        if left.is_empty() || Instant::now() >= deadline {
            break;
        }
        for process in left {
            // One that is gone needs no kill, and the next round finds the others.
            process.kill(mark).ok();
        }
        #[expect(clippy::disallowed_methods, reason = "processes that are no children report no end")]
        std::thread::sleep(LOOK_EVERY);
    }
    let directory = std::env::current_dir().ok().filter(|_| !keep);
    let is_demos = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b"pilotlight-demo-");
    if let Some(directory) = directory.filter(|path| path.file_name().is_some_and(is_demos)) {
        std::fs::remove_dir_all(directory).ok();
    }
    ExitCode::SUCCESS
}
