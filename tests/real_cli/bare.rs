//! The CLI on its pipes, without pilotlight: what it does by itself.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::bench::Bench;
use crate::common::place::MARK;
use crate::common::process::Process;
use crate::common::{SOON, shown};

const FLAGS: [&str; 13] = [
    "--print",
    "--verbose",
    "--input-format",
    "stream-json",
    "--output-format",
    "stream-json",
    "--include-partial-messages",
    "--setting-sources",
    "",
    "--strict-mcp-config",
    "--permission-prompt-tool",
    "stdio",
    "--disable-slash-commands",
];

/// A CLI on its pipes. What it starts is found by the place's mark.
pub(crate) struct Bare {
    pub(crate) child: Child,
    pub(crate) input: Option<ChildStdin>,
    output: Option<Lines<BufReader<ChildStdout>>>,
}

impl Bare {
    /// Starts one that is ready for its first message.
    pub(crate) async fn start(bench: &Bench) -> Self {
        let mut bare = Self::begin(bench).await;
        let initialize = json!({"subtype": "initialize"});
        bare.send(json!({"type": "control_request", "request_id": "ready?", "request": initialize})).await;
        bare.until(|line| line["type"] == "control_response").await;
        bare
    }

    /// Starts one that has heard nothing yet.
    pub(crate) async fn begin(bench: &Bench) -> Self {
        Self::begin_with(bench, &FLAGS).await
    }

    /// Starts one whose commands are not switched off.
    pub(crate) async fn begin_with_commands(bench: &Bench) -> Self {
        let flags: Vec<_> = FLAGS.into_iter().filter(|flag| *flag != "--disable-slash-commands").collect();
        Self::begin_with(bench, &flags).await
    }

    async fn begin_with(bench: &Bench, flags: &[&str]) -> Self {
        let home = bench.place.path().join("home");
        let work = bench.place.path().join("work");
        std::fs::create_dir_all(&work).expect("a working directory");
        let mut child = Command::new(&bench.cli)
            .args(flags)
            .current_dir(work)
            .env_clear()
            .envs(bench.environment())
            .env("PATH", std::env::var_os("PATH").expect("PATH"))
            .env("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "1")
            .env("CLAUDE_CODE_TMPDIR", bench.place.path())
            .env("HOME", home)
            .env(MARK, bench.place.id())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .expect("the CLI starts");
        let output = BufReader::new(child.stdout.take().expect("its output")).lines();
        let input = child.stdin.take();
        Self { child, input, output: Some(output) }
    }

    /// Nobody reads what it writes any more.
    pub(crate) fn close_output(&mut self) {
        self.output = None;
    }

    pub(crate) async fn send(&mut self, line: Value) {
        let input = self.input.as_mut().expect("its input is open");
        input.write_all(format!("{line}\n").as_bytes()).await.expect("it reads");
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.send(json!({"type": "user", "message": {"role": "user", "content": text}})).await;
    }

    /// All lines up to the first that is wanted.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let output = self.output.as_mut().expect("its output is open");
        let mut lines = Vec::new();
        loop {
            let next = timeout(SOON, output.next_line()).await;
            let next =
                next.unwrap_or_else(|_| panic!("nothing more after {}", shown(&lines))).expect("it writes");
            let line =
                serde_json::from_str(&next.unwrap_or_else(|| panic!("it ended after {}", shown(&lines))));
            lines.push(line.expect("a line of JSON"));
            if lines.last().is_some_and(&wanted) {
                return lines;
            }
        }
    }

    /// Waits until a tool asks for permission, and grants it.
    pub(crate) async fn allow_tool(&mut self) {
        let lines = self.until(|line| line["type"] == "control_request").await;
        let request = lines.last().expect("a request");
        let response = json!({"behavior": "allow", "updatedInput": request["request"]["input"]});
        let response =
            json!({"subtype": "success", "request_id": request["request_id"], "response": response});
        self.send(json!({"type": "control_response", "response": response})).await;
    }

    pub(crate) async fn turn(&mut self, text: &str) -> Vec<Value> {
        self.say(text).await;
        self.until(is_result).await
    }

    pub(crate) fn process(&self) -> Process {
        Process::of(self.child.id().expect("it runs").cast_signed()).expect("it lives")
    }

    pub(crate) async fn exit_code(mut self) -> Option<i32> {
        timeout(SOON, self.child.wait()).await.expect("it ends").expect("it is our child").code()
    }
}

pub(crate) fn is_result(line: &Value) -> bool {
    line["type"] == "result"
}

pub(crate) fn final_text(lines: &[Value]) -> &str {
    lines.last().and_then(|line| line["result"].as_str()).expect("a result with text")
}

/// What a line is, in one word.
pub(crate) fn kind(line: &Value) -> String {
    let of = |name: &str| line[name].as_str().map(str::to_owned);
    of("state").or_else(|| of("subtype")).or_else(|| of("type")).expect("a type")
}
