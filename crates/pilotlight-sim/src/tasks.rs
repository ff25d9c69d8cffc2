//! Background tasks: commands that outlive their turn and start a turn when they exit.

use std::fs::File;
use std::path::PathBuf;
use std::process::Child;

use serde_json::json;

use crate::conversation::new_id;
use crate::engine::Engine;
use crate::input::{Batch, Input};
use crate::script::Call;
use crate::tools::{ToolOutcome, bash_details};

/// A background command.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) tool_use_id: String,
    pub(crate) description: String,
    output_file: String,
}

impl Engine {
    /// The tool call of the marker `background`. With background tasks disabled, it only leaves a process running.
    pub(crate) fn background_call(&self, seconds: f64) -> Call {
        let input = if tasks_are_off() {
            json!({"command": format!("sleep {seconds} >/dev/null 2>&1 &")})
        } else {
            json!({"command": format!("sleep {seconds}"), "run_in_background": true})
        };
        Call { name: "Bash".into(), input }
    }

    pub(crate) fn start_task(&mut self, id: &str, command: &str) -> ToolOutcome {
        if tasks_are_off() {
            self.tool_error(id, "<tool_use_error>InputValidationError: Bash failed due to the following issue:\nAn unexpected parameter `run_in_background` was provided</tool_use_error>");
            return ToolOutcome::Failed;
        }
        let task_id: String =
            std::iter::once('b').chain(new_id().chars().filter(|c| *c != '-').take(8)).collect();
        let Some(file) = self.task_file(&task_id) else {
            self.tool_error(id, "the output file could not be made");
            return ToolOutcome::Failed;
        };
        let output = File::options().append(true).create(true).open(&file);
        let started =
            output.and_then(|out| self.tool_command(command).stdout(out.try_clone()?).stderr(out).spawn());
        let Ok(child) = started else {
            self.tool_error(id, "the command could not be started");
            return ToolOutcome::Failed;
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
        ToolOutcome::Ok
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

    /// Reports the exit of a background task at once, also during a turn.
    pub(crate) fn announce_task_end(&mut self, task: &Task, code: i32) {
        self.system("task_updated", |o| {
            o.str("task_id", &task.id).object("patch", |o| {
                o.str("status", status(code)).int("end_time", crate::clock::epoch_ms());
            });
        });
    }

    /// Reports that the exit of a background task starts a turn.
    pub(crate) fn notice_task_end(&mut self, task: &Task, code: i32) {
        let status = status(code);
        let summary = format!("Background command \"{}\" {status} (exit code {code})", task.description);
        self.system("task_notification", |o| {
            o.str("task_id", &task.id).str("tool_use_id", &task.tool_use_id).str("status", status);
            o.str("output_file", &task.output_file).str("summary", &summary);
        });
    }
}

fn status(code: i32) -> &'static str {
    if code == 0 { "completed" } else { "failed" }
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
