//! Starts a simulated CLI in a home of its own and talks to it. Every wait ends; every process, too.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

/// No answer takes longer, on the slowest machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// The flags that every child needs.
pub(crate) const FLAGS: &[&str] =
    &["--print", "--verbose", "--input-format", "stream-json", "--output-format", "stream-json"];

/// A directory with a HOME and a working directory.
pub(crate) struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["home", "work", "tmp"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn projects(&self) -> PathBuf {
        let work = self.path("work").canonicalize().unwrap();
        let name: String =
            work.to_str().unwrap().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        self.path("home").join(".claude/projects").join(name)
    }

    pub(crate) fn transcript(&self, id: &str) -> PathBuf {
        self.projects().join(format!("{id}.jsonl"))
    }

    pub(crate) fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
        command.arg("sim").args(flags).current_dir(self.path("work")).env_clear();
        command.env("HOME", self.path("home")).env("TMPDIR", self.path("tmp"));
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("ANTHROPIC_API_KEY", "none");
        command
    }

    pub(crate) fn start(&self, flags: &[&str]) -> Sim {
        self.start_with(flags, &[])
    }

    pub(crate) fn start_with(&self, flags: &[&str], env: &[(&str, &str)]) -> Sim {
        let mut command = self.command(FLAGS);
        command.args(flags).envs(env.iter().copied());
        Sim::spawn(command)
    }

    /// Runs with an empty input and returns exit code, output and error.
    pub(crate) fn run(&self, flags: &[&str]) -> (i32, String, String) {
        let output = self.command(flags).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }
}

/// A running child.
pub(crate) struct Sim {
    pub(crate) child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Vec<u8>>,
    errors: Receiver<Vec<u8>>,
}

impl Sim {
    fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (line, lines) = sync_channel(1024);
        let (error, errors) = sync_channel(1);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(&mut stdout);
            loop {
                let mut bytes = Vec::new();
                if reader.read_until(b'\n', &mut bytes).unwrap_or(0) == 0 || line.send(bytes).is_err() {
                    return;
                }
            }
        });
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).ok();
            error.send(bytes).ok();
        });
        let stdin = child.stdin.take();
        Self { child, stdin, lines, errors }
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        // The child may be dead already; its output shows it.
        self.stdin.as_mut().unwrap().write_all(bytes).ok();
    }

    pub(crate) fn send(&mut self, value: &Value) {
        self.raw(format!("{value}\n").as_bytes());
    }

    pub(crate) fn user(&mut self, text: &str) {
        self.send(&user(text));
    }

    pub(crate) fn request(&mut self, id: &str, request: Value) {
        self.send(&json!({"type":"control_request","request_id":id,"request":request}));
    }

    pub(crate) fn eof(&mut self) {
        self.stdin = None;
    }

    /// The next line as bytes; nothing at the end of output.
    pub(crate) fn next_bytes(&mut self) -> Option<Vec<u8>> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line in time"),
        }
    }

    pub(crate) fn next(&mut self) -> Option<Value> {
        self.next_bytes().map(|line| serde_json::from_slice(&line).unwrap())
    }

    /// Everything up to the first line that is wanted.
    pub(crate) fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut seen = Vec::new();
        loop {
            seen.push(self.next().unwrap_or_else(|| panic!("the output ended after {seen:#?}")));
            if wanted(seen.last().unwrap()) {
                return seen;
            }
        }
    }

    /// Skips to the next `result`.
    pub(crate) fn result(&mut self) -> Value {
        self.until(|line| line["type"] == "result").pop().unwrap()
    }

    /// Says something and returns the text of the answer.
    pub(crate) fn ask(&mut self, text: &str) -> String {
        self.user(text);
        let result = self.result();
        assert_eq!(result["subtype"], "success", "{result}");
        result["result"].as_str().unwrap().to_owned()
    }

    /// Skips to the answer of a control request.
    pub(crate) fn response(&mut self, id: &str) -> Value {
        let found = |line: &Value| line["type"] == "control_response" && line["response"]["request_id"] == id;
        self.until(found).pop().unwrap()["response"].take()
    }

    pub(crate) fn initialize(&mut self) -> Value {
        self.request("init", json!({"subtype":"initialize"}));
        self.response("init")
    }

    /// True if nothing comes for that long.
    pub(crate) fn is_silent(&self, time: Duration) -> bool {
        matches!(self.lines.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid(self.child.id()), signal).unwrap();
    }

    /// Waits for the end of the process.
    pub(crate) fn status(&mut self) -> ExitStatus {
        eventually("the process ends", || self.child.try_wait().unwrap())
    }

    pub(crate) fn code(&mut self) -> i32 {
        let status = self.status();
        status.code().unwrap_or_else(|| panic!("killed by {:?}", status.signal()))
    }

    pub(crate) fn stderr(&mut self) -> String {
        String::from_utf8(self.errors.recv_timeout(DEADLINE).unwrap()).unwrap()
    }

    /// Ends the input and returns what still came, and the exit code.
    pub(crate) fn finish(mut self) -> (Vec<Value>, i32) {
        self.eof();
        let mut rest = Vec::new();
        while let Some(line) = self.next() {
            rest.push(line);
        }
        (rest, self.code())
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A process that a test must end, whatever happens.
pub(crate) struct Leftover(pub u32);

impl Leftover {
    pub(crate) fn lives(&self) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        let dead =
            state.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']));
        test_kill_process(pid(self.0)).is_ok() && !dead
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        kill_process(pid(self.0), Signal::KILL).ok();
    }
}

pub(crate) fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

pub(crate) fn user(text: &str) -> Value {
    json!({"type":"user","message":{"role":"user","content":text}})
}

pub(crate) fn user_with_id(text: &str, uuid: &str) -> Value {
    json!({"type":"user","uuid":uuid,"message":{"role":"user","content":text}})
}

/// Asks again and again until there is an answer.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let step = Duration::from_millis(10);
    for _ in 0..DEADLINE.as_millis() / step.as_millis() {
        if let Some(found) = look() {
            return found;
        }
        std::thread::park_timeout(step);
    }
    panic!("not in time: {what}")
}

/// Waits for a file that holds a number.
pub(crate) fn number_in(path: &Path) -> u32 {
    eventually("a file with a number", || std::fs::read_to_string(path).ok()?.trim().parse().ok())
}
