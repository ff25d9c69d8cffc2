//! The stop of a child: interrupt, end of input, SIGTERM, kill of the tree; each step with its time.

use tokio::time::{Duration, Instant};

use super::{Action, Measurement, Phase, Protocol, Signal};
use crate::child::exit::KillReason;
use crate::telemetry::metrics::{StopStep, ToolWaitEnd};

/// A shim that is ordered to kill reports the end at once. One that does not is itself in trouble (stopped, say) and
/// is dealt with by its handle.
const KILL_GRACE: Duration = Duration::from_secs(1);

impl Protocol {
    pub(in crate::child::connection) fn stop(&mut self, now: Instant) {
        if self.is_stopping() {
            return;
        }
        self.stop_began = Some(now);
        match self.phase {
            Phase::Serving if self.running.is_some() => {
                self.measure(Measurement::StopStep(StopStep::Interrupt));
                self.enter(Phase::Interrupted, Some(now + self.config.session.stop_interrupt));
                self.interrupt(now);
            }
            // At the end of its input it would wait for the results.
            Phase::Serving if self.waiting.is_some() => {
                self.measure(Measurement::StopStep(StopStep::Interrupt));
                self.enter(Phase::Interrupted, Some(now + self.config.session.stop_interrupt));
                self.end_wait(ToolWaitEnd::Stopped, now);
            }
            Phase::Opening | Phase::Serving => self.close_input(now),
            _ => {}
        }
    }

    pub(super) fn close_input(&mut self, now: Instant) {
        self.measure(Measurement::StopStep(StopStep::StdinClose));
        self.enter(Phase::InputClosed, Some(now + self.config.session.stop_eof));
        self.act(Action::CloseInput);
    }

    pub(in crate::child::connection) fn terminate(&mut self, now: Instant) {
        self.measure(Measurement::StopStep(StopStep::Term));
        self.act(Action::Send(Signal::Terminate));
        self.enter(Phase::Terminated, Some(now + self.config.session.stop_term));
    }

    pub(super) fn kill(&mut self, now: Instant) {
        self.measure(Measurement::StopStep(StopStep::TreeKill));
        self.act(Action::Send(Signal::KillTree));
        self.enter(Phase::Killed, Some(now + KILL_GRACE));
    }

    /// Kills the child for `reason`; the first reason counts.
    pub(in crate::child::connection) fn declare_dead(&mut self, reason: KillReason, now: Instant) {
        self.kill_reason.get_or_insert(reason);
        self.kill(now);
    }

    pub(super) fn on_turn_over(&mut self, now: Instant) {
        if self.phase == Phase::Interrupted {
            self.close_input(now);
        } else if self.leaves {
            self.stop(now);
        }
    }

    /// The child is about to end by itself: the running turn is its last, and the next child gets those that follow.
    pub(super) fn leave(&mut self, now: Instant) {
        self.leaves = true;
        if self.running.is_none() {
            self.stop(now);
        }
    }

    pub(in crate::child::connection) fn is_ending(&self) -> bool {
        !matches!(self.phase, Phase::Opening | Phase::Serving | Phase::Interrupted)
    }
}
