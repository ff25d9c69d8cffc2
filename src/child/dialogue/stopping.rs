//! How a child is made to go: interrupt, end of input, SIGTERM, the end of its tree; each with its time.

use tokio::time::{Duration, Instant};

use super::{Dialogue, Order, Phase};
use crate::child::exit::KillReason;
use crate::telemetry::metrics::StopStep;

/// A shim that was told to kill tells of the end at once. One that does not is itself in trouble (stopped, say) and is
/// dealt with by its handle.
const KILL_TOLD: Duration = Duration::from_secs(1);

impl Dialogue {
    /// Somebody wants the child to go.
    pub(in crate::child) fn stop(&mut self) {
        if std::mem::replace(&mut self.asked, true) {
            return;
        }
        self.stop_began = Some(Instant::now());
        match self.phase {
            Phase::Serving if self.running.is_some() => {
                self.setup.metrics.stop_steps.increment(StopStep::Interrupt);
                self.phase =
                    Phase::Interrupted { until: Instant::now() + self.setup.config.session.stop_interrupt };
                self.unsettled = true;
                self.interrupt();
            }
            Phase::Opening { .. } | Phase::Serving => self.close_input(),
            _ => {}
        }
    }

    pub(super) fn close_input(&mut self) {
        self.setup.metrics.stop_steps.increment(StopStep::StdinClose);
        self.unsettled = true;
        self.outbox.clear();
        self.write_deadline = None;
        self.phase = Phase::InputClosed { until: Instant::now() + self.setup.config.session.stop_eof };
        if rustix::net::shutdown(&self.input, rustix::net::Shutdown::Write).is_err() {
            self.terminate();
        }
    }

    pub(super) fn terminate(&mut self) {
        self.unsettled = true;
        self.setup.metrics.stop_steps.increment(StopStep::Term);
        self.order.get_or_insert(Order::Terminate);
        self.phase = Phase::Terminated { until: Instant::now() + self.setup.config.session.stop_term };
    }

    pub(super) fn kill(&mut self) {
        self.unsettled = true;
        self.setup.metrics.stop_steps.increment(StopStep::TreeKill);
        self.order = Some(Order::KillTree);
        self.phase = Phase::Killed { until: Instant::now() + KILL_TOLD };
    }

    pub(in crate::child) fn declare_dead(&mut self, verdict: KillReason) {
        self.verdict.get_or_insert(verdict);
        self.kill();
    }

    pub(super) fn is_ending(&self) -> bool {
        !matches!(self.phase, Phase::Opening { .. } | Phase::Serving | Phase::Interrupted { .. })
    }
}
