//! Tool calls: permission, and commands that really run, each in a new session.

use std::fs::File;
use std::io::Read as _;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde_json::Value;

use crate::conversation::new_id;
use crate::engine::{Engine, Stop};
use crate::faults::{Fault, Kind};
use crate::host_request::{self, Permission};
use crate::input::Input;
use crate::json::{Object, object};
use crate::new_session;
use crate::permission::{self, Decision, Denial, Rules};
use crate::script::Call;
use crate::turn::Turn;

/// Maximum output of a command in bytes, as in claude.
const MAX_TOOL_OUTPUT: u64 = 30_000;
/// Tool result of a call that the user stopped.
const REJECTED: &str = "The user doesn't want to proceed with this tool use. The tool use was rejected (eg. if it was a file edit, the new_string was NOT written to the file). STOP what you are doing and wait for the user to tell you how to proceed.";

/// Outcome of a call; the worst one of a turn names the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ToolOutcome {
    Ok,
    Failed,
    Denied,
}

impl ToolOutcome {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "err",
            Self::Denied => "denied",
        }
    }
}

/// Result block of a call that the user stopped, and its `tool_use_result`.
pub(crate) fn rejected(id: &str) -> (Vec<u8>, Vec<u8>) {
    (error_block(id, REJECTED), Value::from("User rejected tool use").to_string().into_bytes())
}

fn error_block(id: &str, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    object(&mut out, |o| {
        o.str("type", "tool_result").str("content", text).bool("is_error", true).str("tool_use_id", id);
    });
    out
}

impl Engine {
    /// Runs one call, from its permission to its result line.
    pub(crate) fn run_call(&mut self, turn: &mut Turn, call: &Call, id: &str) -> Result<ToolOutcome, Stop> {
        let server = self.host_server_of(&call.name);
        if let Some(caller) = server.as_deref().filter(|name| *name == host_request::CALLER) {
            return self.call_host(turn, caller, call, id);
        }
        let is_left = |tools: &Vec<String>| tools.iter().any(|tool| *tool == call.name || tool == "default");
        if !call.name.starts_with("mcp__") && !self.args.tools.as_ref().is_none_or(is_left) {
            return Ok(self.no_such_tool(id, &call.name));
        }
        let rules =
            Rules { allowed: &self.args.allowed, disallowed: &self.args.disallowed, mode: &self.mode };
        let permission = match permission::decide(&rules, &call.name, &call.input) {
            Decision::Allow => Permission::Granted(call.input.clone()),
            Decision::Deny(text) => Permission::Denied(text),
            Decision::Ask(text) if !self.args.ask_host => Permission::Denied(text),
            Decision::Ask(_) => self.ask(turn, call, id)?,
        };
        let input = match permission {
            Permission::Granted(input) => input,
            Permission::Denied(text) => {
                turn.denials.push(Denial {
                    name: call.name.clone(),
                    id: id.to_owned(),
                    input: call.input.clone(),
                });
                self.tool_error(id, &text);
                return Ok(ToolOutcome::Denied);
            }
        };
        if let Some(server) = server {
            return self.call_host(turn, &server, &Call { input, ..call.clone() }, id);
        }
        match call.name.as_str() {
            "Bash" => self.bash(id, &input),
            "Write" => Ok(self.write_file(id, &input)),
            "Read" => Ok(self.read_file(id, &input)),
            "AskUserQuestion" => {
                let answers = input.get("answers").and_then(Value::as_object).filter(|it| !it.is_empty());
                let text = answers.map_or("The user did not answer the questions.".to_owned(), |answers| {
                    let said = answers.iter().map(|(question, answer)| format!("{question:?}={answer}"));
                    let said = said.collect::<Vec<_>>().join(", ");
                    format!("Your questions have been answered: {said}. You can now continue with these answers in mind.")
                });
                self.tool_success(id, &text, |_| {});
                turn.tool_texts.push(text);
                Ok(ToolOutcome::Ok)
            }
            other => Ok(self.no_such_tool(id, other)),
        }
    }

    /// Runs a call of a tool that the host has.
    fn call_host(
        &mut self,
        turn: &mut Turn,
        server: &str,
        call: &Call,
        id: &str,
    ) -> Result<ToolOutcome, Stop> {
        let (text, has_failed) = self.ask_server(server, call, id)?;
        if has_failed {
            self.tool_error(id, &text);
            return Ok(ToolOutcome::Failed);
        }
        self.tool_success(id, &text, |_| {});
        turn.tool_texts.push(text);
        Ok(ToolOutcome::Ok)
    }

    fn no_such_tool(&mut self, id: &str, name: &str) -> ToolOutcome {
        let text = format!("<tool_use_error>Error: No such tool available: {name}</tool_use_error>");
        self.tool_error(id, &text);
        ToolOutcome::Failed
    }

    pub(crate) fn tool_error(&mut self, id: &str, text: &str) {
        let result = Value::from(format!("Error: {text}")).to_string();
        self.emit_note(&error_block(id, text), Some(result.as_bytes()));
    }

    pub(crate) fn tool_success(&mut self, id: &str, text: &str, result: impl FnOnce(&mut Object<'_>)) {
        let (mut block, mut details) = (Vec::new(), Vec::new());
        object(&mut block, |o| {
            o.str("tool_use_id", id).str("type", "tool_result").str("content", text).bool("is_error", false);
        });
        object(&mut details, result);
        self.emit_note(&block, Some(&details));
    }

    fn bash(&mut self, id: &str, input: &Value) -> Result<ToolOutcome, Stop> {
        let Some(command) = input.get("command").and_then(Value::as_str) else {
            self.tool_error(id, "<tool_use_error>InputValidationError: The required parameter `command` is missing</tool_use_error>");
            return Ok(ToolOutcome::Failed);
        };
        if input.get("run_in_background").and_then(Value::as_bool) == Some(true) {
            return Ok(self.start_task(id, command));
        }
        let Some((child, mut output)) = self.start_tool(command) else {
            self.tool_error(id, "the command could not be started");
            return Ok(ToolOutcome::Failed);
        };
        let code = self.wait_for_tool(child)?;
        let mut bytes = Vec::new();
        let mut text = match output.by_ref().take(MAX_TOOL_OUTPUT).read_to_end(&mut bytes) {
            Ok(_) => String::from_utf8_lossy(&bytes).trim_end().to_owned(),
            Err(_) => String::new(),
        };
        if code != 0 {
            text = format!("Exit code {code}\n{text}").trim_end().to_owned();
            self.tool_error(id, &text);
            return Ok(ToolOutcome::Failed);
        }
        let shown = if text.is_empty() { "(Bash completed with no output)" } else { &text };
        let silent = command.starts_with("touch") || command.starts_with("mkdir");
        self.tool_success(id, shown, |o| bash_details(o, &text, silent));
        Ok(ToolOutcome::Ok)
    }

    /// Waits for the command and reaps it. An interrupt kills it; a message of priority `now` waits for its exit.
    fn wait_for_tool(&mut self, mut child: Child) -> Result<i32, Stop> {
        let pid = child.id();
        self.tool_ended = None;
        let mut replaced = false;
        loop {
            match self.pump(None, |engine| engine.tool_ended == Some(pid)) {
                Ok(()) => break,
                Err(Stop::Replaced) => {
                    self.stop = None;
                    replaced = true;
                }
                Err(Stop::Interrupted) => {
                    // The unreaped pid is valid. The child may not have called setsid(2) yet.
                    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                        kill_process_group(group, Signal::KILL).ok();
                    }
                    drop(child.kill());
                    drop(child.wait());
                    return Err(Stop::Interrupted);
                }
            }
        }
        if replaced {
            self.stop = Some(Stop::Replaced);
        }
        Ok(child.wait().ok().and_then(|status| status.code()).unwrap_or(137))
    }

    /// Starts a command with its output in a file, so its descendants hold no pipe of this process.
    fn start_tool(&self, command: &str) -> Option<(Child, File)> {
        let path = std::env::temp_dir().join(format!("pilotlight-sim-{}", new_id()));
        let output = File::options().write(true).create_new(true).open(&path).ok()?;
        let reader = File::open(&path).ok();
        drop(std::fs::remove_file(&path));
        let child =
            self.tool_command(command).stdout(output.try_clone().ok()?).stderr(output).spawn().ok()?;
        let (pid, inputs) = (child.id(), self.inputs.clone());
        let watch = move || {
            let id = WaitId::Pid(Pid::from_raw(i32::try_from(pid).ok()?)?);
            // Does not reap: only the main thread may, because it may still signal the pid.
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(id.clone(), look), Err(rustix::io::Errno::INTR)) {}
            inputs.send(vec![Input::ToolEnded(pid)]).ok()
        };
        std::thread::Builder::new().name("tool".into()).stack_size(64 * 1024).spawn(watch).ok()?;
        Some((child, reader?))
    }

    pub(crate) fn tool_command(&self, script: &str) -> std::process::Command {
        let mut command = new_session::shell(script);
        command.stdin(Stdio::null());
        command.env("CLAUDECODE", "1").env("CLAUDE_CODE_ENTRYPOINT", "sdk-cli");
        command.env("CLAUDE_CODE_SESSION_ID", &self.conversation.session_id);
        command
    }

    fn write_file(&mut self, id: &str, input: &Value) -> ToolOutcome {
        let text = |key: &str| input.get(key).and_then(Value::as_str).unwrap_or_default();
        let (path, content) = (text("file_path"), text("content"));
        match std::fs::write(path, content) {
            Ok(()) => {
                let said = format!("File created successfully at: {path}");
                self.tool_success(id, &said, |o| {
                    o.str("type", "create").str("filePath", path).str("content", content);
                });
                ToolOutcome::Ok
            }
            Err(error) => {
                self.tool_error(id, &error.to_string());
                ToolOutcome::Failed
            }
        }
    }

    fn read_file(&mut self, id: &str, input: &Value) -> ToolOutcome {
        let path = input.get("file_path").and_then(Value::as_str).unwrap_or_default();
        match std::fs::read_to_string(path) {
            Ok(text) => {
                self.tool_success(id, &text, |o| {
                    o.str("type", "text").object("file", |o| {
                        o.str("filePath", path).str("content", &text);
                    });
                });
                ToolOutcome::Ok
            }
            Err(_) => {
                self.tool_error(id, "File does not exist.");
                ToolOutcome::Failed
            }
        }
    }

    /// Starts processes that outlive this one: two in new sessions, the second without environment, and an orphaned daemon.
    pub(crate) fn spawn_survivors(&mut self, fault: &Fault) -> Vec<u32> {
        let seconds = fault.number(600);
        let holding = fault.kind == Kind::OutliveHolding;
        let stdio = || if holding { Stdio::inherit() } else { Stdio::null() };
        let mut left = Vec::new();
        for clear in [false, true] {
            let mut command = self.tool_command(&format!("exec sleep {seconds}"));
            if clear {
                command.env_clear();
            }
            left.extend(command.stdout(stdio()).stderr(stdio()).spawn().ok().map(|child| child.id()));
        }
        let daemon = self.tool_command(&format!("sleep {seconds} >/dev/null 2>&1 & echo $!")).output().ok();
        left.extend(daemon.and_then(|out| String::from_utf8_lossy(&out.stdout).trim().parse::<u32>().ok()));
        left
    }
}

/// The `tool_use_result` of a command.
pub(crate) fn bash_details(o: &mut Object<'_>, stdout: &str, silent: bool) {
    o.str("stdout", stdout).str("stderr", "").bool("interrupted", false).bool("isImage", false);
    o.bool("noOutputExpected", silent);
}
