//! Event pump of the main thread: receives input and dispatches it. All waits go through [`Engine::pump`].

use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clock;
use crate::command::{Command, Message, Priority, parse_line};
use crate::engine::{Engine, Stop};
use crate::input::Input;
use crate::output::write_error;

/// Maximum number of queued messages. claude has no limit; the simulation exits instead of growing.
const MAX_WAITING: usize = 4096;

impl Engine {
    /// Dispatches inputs until `wake` is true or the deadline is over. `Err` if the running turn must stop.
    pub(crate) fn pump(
        &mut self,
        deadline: Option<Instant>,
        wake: impl Fn(&Self) -> bool,
    ) -> Result<(), Stop> {
        loop {
            while !(self.inbox.is_empty() || !self.busy && wake(self)) {
                if let Some(input) = self.inbox.pop_front() {
                    self.handle(input);
                }
            }
            if let Some(stop) = self.stop.filter(|_| self.busy) {
                return Err(stop);
            }
            if wake(self) {
                return Ok(());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(clock::now()));
            let received = match left {
                None => self.received.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(Duration::ZERO) => match self.received.try_recv() {
                    Ok(batch) => Ok(batch),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Ok(()),
                },
                Some(left) => self.received.recv_timeout(left),
            };
            match received {
                Ok(batch) => self.inbox.extend(batch),
                Err(RecvTimeoutError::Timeout) => {}
                // Unreachable: this engine holds a sender.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Waits for a time and dispatches inputs meanwhile.
    pub(crate) fn wait(&mut self, time: Duration) -> Result<(), Stop> {
        self.pump(Some(clock::now() + time), |_| false)
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Line(line) if !self.ending => self.line(&line),
            Input::Line(_) => {}
            Input::Eof => self.eof = true,
            Input::Interrupt => {
                self.ending = true;
                self.interrupt();
            }
            Input::ToolEnded(pid) => self.tool_ended = Some(pid),
            Input::TaskEnded(id, code) => {
                if let Some(at) = self.running_tasks.iter().position(|task| task.id == id) {
                    let task = self.running_tasks.remove(at);
                    self.announce_task_end(&task, code);
                    self.ended_tasks.push_back((task, code, self.queue.len()));
                }
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        match parse_line(line) {
            Command::Ignore => {}
            Command::User(message) => self.enqueue(*message),
            Command::Control { request_id, request } => self.control(request_id.as_deref(), &request),
            Command::Answer { request_id, response } => self.answer(&request_id, response),
            Command::Fatal(text) => {
                write_error(&text);
                self.quit(1);
            }
            Command::FatalResult(text) => {
                self.emit_refusal(&text);
                self.quit(1);
            }
        }
    }

    fn enqueue(&mut self, message: Message) {
        if self.queue.len() >= MAX_WAITING {
            write_error("Error: too many messages wait for the end of the turn");
            self.quit(1);
        }
        if !self.busy && self.queue.is_empty() {
            self.queued_while_busy = false;
        }
        if self.busy {
            self.queued_while_busy = true;
        }
        if message.priority == Priority::Now {
            if self.busy && self.stop.is_none() {
                self.stop = Some(Stop::Replaced);
            }
            self.queue.push_front(message);
        } else {
            self.queue.push_back(message);
        }
    }

    /// Stops a running turn, after cancelling its pending request to the host.
    pub(crate) fn interrupt(&mut self) {
        if !self.busy {
            return;
        }
        self.stop = Some(Stop::Interrupted);
        if let Some(pending_request) = self.pending_request.take() {
            self.out.line(|o| {
                o.str("type", "control_cancel_request").str("request_id", &pending_request.request_id);
            });
        }
    }

    fn answer(&mut self, request_id: &str, response: Value) {
        if let Some(pending_request) =
            self.pending_request.as_mut().filter(|pending_request| pending_request.request_id == request_id)
        {
            pending_request.answer.get_or_insert(response);
        }
    }

    /// Exits at once, also during a turn.
    fn quit(&self, code: u8) -> ! {
        self.conversation.writer.flush();
        std::process::exit(i32::from(code))
    }
}
