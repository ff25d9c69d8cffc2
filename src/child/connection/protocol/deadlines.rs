//! Deadlines: limits of turns and permissions, the watchdog of a silent child, the steps of a stop.

use std::time::Duration;

use tokio::time::Instant;

use super::{Measurement, PING, Phase, Protocol};
use crate::adapter;
use crate::child::exit::KillReason;
use crate::child::watchdog::{Advice, Vitals};
use crate::error::TurnError;
use crate::telemetry::metrics::HangDetector;

/// Interrupts of one turn, `stop_interrupt` apart, before its child is stopped.
pub(super) const MAX_INTERRUPTS: u32 = 5;

/// Lateness from which this process counts as absent at a deadline (starved, or suspended with the whole machine). Output
/// that came in time may still be unread: the child gets its time once more.
pub(in crate::child::connection) const ABSENT: Duration = Duration::from_millis(500);

/// The state of the child beside its lines, when a deadline is due.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::child::connection) struct Observation {
    /// Lines wait for the reader to make room.
    pub(in crate::child::connection) reader_is_slow: bool,
    /// The pipe holds output that was not read yet.
    pub(in crate::child::connection) unread: bool,
    /// A look at the process itself, where it could be read.
    pub(in crate::child::connection) vitals: Option<Vitals>,
}

impl Protocol {
    /// Whether the watchdog is due, so that [`Protocol::on_time`] needs a full observation.
    pub(in crate::child::connection) fn watchdog_is_due(&self, now: Instant) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.watchdog.deadline() <= now) && !self.is_killed()
    }

    pub(in crate::child::connection) fn is_killed(&self) -> bool {
        self.phase == Phase::Killed
    }

    /// Acts on the deadlines that are due, and on a write that stalls.
    pub(in crate::child::connection) fn on_time(&mut self, now: Instant, stalled: bool, seen: Observation) {
        let late = self.until.and_then(|until| now.checked_duration_since(until));
        match (self.phase, late) {
            (_, None) | (Phase::Serving | Phase::Killed, _) => {}
            (Phase::Opening, Some(late))
                if late >= ABSENT && !std::mem::replace(&mut self.handshake.extended, true) =>
            {
                self.until = Some(now + self.config.session.spawn_timeout);
            }
            (Phase::Opening, _) => return self.declare_dead(KillReason::NeverReady, now),
            // A child without output cannot serve.
            (Phase::Closed, _) => {
                return self.declare_dead(KillReason::Protocol("it closed its output"), now);
            }
            (Phase::Interrupted, _) => self.close_input(now),
            (Phase::InputClosed, _) => self.terminate(now),
            (Phase::Terminated, _) => self.kill(now),
        }
        if stalled && !self.is_ending() {
            self.measure(Measurement::Hang(HangDetector::StdinStall));
            return self.declare_dead(KillReason::Hung, now);
        }
        let overdue = self.permissions.overdue(now);
        if !overdue.is_empty() {
            for (request, decision) in overdue {
                self.write(adapter::permission_response(&request, &decision));
            }
            self.emit_permissions();
        }
        let limit = self.config.session.turn_timeout;
        if self.held.as_ref().is_some_and(|held| held.since + limit <= now) {
            self.end_held(TurnError::TimedOut { limit }, now);
        }
        self.watch_calls(now);
        self.watch_steers(now);
        self.own_work.tasks.expire(now);
        self.emit_activity();
        self.watch_turn(now, seen);
        self.freeze_if_due(now);
    }

    fn watch_turn(&mut self, now: Instant, seen: Observation) {
        let is_killed = self.is_killed();
        let connects_servers = self.connects_servers(now);
        let Some(running) = &mut self.running else { return };
        if running.deadline <= now && running.job.sender.is_some() {
            let limit = self.config.session.turn_timeout;
            return self.cancel_running(TurnError::TimedOut { limit }, now);
        }
        if is_killed {
            return;
        }
        if running.interrupted_until.is_some_and(|until| until <= now) && self.phase == Phase::Serving {
            return self.interrupt_again(now, seen.reader_is_slow);
        }
        if seen.reader_is_slow || seen.unread || connects_servers {
            // The reader is silent, not the child; or the child answers no ping while it connects to servers.
            return running.watchdog.sign_of_life(now);
        }
        match running.watchdog.advice(now, running.vitals, seen.vitals) {
            Advice::Wait => {}
            Advice::Ping => {
                running.vitals = seen.vitals;
                running.pinged = Some(now);
                let id = self.request_id(PING);
                self.write(adapter::ping(&id));
            }
            Advice::DeclareDead(detector) => {
                self.measure(Measurement::Hang(detector));
                self.declare_dead(KillReason::Hung, now);
            }
        }
    }

    /// The turn did not end within the time that an interrupt normally takes. On a starved machine it may need longer:
    /// the child is asked again, and stopped only if it still does not obey.
    fn interrupt_again(&mut self, now: Instant, reader_is_slow: bool) {
        let Some(running) = &mut self.running else { return };
        running.interrupts += 1;
        running.interrupted_until = Some(now + self.config.session.stop_interrupt);
        if reader_is_slow {
            // The end may have come already, behind what the reader does not take.
            self.abandon(TurnError::Cancelled, now);
        } else if running.interrupts >= MAX_INTERRUPTS {
            self.measure(Measurement::Hang(HangDetector::NoProgress));
            self.kill_reason.get_or_insert(KillReason::Hung);
            return self.terminate(now);
        }
        let id = self.request_id("interrupt-");
        self.write(adapter::interrupt(&id));
    }

    /// The next deadline; `None`: nothing is due.
    pub(in crate::child::connection) fn next_deadline(&self) -> Option<Instant> {
        let turn = self.running.as_ref().and_then(|running| {
            let watchdog = (!self.is_killed()).then(|| running.watchdog.deadline());
            let turn = running.job.sender.is_some().then_some(running.deadline);
            let interrupt = running.interrupted_until.filter(|_| self.phase == Phase::Serving);
            [watchdog, turn, interrupt].into_iter().flatten().min()
        });
        let held = self.held.as_ref().map(|held| held.since + self.config.session.turn_timeout);
        let waiting = self.waiting.as_ref().filter(|_| !self.is_stopping()).map(|waiting| waiting.until);
        let unsettled = self.unsettled.as_ref().map(|unsettled| unsettled.until);
        let calls = [waiting, self.message_deadline(), unsettled];
        let others = [self.permissions.deadline(), self.own_work.tasks.deadline(), self.freezes_at()];
        let others = others.into_iter().chain(calls);
        [self.until, turn, held].into_iter().chain(others).flatten().min()
    }
}
