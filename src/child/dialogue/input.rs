//! What the child is told: turns, interrupts, answers; and how it gets to it.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::time::Instant;

use super::{ChildEvent, Dialogue, LEASE};
use crate::child::exit::KillReason;
use crate::child::permissions::Answer;
use crate::child::running::{Running, TurnJob};
use crate::error::TurnError;
use crate::model::PermissionError;
use crate::model::ids::TurnId;
use crate::telemetry::metrics::Stream;

/// Lines that may wait to be written: a turn, pings, answers. A child that asks its host for so much and reads so
/// little breaks the protocol.
const MOST_UNWRITTEN: usize = 256;

impl Dialogue {
    // ---- Orders of the session ----

    /// Gives the child a turn, or the turn back if there is no child any more.
    pub(in crate::child) fn take_turn(&mut self, job: Box<TurnJob>) -> Result<(), Box<TurnJob>> {
        if self.over || self.asked {
            return Err(job);
        }
        self.catch_up();
        if self.active {
            // A message sent into a running turn would get no answer of its own.
            self.held = Some((job, Instant::now()));
            self.unsettled = true;
        } else {
            self.begin(*job);
        }
        Ok(())
    }

    /// Ends the turn, if it is still this one; its reader hears the end.
    pub(in crate::child) fn interrupt_turn(&mut self, turn: TurnId) {
        if self.holds(turn) {
            self.end_held(TurnError::Cancelled);
        } else if self.runs(turn) {
            self.interrupt();
        }
    }

    /// Ends the turn, if it is still this one; its reader is gone.
    pub(in crate::child) fn cancel_turn(&mut self, turn: TurnId) {
        if self.holds(turn) {
            self.end_held(TurnError::Cancelled);
        } else if self.runs(turn) {
            self.cancel_running(TurnError::Cancelled);
        }
    }

    /// A tool may run, or not.
    pub(in crate::child) fn answer(&mut self, answer: Answer) {
        if self.over || self.asked {
            answer.reply.send(Err(PermissionError::Late)).ok();
        } else if let Some((request, decision)) = self.permissions.answer(answer) {
            let line = self.setup.adapter.permission_answer(&request, &decision);
            self.write(line.into());
            self.report(ChildEvent::Permissions(self.permissions.pending()));
        }
    }

    // ---- Turns ----

    pub(super) fn begin(&mut self, job: TurnJob) {
        // The CLI drops a message whose id it has seen, also in a process before this one: each attempt has its own.
        let is_shared = self.setup.config.cli.background_tasks;
        let mark = is_shared.then(|| uuid::Uuid::new_v4().to_string());
        let line = match &mark {
            Some(mark) => self.setup.adapter.marked(&job.line, mark).into(),
            None => job.line.clone(),
        };
        self.write(line);
        let now = Instant::now();
        // The reader, which waits for it, is the first to read.
        self.lease = Some(now + LEASE);
        if let Some(sender) = &job.sender {
            self.wakes.extend(sender.waiting());
        }
        self.running = Some(Box::new(Running::new(job, mark, now, &self.setup.config.session)));
        self.has_put = false;
        self.reader_asks = false;
        self.unsettled = true;
    }

    fn runs(&self, turn: TurnId) -> bool {
        self.running.as_ref().is_some_and(|running| running.job.turn == turn)
    }

    fn holds(&self, turn: TurnId) -> bool {
        self.held.as_ref().is_some_and(|(job, _)| job.turn == turn)
    }

    /// Ends the turn that waits for the child to finish something of its own.
    pub(super) fn end_held(&mut self, error: TurnError) {
        if let Some((job, _)) = self.held.take() {
            let held = Running::new(*job, None, Instant::now(), &self.setup.config.session);
            self.turn_over(held.lose(Bytes::new(), error));
        }
    }

    /// Asks the CLI to end the running turn, once.
    pub(super) fn interrupt(&mut self) {
        let id = self.request_id("interrupt-");
        let line = self.setup.adapter.interrupt(&id);
        let limit = self.setup.config.session.stop_interrupt;
        let Some(running) = &mut self.running else { return };
        if running.interrupted_until.is_none() {
            running.interrupted_until = Some(Instant::now() + limit);
            self.write(line.into());
        }
    }

    /// Ends the turn for its reader now; the child has to finish or be interrupted before it gets another one.
    pub(super) fn cancel_running(&mut self, error: TurnError) {
        let Some(running) = &mut self.running else { return };
        let waiting = running.abandon(error);
        self.wakes.extend(waiting);
        self.drop_kept();
        // From here on nobody but the driver reads.
        self.lease = None;
        self.call_driver();
        self.interrupt();
    }

    pub(super) fn request_id(&mut self, what: &str) -> String {
        self.requests_sent += 1;
        format!("{what}{}", self.requests_sent)
    }

    // ---- Bytes ----

    pub(super) fn write(&mut self, line: Bytes) {
        if self.outbox.is_empty() {
            self.write_deadline = Some(Instant::now() + self.setup.config.session.write_timeout);
        }
        if self.outbox.len() >= MOST_UNWRITTEN {
            return self.declare_dead(KillReason::Protocol("it asked much and read nothing"));
        }
        self.outbox.push_back(line);
        self.unsettled = true;
    }

    /// Writes what the pipe takes at once.
    pub(super) fn flush(&mut self) {
        while let Some(front) = self.outbox.front() {
            match self.input.try_write(front) {
                Ok(length) if length > 0 => self.written(length),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // The exit, or the end of its output, tells more.
                _ => {
                    self.outbox.clear();
                    self.write_deadline = None;
                }
            }
        }
    }

    /// Writes what there is; pending while the pipe is full, or with nothing to write.
    pub(in crate::child) fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.outbox.is_empty() {
            return Poll::Pending;
        }
        while !self.outbox.is_empty() {
            if ready!(self.input.poll_write_ready(context)).is_err() {
                // The runtime is going away.
                self.outbox.clear();
                self.write_deadline = None;
            }
            self.flush();
        }
        Poll::Ready(())
    }

    fn written(&mut self, length: usize) {
        self.setup.metrics.stream_bytes.add(Stream::Stdin, length as u64);
        if let Some(front) = self.outbox.front_mut() {
            front.advance(length);
            if !front.has_remaining() {
                self.outbox.pop_front();
            }
        }
        self.write_deadline =
            (!self.outbox.is_empty()).then(|| Instant::now() + self.setup.config.session.write_timeout);
    }
}
