//! What is due when: limits of turns, writes and permissions, the watch over a silent child, the steps of a stop.

use std::time::Duration;

use tokio::time::Instant;

use super::output::PING;
use super::{ChildEvent, Dialogue, Phase};
use crate::child::exit::KillReason;
use crate::child::vitals;
use crate::child::watch::{Advice, Finding};
use crate::error::TurnError;
use crate::telemetry::metrics::HangDetector;

/// So often a turn is interrupted, `stop_interrupt` apart, before its child is stopped.
const MOST_INTERRUPTS: u32 = 5;

/// A deadline that is noticed so late was not kept by us (starved, or suspended with the whole machine): what came in
/// time may still be unread, and the child gets its time once more.
const ABSENT: Duration = Duration::from_millis(500);

/// How far the driver's timer is set when nothing is due.
const REST: Duration = Duration::from_secs(3600);

impl Dialogue {
    /// Does what is due.
    pub(in crate::child) fn on_time(&mut self) {
        let now = Instant::now();
        match self.phase {
            Phase::Opening { until }
                if until + ABSENT <= now && !std::mem::replace(&mut self.waited_on, true) =>
            {
                self.phase = Phase::Opening { until: now + self.setup.config.session.spawn_timeout };
            }
            Phase::Opening { until } if until <= now => return self.declare_dead(KillReason::NeverReady),
            Phase::Closed { until } if until <= now => {
                // One that lives on without an output is of no use.
                return self.declare_dead(KillReason::Protocol("it closed its output"));
            }
            Phase::Interrupted { until } if until <= now => self.close_input(),
            Phase::InputClosed { until } if until <= now => self.terminate(),
            Phase::Terminated { until } if until <= now => self.kill(),
            _ => {}
        }
        if self.write_deadline.is_some_and(|deadline| deadline + ABSENT <= now) {
            self.write_deadline = Some(now + self.setup.config.session.write_timeout);
        }
        if self.write_deadline.is_some_and(|deadline| deadline <= now) && !self.is_ending() {
            self.setup.metrics.hangs.increment(HangDetector::StdinStall);
            return self.declare_dead(KillReason::Hung);
        }
        let adapter = self.setup.adapter;
        let overdue = self.permissions.overdue(now);
        if !overdue.is_empty() {
            for (request, decision) in overdue {
                self.write(adapter.permission_answer(&request, &decision).into());
            }
            self.report(ChildEvent::Permissions(self.permissions.pending()));
        }
        let limit = self.setup.config.session.turn_timeout;
        if self.held.as_ref().is_some_and(|(_, since)| *since + limit <= now) {
            self.end_held(TurnError::TimedOut { limit });
        }
        self.tasks.expire(now);
        self.tell_activity();
        self.watch_turn(now);
    }

    fn watch_turn(&mut self, now: Instant) {
        let pid = self.pid;
        let waits_for_room = self.handed() > 0;
        let Some(running) = &mut self.running else { return };
        if running.deadline <= now && running.job.sender.is_some() {
            let limit = self.setup.config.session.turn_timeout;
            return self.cancel_running(TurnError::TimedOut { limit });
        }
        if matches!(self.phase, Phase::Killed { .. }) {
            return;
        }
        if running.interrupted_until.is_some_and(|until| until <= now) && self.phase == Phase::Serving {
            return self.interrupt_again(now, waits_for_room);
        }
        if waits_for_room {
            // The silence is ours.
            return running.watch.sign_of_life(now);
        }
        if running.watch.deadline() <= now
            && rustix::io::ioctl_fionread(&self.output).is_ok_and(|unread| unread > 0)
        {
            // It has spoken; we have not listened yet.
            return running.watch.sign_of_life(now);
        }
        let before = running.vitals;
        let vitals = if running.watch.deadline() <= now { pid.and_then(vitals::read) } else { None };
        match running.watch.advice(now, before, vitals) {
            Advice::Wait => {}
            Advice::Ping => {
                running.vitals = vitals;
                running.pinged = Some(now);
                let id = self.request_id(PING);
                let line = self.setup.adapter.ping(&id);
                self.write(line.into());
            }
            Advice::Condemn(finding) => {
                self.setup.metrics.hangs.increment(match finding {
                    Finding::Stopped => HangDetector::Stopped,
                    Finding::Ping => HangDetector::Ping,
                    Finding::NoProgress => HangDetector::NoProgress,
                });
                self.declare_dead(KillReason::Hung);
            }
        }
    }

    /// The turn did not end within the time that an interrupt normally takes. On a starved machine it may need longer:
    /// the child is asked again, and only one that still does not obey is of no use.
    fn interrupt_again(&mut self, now: Instant, waits_for_room: bool) {
        let Some(running) = &mut self.running else { return };
        running.interrupts += 1;
        running.interrupted_until = Some(now + self.setup.config.session.stop_interrupt);
        if waits_for_room {
            // Its end may have come already, behind what the reader does not take.
            let waiting = running.abandon(TurnError::Cancelled);
            self.wakes.extend(waiting);
            self.drop_kept();
        } else if running.interrupts >= MOST_INTERRUPTS {
            self.setup.metrics.hangs.increment(HangDetector::NoProgress);
            self.verdict.get_or_insert(KillReason::Hung);
            return self.terminate();
        }
        let id = self.request_id("interrupt-");
        let line = self.setup.adapter.interrupt(&id);
        self.write(line.into());
    }

    /// When something is due next; `None`: nothing is.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Serving => None,
            Phase::Opening { until }
            | Phase::Closed { until }
            | Phase::Interrupted { until }
            | Phase::InputClosed { until }
            | Phase::Terminated { until }
            | Phase::Killed { until } => Some(until),
        };
        let turn = self.running.as_ref().and_then(|running| {
            let watch = (!matches!(self.phase, Phase::Killed { .. })).then(|| running.watch.deadline());
            let turn = running.job.sender.is_some().then_some(running.deadline);
            let interrupt = running.interrupted_until.filter(|_| self.phase == Phase::Serving);
            [watch, turn, interrupt].into_iter().flatten().min()
        });
        let write = self.write_deadline.filter(|_| !self.is_ending());
        let held = self.held.as_ref().map(|(_, since)| *since + self.setup.config.session.turn_timeout);
        let due = [phase, turn, write, held, self.lease];
        let others = [self.permissions.deadline(), self.tasks.deadline()];
        due.into_iter().chain(others).flatten().min()
    }

    /// When the driver's timer is to ring, `armed` being when it will. Moving it is not free, and most deadlines only
    /// move away: it is moved when it would ring too late, or `has_rung`.
    pub(in crate::child) fn arm(&mut self, has_rung: bool) -> Option<Instant> {
        // With nothing due the timer may ring once for nothing; after that it rests.
        let next = self.next_deadline().unwrap_or_else(|| Instant::now() + REST);
        let moves = next < self.armed || has_rung;
        if moves {
            self.armed = next;
        }
        moves.then_some(next)
    }
}
