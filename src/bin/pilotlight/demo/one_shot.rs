//! The baseline for the warm process: the same CLI, started once per message.
//!
//! Command line, environment and conversation (by `--resume`) are the same; only the process is new each time.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use pilotlight::Config;
use pilotlight::adapter::claude::CLAUDE;
use pilotlight::adapter::{Adapter, Dirs, LaunchMode, LaunchPlan, LaunchSettings, LineKind};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use super::client::Message;
use super::process::MARK;
use super::show::Problem;

/// Maximum lifetime of one process, including a real model's answer.
const ENDED_WITHIN: Duration = Duration::from_secs(120);

/// A CLI without the server, and its conversation.
pub(super) struct OneShotCli<'a> {
    pub(super) config: &'a Config,
    pub(super) program: PathBuf,
    pub(super) dirs: Dirs,
    pub(super) session_id: String,
    pub(super) mark: &'a str,
}

/// Answer of one process.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    pub(super) pid: u32,
    pub(super) text: String,
    pub(super) first: Duration,
    pub(super) whole: Duration,
}

impl OneShotCli<'_> {
    /// Starts the CLI, sends one message and end of input, and waits for its exit.
    pub(super) async fn ask(&self, message: &Message, mode: LaunchMode) -> Result<Answered, Problem> {
        let answered = timeout(ENDED_WITHIN, self.run(message, mode)).await;
        answered.map_err(|_| Problem::seen("a process did not end in time"))?
    }

    async fn run(&self, message: &Message, mode: LaunchMode) -> Result<Answered, Problem> {
        let begin = Instant::now();
        let mut child = self.command(mode).spawn()?;
        let pid = child.id().unwrap_or_default();
        let line = CLAUDE.encode_turn(&message.sent.as_str().into(), &self.config.cli);
        let line = line.map_err(|error| Problem::seen(error.to_string()))?;
        let mut answered = read(&mut child, &line, begin).await?;
        answered.pid = pid;
        child.wait().await?;
        Ok(answered)
    }

    fn command(&self, mode: LaunchMode) -> Command {
        let plan = LaunchPlan {
            cli: &self.config.cli,
            dirs: &self.dirs,
            session_id: &self.session_id,
            mode,
            model: self.config.cli.model.as_deref(),
            settings: &LaunchSettings::default(),
            mcp_timeout: self.config.mcp.connect_timeout,
            asks_permission: false,
        };
        let line = CLAUDE.command(&plan);
        let mut command = Command::new(&self.program);
        if self.config.cli.program == "sim" {
            command.arg(pilotlight_sim::SIM_ARG);
        }
        let passed = self.config.cli.env_pass.iter();
        let passed = passed.filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
        command
            .args(line.args)
            .env_clear()
            .envs(passed)
            .envs(line.env)
            .env("HOME", &self.dirs.home)
            .env("TMPDIR", &self.dirs.tmp)
            .envs(&self.config.cli.env)
            .env(MARK, self.mark)
            .current_dir(&self.dirs.work)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

/// Writes the message and reads the output to its end.
async fn read(child: &mut Child, line: &[u8], begin: Instant) -> Result<Answered, Problem> {
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Problem::seen("a process without pipes"));
    };
    // An exited process does not read; its output holds the reason.
    match stdin.write_all(line).await {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    // End of input: the process exits after its answer.
    drop(stdin);
    let mut lines = BufReader::new(stdout).split(b'\n');
    let (mut first, mut end) = (None, None);
    while let Some(line) = lines.next_segment().await? {
        if first.is_none() && CLAUDE.text_delta(&line).is_some() {
            first = Some(begin.elapsed());
        }
        if CLAUDE.classify(&line) == LineKind::Terminal {
            end = CLAUDE.terminal(&line).map(|terminal| (terminal, begin.elapsed()));
        }
    }
    let Some((terminal, whole)) = end else {
        return Err(Problem::seen("a process ended without an answer"));
    };
    if let Some(failure) = terminal.failure {
        return Err(Problem::seen(format!("a process answered with an error: {}", failure.message)));
    }
    Ok(Answered { pid: 0, text: terminal.text, first: first.unwrap_or(whole), whole })
}
