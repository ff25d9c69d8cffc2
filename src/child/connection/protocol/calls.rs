//! Turns that wait for their caller, because the model calls the caller's tools.
//!
//! Such a turn ends for its caller while the CLI waits for the results. The caller's next turn brings them, and goes on
//! where the model stopped. Any other turn, and the time limit, end the wait: the CLI's turn is interrupted.

use tokio::time::{Duration, Instant};

use super::deadlines::MAX_INTERRUPTS;
use super::{Action, Ending, HeldTurn, Measurement, Protocol};
use crate::adapter::{self, McpMessage, MessageEdge};
use crate::child::calls::{Calls, OpenCall, Waiting};
use crate::child::event::ChildEvent;
use crate::child::exit::KillReason;
use crate::child::running_turn::{Job, RunningTurn};
use crate::model::ToolResult;
use crate::telemetry::metrics::{HangDetector, ToolWaitEnd};

/// Silence after which a message with a call counts as complete: a CLI that repeats a request without streaming reports no
/// end of it.
const MESSAGE_SILENCE: Duration = Duration::from_secs(5);

impl Protocol {
    /// Notes what a line of the model says about calls.
    pub(super) fn note_calls(&mut self, line: &[u8], now: Instant) {
        if !self.calls.are_possible() {
            return;
        }
        match adapter::message_edge(line) {
            Some(MessageEdge::Begin) => self.calls.message_began(),
            Some(MessageEdge::End(usage)) => self.calls.message_ended(usage),
            None => self.calls.made(adapter::tool_calls(line), line.len()),
        }
        self.await_caller_if_due(now);
    }

    pub(super) fn tools_asked(
        &mut self,
        request_id: String,
        message_id: serde_json::Value,
        asked: McpMessage,
        now: Instant,
    ) {
        let McpMessage::Call { id } = asked else {
            let is_too_often = asked == McpMessage::List && !self.calls.may_list();
            let asked = if is_too_often { McpMessage::Unknown } else { asked };
            let tools = self.calls.tools.clone();
            return self.write(adapter::tools_response(&request_id, &message_id, &asked, &tools));
        };
        let call = OpenCall { request_id, message_id, id };
        let is_expected = self.calls.are_possible() && (self.running.is_some() || self.waiting.is_some());
        // Of a turn of the CLI's own, nobody would answer it.
        let known = if is_expected { self.calls.asked(call) } else { Some(Calls::refuse(call)) };
        self.write_results(known);
        self.await_caller_if_due(now);
    }

    /// When a message with an open call counts as complete.
    pub(super) fn message_deadline(&self) -> Option<Instant> {
        let is_running = self.running.is_some() && self.calls.are_open();
        is_running.then(|| self.calls_heard + MESSAGE_SILENCE)
    }

    pub(super) fn watch_calls(&mut self, now: Instant) {
        if self.message_deadline().is_some_and(|deadline| deadline <= now) {
            self.calls.message_ended(crate::model::Usage::default());
            self.await_caller_if_due(now);
            if self.running.is_some() {
                // Of no call that the caller knows.
                let given_up = self.calls.give_up();
                self.write_results(given_up);
            }
        }
        let is_stopping = self.is_stopping();
        let Some(waiting) = self.waiting.as_mut().filter(|it| it.until <= now && !is_stopping) else {
            return;
        };
        if !waiting.is_ending {
            return self.end_wait(ToolWaitEnd::Expired, now);
        }
        waiting.interrupts += 1;
        waiting.until = now + self.config.session.stop_interrupt;
        if waiting.interrupts >= MAX_INTERRUPTS {
            self.measure(Measurement::Hang(HangDetector::NoProgress));
            self.kill_reason.get_or_insert(KillReason::Hung);
            return self.terminate(now);
        }
        let id = self.request_id("interrupt-");
        self.write(adapter::interrupt(&id));
    }

    /// The model's calls are complete, and the CLI waits: the caller's turn is over. Nobody answers the calls of a turn
    /// without a caller.
    fn await_caller_if_due(&mut self, now: Instant) {
        self.calls_heard = now;
        // What is withheld may be a turn of the CLI's own.
        let is_read = self.has_reader()
            && !self.is_withheld()
            && !self.is_stopping()
            && self.running.as_ref().is_some_and(|running| running.interrupted_until.is_none());
        if !is_read {
            if self.running.is_some() && self.calls.are_open() {
                let given_up = self.calls.give_up();
                self.write_results(given_up);
            }
            return;
        }
        let Some(called) = self.calls.take_due() else { return };
        if let Some(running) = self.running.take() {
            let until = now + self.config.session.tool_timeout;
            self.waiting = Some(Waiting { until, is_ending: false, interrupts: 0 });
            // Before the end of the turn, which makes the session look idle.
            self.emit(ChildEvent::AwaitsCaller(true));
            self.withdraw_steers();
            self.turn_over(running, Ending::Called(called), now);
            self.act(Action::Rearm);
        }
    }

    /// Gives the caller's next turn to a child that waits for results: they go on with its turn, anything else ends it.
    pub(super) fn go_on(&mut self, job: Box<Job>, mark: Option<String>, now: Instant) {
        let is_ending = self.waiting.as_ref().is_some_and(|waiting| waiting.is_ending);
        if is_ending || !self.calls.expect_any(&job.results) {
            self.held = Some(HeldTurn { job, mark, since: now });
            self.act(Action::Rearm);
            return self.end_wait(ToolWaitEnd::Message, now);
        }
        self.waiting = None;
        self.emit(ChildEvent::AwaitsCaller(false));
        self.measure(Measurement::ToolWait(ToolWaitEnd::Answered));
        let answers = self.calls.answer(&job.results);
        self.write_results(answers);
        let before = self.calls.reported_usage();
        self.running = Some(Box::new(RunningTurn::going_on(*job, before, now, &self.config.session)));
        self.act(Action::GrantReader);
    }

    /// Ends the wait for the caller's results on request. Whether there was one.
    pub(in crate::child::connection) fn interrupt_wait(&mut self, now: Instant) -> bool {
        self.end_wait(ToolWaitEnd::Interrupted, now);
        self.waiting.is_some()
    }

    /// Nobody brings the results any more.
    pub(super) fn end_wait(&mut self, why: ToolWaitEnd, now: Instant) {
        let Some(waiting) = &mut self.waiting else { return };
        if std::mem::replace(&mut waiting.is_ending, true) {
            return;
        }
        waiting.until = now + self.config.session.stop_interrupt;
        self.measure(Measurement::ToolWait(why));
        let id = self.request_id("interrupt-");
        self.write(adapter::interrupt(&id));
        self.act(Action::Rearm);
    }

    /// The CLI ended a turn for whose results it has waited. Whether it was one.
    pub(super) fn wait_over(&mut self, cost_usd: f64, now: Instant) -> bool {
        if self.running.is_some() || self.waiting.take().is_none() {
            return false;
        }
        self.calls.clear();
        self.emit(ChildEvent::AwaitsCaller(false));
        let records = self.journal.take();
        self.emit(ChildEvent::Journal(records));
        self.emit(ChildEvent::OwnTurn { cost_usd });
        self.on_turn_over(now);
        self.begin_held(now);
        true
    }

    fn write_results(&mut self, answers: impl IntoIterator<Item = (OpenCall, ToolResult)>) {
        for (call, result) in answers {
            self.write(adapter::call_response(&call.request_id, &call.message_id, &result));
        }
    }
}
