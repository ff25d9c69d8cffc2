//! Turns, interrupts and answers: the orders of the session.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Action, HeldTurn, Protocol};
use crate::adapter::{self, Terminal};
use crate::child::calls::Called;
use crate::child::permissions::Answer;
use crate::child::running_turn::{Job, RunningTurn};
use crate::error::TurnError;
use crate::model::ids::TurnId;
use crate::model::{ContextUsage, PermissionError};
use crate::turn::Lines;

/// Requests for the use of the context.
const CONTEXT: &str = "context-";

/// Requests for the use of the context that a child answers at a time: each has the API count.
const MOST_CONTEXT_ASKED: usize = 4;

#[derive(Debug)]
pub(in crate::child::connection) enum Ending {
    /// The model calls tools of the caller's, and the CLI waits for the results.
    Called(Called),
    /// The CLI ended the turn; it cost this much in US dollars.
    Answered(Box<Terminal>, f64),
    Lost(TurnError),
}

impl Protocol {
    /// Gives the child a turn, or the turn back if the child is gone or going. `mark`: an id for the message.
    pub(in crate::child::connection) fn take_turn(
        &mut self,
        job: Box<Job>,
        mark: Option<String>,
        now: Instant,
    ) -> Result<(), Box<Job>> {
        if self.over || self.is_stopping() {
            return Err(job);
        }
        if self.waiting.is_some() {
            self.go_on(job, mark, now);
        } else if self.own_work.active {
            // A message sent into a running turn would get no answer of its own.
            self.held = Some(HeldTurn { job, mark, since: now });
            self.act(Action::Rearm);
        } else {
            self.begin(*job, mark, now);
        }
        Ok(())
    }

    /// Ends the turn, if it is still this one; its reader gets the end.
    pub(in crate::child::connection) fn interrupt_turn(&mut self, turn: TurnId, now: Instant) {
        if self.holds(turn) {
            self.end_held(TurnError::Cancelled, now);
        } else if self.runs(turn) {
            self.interrupt(now);
        }
    }

    /// Ends the turn, if it is still this one; its reader is gone.
    pub(in crate::child::connection) fn cancel_turn(&mut self, turn: TurnId, now: Instant) {
        if self.holds(turn) {
            self.end_held(TurnError::Cancelled, now);
        } else if self.runs(turn) {
            self.cancel_running(TurnError::Cancelled, now);
        }
    }

    pub(in crate::child::connection) fn answer(&mut self, answer: Answer) {
        if self.over || self.is_stopping() {
            // The caller may have stopped waiting.
            answer.reply.send(Err(PermissionError::Late)).ok();
        } else if let Some((request, decision)) = self.permissions.answer(answer) {
            self.write(adapter::permission_response(&request, &decision));
            self.emit_permissions();
        }
    }

    /// Asks the CLI what fills the context. The question is dropped if the child cannot be asked.
    pub(in crate::child::connection) fn ask_context(&mut self, reply: oneshot::Sender<ContextUsage>) {
        self.context_asked.retain(|(_, asker)| !asker.is_closed());
        let is_serving = self.handshake.complete && !self.over && !self.is_stopping();
        if is_serving && self.context_asked.len() < MOST_CONTEXT_ASKED {
            let id = self.request_id(CONTEXT);
            self.write(adapter::context_request(&id));
            self.context_asked.push((id, reply));
        }
    }

    /// Whether the turn runs and has a reader.
    pub(in crate::child::connection) fn is_read_by(&self, turn: TurnId) -> bool {
        self.has_reader() && self.runs(turn)
    }

    pub(super) fn has_reader(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.job.sender.is_some())
    }

    /// Whether the kept lines may belong to a turn of the CLI's own.
    pub(in crate::child::connection) fn is_withheld(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.is_withheld())
    }

    fn runs(&self, turn: TurnId) -> bool {
        self.running.as_ref().is_some_and(|running| running.job.turn == turn)
    }

    fn holds(&self, turn: TurnId) -> bool {
        self.held.as_ref().is_some_and(|held| held.job.turn == turn)
    }

    fn begin(&mut self, job: Job, mark: Option<String>, now: Instant) {
        match &mark {
            Some(mark) => self.write(adapter::with_message_id(&job.line, mark)),
            None => self.write(job.line.clone()),
        }
        self.running = Some(Box::new(RunningTurn::new(job, mark, now, &self.config.session)));
        self.act(Action::GrantReader);
    }

    /// Begins the turn that was held, unless the child is to go: then the next child gets it.
    pub(super) fn begin_held(&mut self, now: Instant) {
        if !self.is_stopping()
            && let Some(held) = self.held.take()
        {
            self.begin(*held.job, held.mark, now);
        }
    }

    pub(super) fn end_held(&mut self, error: TurnError, now: Instant) {
        if let Some(held) = self.held.take() {
            let turn = RunningTurn::new(*held.job, None, now, &self.config.session);
            self.turn_over(Box::new(turn), Ending::Lost(error), now);
        }
    }

    /// Asks the CLI to end the running turn, once.
    pub(super) fn interrupt(&mut self, now: Instant) {
        let is_new = self.running.as_ref().is_some_and(|running| running.interrupted_until.is_none());
        if is_new {
            // What the CLI has not read outlives an interrupt.
            self.withdraw_steers();
        }
        let id = self.request_id("interrupt-");
        if let Some(running) = self.running.as_mut().filter(|_| is_new) {
            running.interrupted_until = Some(now + self.config.session.stop_interrupt);
            self.write(adapter::interrupt(&id));
        }
    }

    /// Ends the turn for its reader now. The child has to finish or be interrupted before it gets another one.
    pub(in crate::child::connection) fn cancel_running(&mut self, error: TurnError, now: Instant) {
        self.abandon(error, now);
        if self.running.is_some() {
            self.act(Action::RevokeReader);
            self.interrupt(now);
        }
    }

    pub(super) fn abandon(&mut self, error: TurnError, now: Instant) {
        let Some(running) = &mut self.running else { return };
        let last = running.abandon(Lines::default(), error, now);
        self.actions.extend(last.map(Action::EndReader));
        self.act(Action::Discard);
    }

    /// The session gets the end first, its reader then: who looks after the turn finds the session as the turn left
    /// it, and the next turn comes after.
    pub(super) fn turn_over(&mut self, turn: Box<RunningTurn>, ending: Ending, now: Instant) {
        if self.permissions.clear() {
            self.emit_permissions();
        }
        if !matches!(ending, Ending::Called(_)) {
            self.calls.clear();
        }
        self.act(Action::EndTurn(turn, ending));
        self.on_turn_over(now);
    }
}
