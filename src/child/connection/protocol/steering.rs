//! Texts of callers for the running turn: given to the CLI while a tool runs, taken back when the turn ends.
//!
//! If the CLI has one left when its turn ends, it begins another turn with it at once, which nobody has asked for: that turn
//! is interrupted. Until that is known, the next turn of the session waits.

use tokio::time::{Duration, Instant};

use super::{Action, Protocol};
use crate::adapter::{self, ToolEdge};
use crate::child::calls::Waiting;
use crate::child::steering::{CliTurn, Steer};
use crate::model::SteerError;

/// Requests that take a text back.
const WITHDRAW: &str = "withdraw-";

/// Time in which a CLI says whether it has a text left. It answers at once.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

/// The end of a turn after which it is not known whether the CLI has a text left.
#[derive(Debug)]
pub(super) struct Unsettled {
    pub(super) until: Instant,
    /// The CLI has come to rest since.
    rested: bool,
}

impl Protocol {
    /// Puts a text into the running turn, if a client reads that one.
    pub(in crate::child::connection) fn steer(&mut self, steer: Steer) {
        let is_interrupted = self.running.as_ref().is_none_or(|running| running.interrupted_until.is_some());
        if self.over || self.is_stopping() || !self.has_reader() || is_interrupted {
            steer.reply.send(Err(SteerError::NoRunningTurn)).ok();
            return;
        }
        self.steering.add(steer);
        self.send_steers();
    }

    /// Notes what a line of the conversation says about tools.
    pub(super) fn note_tools(&mut self, line: &[u8]) {
        let Some(running) = &self.running else { return };
        let Some(edge) = adapter::tool_edge(line) else { return };
        // What is withheld may be a turn of the CLI's own.
        if !running.is_withheld() {
            let trace = &running.job.trace;
            match edge {
                ToolEdge::Call => trace.tools_called(adapter::tools_called(line)),
                ToolEdge::Result if trace.awaits_tools() => trace.tools_ended(&adapter::tools_ended(line)),
                ToolEdge::Result | ToolEdge::Text => {}
            }
        }
        let mut sent = self.requests_sent;
        let asked = self.steering.note(edge, || {
            sent += 1;
            sent
        });
        self.requests_sent = sent;
        let texts: Vec<&str> = asked.iter().map(|(text, ..)| text.as_str()).collect();
        if !texts.is_empty() {
            // One record, before the line that answers: the journal has one message between two lines.
            self.journal.prompt(&adapter::steering_record(&texts.join("\n\n")));
        }
        for (_, id, request) in asked {
            self.write(adapter::withdraw_message(&format!("{WITHDRAW}{request}"), &id.to_string()));
        }
        if edge == ToolEdge::Call {
            self.send_steers();
        }
    }

    /// Only to a CLI that says when it rests: else it is not known how the turn of a text that is left ends.
    fn send_steers(&mut self) {
        if !self.says_when_it_rests || self.is_withheld() {
            return;
        }
        for (text, id) in self.steering.take_sendable() {
            self.write(adapter::steering_message(&text, &id.to_string()));
        }
    }

    /// The turn is about to end: nothing more is read in it.
    pub(super) fn withdraw_steers(&mut self) {
        let mut sent = self.requests_sent;
        let asked = self.steering.end(|| {
            sent += 1;
            sent
        });
        self.requests_sent = sent;
        for (id, request) in asked {
            self.write(adapter::withdraw_message(&format!("{WITHDRAW}{request}"), &id.to_string()));
        }
    }

    /// The CLI has ended its turn. With a text left it begins another one.
    pub(super) fn settle_steers(&mut self, now: Instant) {
        self.withdraw_steers();
        if self.steering.are_out() && !self.is_stopping() {
            self.unsettled = Some(Unsettled { until: now + SETTLES_WITHIN, rested: false });
            self.own_work.active = true;
            self.emit_activity();
            self.act(Action::Rearm);
        }
    }

    /// An answer to a request that takes a text back.
    pub(super) fn withdrawn(&mut self, request_id: &str, line: &[u8], now: Instant) {
        let Some(request) = request_id.strip_prefix(WITHDRAW).and_then(|id| id.parse().ok()) else { return };
        let turn = match &self.running {
            Some(running) if running.interrupted_until.is_none() => CliTurn::Runs,
            None if self.waiting.is_some() => CliTurn::Waits,
            _ => CliTurn::Over,
        };
        self.steering.answered(request, adapter::was_withdrawn(line), turn);
        self.send_steers();
        self.settled(now);
    }

    /// The CLI works: on a text that was left, if a turn has just ended.
    pub(super) fn works_unsettled(&mut self) {
        self.says_when_it_rests = true;
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.rested = false;
        }
    }

    /// The CLI rests. Whether it may still have a text that begins a turn.
    pub(super) fn rests_unsettled(&mut self) -> bool {
        self.says_when_it_rests = true;
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.rested = true;
            self.steering.settle_read();
        }
        self.unsettled.take_if(|_| !self.steering.are_out());
        self.unsettled.is_some()
    }

    fn settled(&mut self, now: Instant) {
        let Some(unsettled) = &self.unsettled else { return };
        if unsettled.rested {
            self.steering.settle_read();
        }
        if !self.steering.are_out() {
            // What was taken back begins no turn.
            self.release(now);
        }
    }

    /// A turn begins that is nobody's: with a text that was left.
    pub(super) fn steer_begins_turn(&mut self, now: Instant) {
        if self.running.is_some() || self.unsettled.take().is_none() {
            return;
        }
        self.steering.give_up();
        let until = now + self.config.session.stop_interrupt;
        self.waiting = Some(Waiting { until, is_ending: true, interrupts: 0 });
        let id = self.request_id("interrupt-");
        self.write(adapter::interrupt(&id));
        self.act(Action::Rearm);
    }

    /// The CLI does not say what has become of a text.
    pub(super) fn watch_steers(&mut self, now: Instant) {
        if self.unsettled.as_ref().is_some_and(|unsettled| unsettled.until <= now) {
            self.steering.give_up();
            self.release(now);
        }
    }

    /// The next turn may begin.
    fn release(&mut self, now: Instant) {
        self.unsettled = None;
        self.own_work.active = false;
        self.emit_activity();
        self.begin_held(now);
    }
}
