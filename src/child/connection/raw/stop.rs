//! The steps that end the child of a client: interrupt, end of input, SIGTERM, SIGKILL of its tree.

use tokio::time::Instant;

use super::{Phase, Relay};
use crate::adapter::{self, Gate};
use crate::child::spawn::ShimHandle;
use crate::child::task::UNKILLABLE;
use crate::telemetry::metrics::HangDetector;

impl Relay {
    /// Begins to stop the child, in steps. `reason`: of the server.
    pub(super) fn stop(&mut self, reason: Option<&'static str>) {
        if self.stop_began.is_some() {
            return;
        }
        self.stop_began = Some(Instant::now());
        self.reason = self.reason.or(reason);
        match self.phase {
            Phase::Open if self.busy => {
                self.enter(Phase::Interrupted, self.context.config.session.stop_interrupt);
                self.write(adapter::interrupt(&Gate::own_id()).into());
            }
            Phase::Open => self.close_input(),
            // Its input is closed already.
            Phase::Ended => self.enter(Phase::InputClosed, self.context.config.session.stop_eof),
            Phase::Interrupted | Phase::InputClosed | Phase::Terminated | Phase::Killed => {}
        }
    }

    /// Ends the connection if it is to end with a turn, and none runs.
    pub(super) fn leave_if_idle(&mut self) {
        if self.leaves && !self.busy && self.phase == Phase::Open {
            self.stop(Some("the server is stopping"));
        }
    }

    pub(super) fn close_input(&mut self) {
        self.pipes.close_input().ok();
        self.enter(Phase::InputClosed, self.context.config.session.stop_eof);
    }

    pub(super) fn on_time(&mut self, shim: &ShimHandle) {
        let now = Instant::now();
        if self.phase == Phase::Open && self.pipes.outbox.is_stalled(now) {
            self.context.metrics.hangs.increment(HangDetector::StdinStall);
            self.pipes.close_input().ok();
            self.stop(Some("the child reads nothing"));
        }
        if now < self.until {
            return;
        }
        let session = &self.context.config.session;
        match self.phase {
            Phase::Open => self.stop(Some("no line came for attach.idle_timeout")),
            Phase::Interrupted => self.close_input(),
            Phase::Ended | Phase::InputClosed => {
                self.stop_began.get_or_insert(now);
                self.enter(Phase::Terminated, session.stop_term);
                shim.terminate();
            }
            Phase::Terminated => {
                self.enter(Phase::Killed, UNKILLABLE);
                shim.kill_tree();
            }
            Phase::Killed => {}
        }
    }
}
