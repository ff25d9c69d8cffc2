//! Tool calls: the question to the host, and commands that really run, in sessions of their own.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde_json::{Value, json};

use super::conversation::new_id;
use super::engine::{Engine, Stop};
use super::faults::{Fault, Kind};
use super::input::{Batch, Input};
use super::json::{Object, object};
use super::own_session;
use super::permission::{self, Denial, Rules, Verdict};
use super::script::Call;
use super::turn::Turn;

/// Longer output of a command is cut, as in the real one.
const MAX_TOOL_OUTPUT: u64 = 30_000;
/// What the model is told about a call that the user stopped.
const REJECTED: &str = "The user doesn't want to proceed with this tool use. The tool use was rejected (eg. if it was a file edit, the new_string was NOT written to the file). STOP what you are doing and wait for the user to tell you how to proceed.";

/// How a call ended; the worst one names the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CallEnd {
    Ok,
    Failed,
    Denied,
}

impl CallEnd {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "err",
            Self::Denied => "denied",
        }
    }
}

/// A question to the host that waits for its answer.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) request_id: String,
    pub(super) answer: Option<Value>,
}

/// A command in the background.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: String,
    pub(super) tool_use_id: String,
    pub(super) description: String,
    output_file: String,
}

/// The result block of a call that the user stopped, and its `tool_use_result`.
pub(super) fn rejected(id: &str) -> (Vec<u8>, Vec<u8>) {
    (error_block(id, REJECTED), Value::from("User rejected tool use").to_string().into_bytes())
}

fn error_block(id: &str, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    object(&mut out, |o| {
        o.str("type", "tool_result").str("content", text).bool("is_error", true).str("tool_use_id", id);
    });
    out
}

/// What the host decided.
enum Permission {
    Granted(Value),
    Denied(String),
}

impl Engine {
    /// Makes one call, from the question to its result line.
    pub(super) fn run_call(&mut self, turn: &mut Turn, call: &Call, id: &str) -> Result<CallEnd, Stop> {
        let rules =
            Rules { allowed: &self.args.allowed, disallowed: &self.args.disallowed, mode: &self.mode };
        let permission = match permission::judge(&rules, &call.name, &call.input) {
            Verdict::Allow => Permission::Granted(call.input.clone()),
            Verdict::Deny(text) => Permission::Denied(text),
            Verdict::Ask(text) if !self.args.ask_host => Permission::Denied(text),
            Verdict::Ask(_) => self.ask(turn, call, id)?,
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
                return Ok(CallEnd::Denied);
            }
        };
        match call.name.as_str() {
            "Bash" => self.bash(id, &input),
            "Write" => Ok(self.write_file(id, &input)),
            "Read" => Ok(self.read_file(id, &input)),
            other => {
                self.tool_error(
                    id,
                    &format!("<tool_use_error>Error: No such tool available: {other}</tool_use_error>"),
                );
                Ok(CallEnd::Failed)
            }
        }
    }

    fn tool_error(&mut self, id: &str, text: &str) {
        let result = Value::from(format!("Error: {text}")).to_string();
        self.emit_note(&error_block(id, text), Some(result.as_bytes()));
    }

    fn tool_success(&mut self, id: &str, text: &str, result: impl FnOnce(&mut Object<'_>)) {
        let (mut block, mut details) = (Vec::new(), Vec::new());
        object(&mut block, |o| {
            o.str("tool_use_id", id).str("type", "tool_result").str("content", text).bool("is_error", false);
        });
        object(&mut details, result);
        self.emit_note(&block, Some(&details));
    }

    /// Asks the host, and waits as long as it likes.
    fn ask(&mut self, turn: &mut Turn, call: &Call, id: &str) -> Result<Permission, Stop> {
        let denial = Denial { name: call.name.clone(), id: id.to_owned(), input: call.input.clone() };
        let request_id = new_id();
        self.asking = Some(Asking { request_id: request_id.clone(), answer: None });
        self.set_state("requires_action");
        self.emit_question(call, id, &request_id);
        let heard = self.pump(None, |engine| {
            engine.eof || engine.asking.as_ref().is_none_or(|asking| asking.answer.is_some())
        });
        self.set_state("running");
        let answer = self.asking.take().and_then(|asking| asking.answer);
        if let Err(stop) = heard {
            if stop == Stop::Replaced {
                self.out.line(|o| {
                    o.str("type", "control_cancel_request").str("request_id", &request_id);
                });
            }
            turn.denials.push(denial);
            return Err(stop);
        }
        let Some(answer) = answer else {
            let text = "Tool permission request failed: Error: Tool permission stream closed before response received";
            return Ok(Permission::Denied(text.into()));
        };
        let body = answer.get("response").unwrap_or(&Value::Null);
        let behaviour = body.get("behavior").and_then(Value::as_str);
        match (answer.get("subtype").and_then(Value::as_str), behaviour, body.get("updatedInput")) {
            (Some("success"), Some("allow"), Some(input @ Value::Object(_))) => Ok(Permission::Granted(input.clone())),
            (Some("success"), Some("deny"), _) => {
                if body.get("interrupt").and_then(Value::as_bool) == Some(true) {
                    turn.denials.push(denial);
                    return Err(Stop::Interrupted);
                }
                let message = body.get("message").and_then(Value::as_str).unwrap_or_default();
                Ok(Permission::Denied(message.to_owned()))
            }
            (Some("error"), ..) => {
                let error = answer.get("error").and_then(Value::as_str).unwrap_or_default();
                Ok(Permission::Denied(format!("Tool permission request failed: Error: {error}")))
            }
            _ => Ok(Permission::Denied(
                "Tool permission request failed: ZodError: Invalid input: expected record, received undefined".into(),
            )),
        }
    }

    fn emit_question(&mut self, call: &Call, id: &str, request_id: &str) {
        let text = |key: &str| call.input.get(key).and_then(Value::as_str);
        let cwd = self.conversation.cwd.clone();
        let command = text("command").unwrap_or_default();
        let description = text("description").or(text("command")).unwrap_or(&call.name);
        // The last word that is no option is a fair guess at what a command touches.
        let touched = command.split_whitespace().rev().find(|word| !word.starts_with('-'));
        let blocked = match text("file_path") {
            Some(path) => path.to_owned(),
            None => PathBuf::from(&cwd).join(touched.unwrap_or_default()).to_string_lossy().into_owned(),
        };
        let suggestions = json!([
            {"type": "addRules", "rules": [{"toolName": call.name, "ruleContent": command}],
             "behavior": "allow", "destination": "localSettings"},
            {"type": "addDirectories", "directories": [cwd], "destination": "session"},
            {"type": "setMode", "mode": "acceptEdits", "destination": "session"},
        ]);
        self.out.line(|o| {
            o.str("type", "control_request").str("request_id", request_id).object("request", |o| {
                o.str("subtype", "can_use_tool").str("tool_name", &call.name);
                o.str("display_name", &call.name).value("input", &call.input);
                o.str("description", description).value("permission_suggestions", &suggestions);
                o.str("blocked_path", &blocked).str("tool_use_id", id);
            });
        });
    }

    fn bash(&mut self, id: &str, input: &Value) -> Result<CallEnd, Stop> {
        let Some(command) = input.get("command").and_then(Value::as_str) else {
            self.tool_error(id, "<tool_use_error>InputValidationError: The required parameter `command` is missing</tool_use_error>");
            return Ok(CallEnd::Failed);
        };
        if input.get("run_in_background").and_then(Value::as_bool) == Some(true) {
            return Ok(self.start_task(id, command));
        }
        let Some((child, mut output)) = self.start_tool(command) else {
            self.tool_error(id, "the command could not be started");
            return Ok(CallEnd::Failed);
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
            return Ok(CallEnd::Failed);
        }
        let shown = if text.is_empty() { "(Bash completed with no output)" } else { &text };
        let silent = command.starts_with("touch") || command.starts_with("mkdir");
        self.tool_success(id, shown, |o| bash_details(o, &text, silent));
        Ok(CallEnd::Ok)
    }

    /// Waits for the command and reaps it. An interrupt kills it; a message that wants to be next lets it end first.
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
                    // Not yet reaped, so the number is still the command's. It may be before its setsid.
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

    /// Starts a command whose output goes to a file, so that what it leaves behind holds no pipe of ours.
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
            // Only looks: the main thread reaps, so that it never signals a stranger with the same number.
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(id.clone(), look), Err(rustix::io::Errno::INTR)) {}
            inputs.send(vec![Input::ToolEnded(pid)]).ok()
        };
        std::thread::Builder::new().name("tool".into()).stack_size(64 * 1024).spawn(watch).ok()?;
        Some((child, reader?))
    }

    fn tool_command(&self, script: &str) -> std::process::Command {
        let mut command = own_session::shell(script);
        command.stdin(Stdio::null());
        command.env("CLAUDECODE", "1").env("CLAUDE_CODE_ENTRYPOINT", "sdk-cli");
        command.env("CLAUDE_CODE_SESSION_ID", &self.conversation.session_id);
        command
    }

    /// The call of the `background` marker. Where tasks are switched off the command only leaves a process behind.
    pub(super) fn background_call(&self, seconds: f64) -> Call {
        let input = if tasks_are_off() {
            json!({"command": format!("sleep {seconds} >/dev/null 2>&1 &")})
        } else {
            json!({"command": format!("sleep {seconds}"), "run_in_background": true})
        };
        Call { name: "Bash".into(), input }
    }

    fn start_task(&mut self, id: &str, command: &str) -> CallEnd {
        if tasks_are_off() {
            self.tool_error(id, "<tool_use_error>InputValidationError: Bash failed due to the following issue:\nAn unexpected parameter `run_in_background` was provided</tool_use_error>");
            return CallEnd::Failed;
        }
        let task_id: String =
            std::iter::once('b').chain(new_id().chars().filter(|c| *c != '-').take(8)).collect();
        let Some(file) = self.task_file(&task_id) else {
            self.tool_error(id, "the output file could not be made");
            return CallEnd::Failed;
        };
        let output = File::options().append(true).create(true).open(&file);
        let started =
            output.and_then(|out| self.tool_command(command).stdout(out.try_clone()?).stderr(out).spawn());
        let Ok(child) = started else {
            self.tool_error(id, "the command could not be started");
            return CallEnd::Failed;
        };
        let output_file = file.to_string_lossy().into_owned();
        watch_task(child, task_id.clone(), self.inputs.clone());
        self.system("task_started", |o| {
            o.str("task_id", &task_id).str("tool_use_id", id).str("description", command);
            o.str("task_type", "local_bash");
        });
        let text = format!(
            "Command running in background with ID: {task_id}. Output is being written to: {output_file}. You will be notified when it completes. To check interim output, use Read on that file path."
        );
        self.tool_success(id, &text, |o| {
            bash_details(o, "", false);
            o.str("backgroundTaskId", &task_id);
        });
        self.running_tasks.push(Task {
            id: task_id,
            tool_use_id: id.to_owned(),
            description: command.to_owned(),
            output_file,
        });
        CallEnd::Ok
    }

    fn task_file(&self, task_id: &str) -> Option<PathBuf> {
        let root = match std::env::var_os("CLAUDE_CODE_TMPDIR") {
            Some(dir) if !dir.is_empty() => PathBuf::from(dir),
            _ => std::env::temp_dir(),
        };
        let dir = root
            .join(format!("claude-{}", rustix::process::getuid().as_raw()))
            .join(self.conversation.dir.file_name()?)
            .join(&self.conversation.session_id)
            .join("tasks");
        std::fs::create_dir_all(&dir).ok()?;
        Some(dir.join(format!("{task_id}.output")))
    }

    /// Tells that a background task has ended, which is why a turn begins now.
    pub(super) fn announce_task_end(&mut self, task: &Task, code: i32) {
        let status = if code == 0 { "completed" } else { "failed" };
        self.system("task_updated", |o| {
            o.str("task_id", &task.id).object("patch", |o| {
                o.str("status", status).int("end_time", super::clock::epoch_ms());
            });
        });
        let summary = format!("Background command \"{}\" {status} (exit code {code})", task.description);
        self.system("task_notification", |o| {
            o.str("task_id", &task.id).str("tool_use_id", &task.tool_use_id).str("status", status);
            o.str("output_file", &task.output_file).str("summary", &summary);
        });
    }

    fn write_file(&mut self, id: &str, input: &Value) -> CallEnd {
        let text = |key: &str| input.get(key).and_then(Value::as_str).unwrap_or_default();
        let (path, content) = (text("file_path"), text("content"));
        match std::fs::write(path, content) {
            Ok(()) => {
                let said = format!("File created successfully at: {path}");
                self.tool_success(id, &said, |o| {
                    o.str("type", "create").str("filePath", path).str("content", content);
                });
                CallEnd::Ok
            }
            Err(error) => {
                self.tool_error(id, &error.to_string());
                CallEnd::Failed
            }
        }
    }

    fn read_file(&mut self, id: &str, input: &Value) -> CallEnd {
        let path = input.get("file_path").and_then(Value::as_str).unwrap_or_default();
        match std::fs::read_to_string(path) {
            Ok(text) => {
                self.tool_success(id, &text, |o| {
                    o.str("type", "text").object("file", |o| {
                        o.str("filePath", path).str("content", &text);
                    });
                });
                CallEnd::Ok
            }
            Err(_) => {
                self.tool_error(id, "File does not exist.");
                CallEnd::Failed
            }
        }
    }

    /// Leaves processes behind that no signal to this one reaches: two in sessions of their own, the second without
    /// environment, and a daemon whose parent is gone.
    pub(super) fn leave_behind(&mut self, fault: &Fault) -> Vec<u32> {
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

fn bash_details(o: &mut Object<'_>, stdout: &str, silent: bool) {
    o.str("stdout", stdout).str("stderr", "").bool("interrupted", false).bool("isImage", false);
    o.bool("noOutputExpected", silent);
}

fn tasks_are_off() -> bool {
    std::env::var_os("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS").is_some_and(|value| value == "1")
}

fn watch_task(mut child: Child, id: String, inputs: std::sync::mpsc::SyncSender<Batch>) {
    let watch = move || {
        let code = child.wait().ok().and_then(|status| status.code()).unwrap_or(137);
        inputs.send(vec![Input::TaskEnded(id, code)]).is_ok()
    };
    drop(std::thread::Builder::new().name("task".into()).stack_size(64 * 1024).spawn(watch));
}
