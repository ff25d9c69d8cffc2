//! The floor: one CLI on tokio pipes, driven by hand.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::instant;

pub(crate) struct Floor {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    buffer: BytesMut,
    home: PathBuf,
    session: String,
    mirrors: bool,
}

/// How a line is looked at.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Look {
    /// Only for the beginning of the `result` line.
    Peek,
    /// Every line is parsed.
    Parse,
}

impl Floor {
    pub(crate) fn start(home: &Path) -> Self {
        Self::spawn(home.to_owned(), uuid::Uuid::new_v4().to_string(), "--session-id", false)
    }

    /// The CLI repeats its transcript on its output, as it does for a journal.
    pub(crate) fn mirroring(home: &Path) -> Self {
        Self::spawn(home.to_owned(), uuid::Uuid::new_v4().to_string(), "--session-id", true)
    }

    fn spawn(home: PathBuf, session: String, opening: &str, mirrors: bool) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "sim",
                "--print",
                "--verbose",
                "--input-format",
                "stream-json",
                "--output-format",
                "stream-json",
            ])
            .args(["--include-partial-messages", opening, &session])
            .args(mirrors.then_some("--session-mirror"))
            .env("HOME", &home)
            .env(instant::SWITCH, "1")
            .env("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "1")
            .current_dir(&home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, stdin, stdout, buffer: BytesMut::new(), home, session, mirrors }
    }

    /// Sends a message and reads to its `result`; returns the number of lines.
    pub(crate) async fn turn(&mut self, text: &str, look: Look) -> usize {
        let message = serde_json::json!({"type":"user","message":{"role":"user","content":text}});
        self.stdin.write_all(format!("{message}\n").as_bytes()).await.unwrap();
        let mut lines = 0;
        loop {
            while let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let line = self.buffer.split_to(end + 1);
                lines += 1;
                if look == Look::Parse {
                    let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
                    if value["type"] == "result" {
                        return lines;
                    }
                } else if line.starts_with(b"{\"type\":\"result\"") {
                    return lines;
                }
            }
            self.buffer.reserve(64 << 10);
            assert!(self.stdout.read_buf(&mut self.buffer).await.unwrap() > 0, "the child ended");
        }
    }

    /// Kills the child and starts one that goes on with the conversation.
    pub(crate) async fn respawn(self) -> Self {
        let Self { mut child, home, session, mirrors, .. } = self;
        child.start_kill().unwrap();
        child.wait().await.unwrap();
        Self::spawn(home, session, "--resume", mirrors)
    }

    pub(crate) async fn end(mut self) {
        drop(self.stdin);
        self.child.wait().await.unwrap();
    }
}
