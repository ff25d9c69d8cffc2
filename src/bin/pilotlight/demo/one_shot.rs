//! The baseline for the warm process: the same CLI, started once per message.
//!
//! The command line is the plainest one that speaks the same protocol and, by `--resume`, keeps the conversation.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use pilotlight::Config;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use super::client::Message;
use super::process::MARK;
use super::show::Problem;

/// Maximum lifetime of one process, including a real model's answer.
const ENDED_WITHIN: Duration = Duration::from_secs(120);

const FLAGS: [&str; 6] = [
    "--print",
    "--verbose",
    "--include-partial-messages",
    "--input-format=stream-json",
    "--output-format=stream-json",
    "--setting-sources=",
];

/// A CLI without the server, and its conversation.
pub(super) struct OneShotCli<'a> {
    pub(super) config: &'a Config,
    pub(super) program: PathBuf,
    /// Parent of its directories.
    pub(super) root: PathBuf,
    pub(super) session_id: String,
    pub(super) mark: &'a str,
}

#[derive(Debug, Clone)]
pub(super) struct Answered {
    pub(super) pid: i32,
    pub(super) text: String,
    pub(super) first: Duration,
    pub(super) whole: Duration,
}

impl OneShotCli<'_> {
    /// Starts the CLI, sends one message and end of input, and waits for its exit.
    pub(super) async fn ask(&self, message: &Message, resumes: bool) -> Result<Answered, Problem> {
        let answered = timeout(ENDED_WITHIN, self.run(message, resumes)).await;
        answered.map_err(|_| Problem::seen("a process did not end in time"))?
    }

    async fn run(&self, message: &Message, resumes: bool) -> Result<Answered, Problem> {
        let begin = Instant::now();
        let mut child = self.command(resumes).spawn()?;
        let pid = child.id().unwrap_or_default().cast_signed();
        let content = json!({ "role": "user", "content": message.sent });
        let line = format!("{}\n", json!({ "type": "user", "message": content }));
        let mut answered = read(&mut child, line.as_bytes(), begin).await?;
        answered.pid = pid;
        child.wait().await?;
        Ok(answered)
    }

    fn command(&self, resumes: bool) -> Command {
        let mut command = Command::new(&self.program);
        if self.config.cli.program == "sim" {
            command.arg(pilotlight_sim::SIM_ARG);
        }
        if let Some(model) = &self.config.cli.model {
            command.args(["--model", model]);
        }
        let passed = self.config.cli.env_pass.iter();
        let passed = passed.filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
        command
            .args(FLAGS)
            .args([if resumes { "--resume" } else { "--session-id" }, &self.session_id])
            .args(&self.config.cli.args)
            .env_clear()
            .envs(passed)
            .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
            .env("HOME", self.root.join("home"))
            .env("TMPDIR", self.root.join("tmp"))
            .envs(&self.config.cli.env)
            .env(MARK, self.mark)
            .current_dir(self.root.join("work"))
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
        let Ok(line) = serde_json::from_slice::<Value>(&line) else { continue };
        let delta = line.pointer("/event/delta/type");
        if first.is_none() && delta.is_some_and(|kind| kind == "text_delta") {
            first = Some(begin.elapsed());
        }
        if line.get("type").is_some_and(|kind| kind == "result") {
            end = Some((line, begin.elapsed()));
        }
    }
    let Some((result, whole)) = end else {
        return Err(Problem::seen("a process ended without an answer"));
    };
    let text = result.get("result").and_then(Value::as_str).unwrap_or_default().to_owned();
    if result.get("is_error").is_some_and(|is_error| *is_error != false) {
        return Err(Problem::seen(format!("a process answered with an error: {text}")));
    }
    Ok(Answered { pid: 0, text, first: first.unwrap_or(whole), whole })
}
