//! `pilotlight attach` as a process, spoken to as an Agent SDK does: with lines of JSON.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::SOON;
use crate::place::{MARK, Place};

/// A running `pilotlight attach`.
pub struct Attached {
    pub process: Child,
    pub input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Attached {
    pub fn start(place: &Place, user: &str, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut process = Command::new(crate::built::pilotlight())
            .arg("attach")
            .args(["--output-format", "stream-json", "--verbose", "--input-format", "stream-json"])
            .args(flags)
            .env("PILOTLIGHT_SOCKET", place.data_dir().join("attach.sock"))
            .env("PILOTLIGHT_USER", user)
            .env(MARK, place.id())
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { input: process.stdin.take(), output, process }
    }

    pub async fn send(&mut self, line: &Value) {
        self.send_raw(&line.to_string()).await;
    }

    pub async fn send_raw(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        input.flush().await.unwrap();
    }

    pub async fn ask(&mut self, request: &Value) -> Value {
        self.send(&json!({ "type": "control_request", "request_id": "r1", "request": request })).await;
        let response = self.until("a response", |line| line["type"] == "control_response").await;
        assert_eq!(response["response"]["request_id"], "r1");
        response["response"].clone()
    }

    pub async fn say(&mut self, text: &str) {
        self.send(&json!({ "type": "user", "message": { "role": "user", "content": text } })).await;
    }

    pub async fn turn(&mut self, text: &str) -> Value {
        self.say(text).await;
        self.until("a result", |line| line["type"] == "result").await
    }

    /// Reads on until there is such a line.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = timeout(SOON, self.output.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("no {what}")).unwrap();
            let Some(line) = line else { panic!("the output ended without {what}: {}", self.errors().await) };
            let line: Value = serde_json::from_str(&line).unwrap();
            if wanted(&line) {
                return line;
            }
        }
    }

    async fn errors(&mut self) -> String {
        let mut errors = String::new();
        let mut stderr = self.process.stderr.take().unwrap();
        timeout(SOON, stderr.read_to_string(&mut errors)).await.unwrap().unwrap();
        errors
    }

    /// Its exit code and standard error, once it has ended by itself.
    pub async fn end(mut self) -> (i32, String) {
        let errors = self.errors().await;
        let status = timeout(SOON, self.process.wait()).await.unwrap().unwrap();
        (status.code().unwrap_or(-1), errors)
    }
}
