//! One child on tokio pipes, driven by hand.

use std::path::Path;
use std::process::Stdio;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::instant;

pub(crate) struct Pipe {
    _child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    buffer: BytesMut,
}

impl Pipe {
    /// Starts it with the command line and the environment that pilotlight gives it.
    pub(crate) fn start(home: &Path) -> Self {
        std::fs::create_dir_all(home).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--print", "--verbose"])
            .args(["--input-format", "stream-json", "--output-format", "stream-json"])
            .args(["--include-partial-messages", "--session-id", &uuid::Uuid::new_v4().to_string()])
            .env("HOME", home)
            .env(instant::SWITCH, "1")
            .env("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "1")
            .current_dir(home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { _child: child, stdin, stdout, buffer: BytesMut::new() }
    }

    pub(crate) async fn send(&mut self, text: &str) {
        let message = serde_json::json!({"type":"user","message":{"role":"user","content":text}});
        self.stdin.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    /// The next line, without its end, and whether it is the last of its turn.
    pub(crate) async fn line(&mut self) -> (Bytes, bool) {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let line = self.buffer.split_to(end + 1).freeze().slice(..end);
                let is_last = line.starts_with(b"{\"type\":\"result\"");
                return (line, is_last);
            }
            self.buffer.reserve(64 << 10);
            assert!(self.stdout.read_buf(&mut self.buffer).await.unwrap() > 0, "the child ended");
        }
    }
}
