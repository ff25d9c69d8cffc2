//! The watchdog of a silent child. Pure: the protocol passes observations in and acts on the advice.
//!
//! Silence alone proves nothing: after some silence the child gets a ping, which a living one answers within milliseconds
//! even while it waits for a tool or the model's API. Only after unanswered pings is it declared dead. A child that still
//! uses the processor gets one ping more.
//!
//! Only time in which the child could have answered counts. Time in which it was ready to run but not scheduled (a starved
//! machine) does not count, up to a bound. Nor does a deadline that this process itself met too late to have read the
//! answer (starved, or suspended with the machine): then the ping starts again.

use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::metrics::HangDetector;

/// Unanswered pings that declare dead a child which does nothing.
const MISSES: u32 = 2;

/// Unanswered pings that declare dead a child which uses the processor: on a starved machine an answer may take long.
const MISSES_WHEN_RUNNING: u32 = 3;

/// Maximum wait for a ping on a starved machine, in normal waits.
const MOST_WIDENING: u32 = 20;

/// Patience that was used up but for so much (as a divisor of it) is used up.
const NEARLY: u32 = 10;

#[derive(Debug)]
pub(crate) struct Watchdog {
    stall_timeout: Duration,
    ping_timeout: Duration,
    last_sign: Instant,
    /// Nothing has come since the turn was written: a living child writes something at once.
    expects_first_sign: bool,
    ping: Option<Ping>,
}

#[derive(Debug, Clone, Copy)]
struct Ping {
    sent: Instant,
    until: Instant,
    missed: u32,
}

/// State of the process itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vitals {
    /// It is stopped (SIGSTOP, a debugger).
    pub(crate) stopped: bool,
    /// Processor time so far, in clock ticks.
    pub(crate) ticks: u64,
    /// Time so far in which it could have run and was not let.
    pub(crate) starved: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Nothing before [`Watchdog::deadline`].
    Wait,
    Ping,
    DeclareDead(HangDetector),
}

impl Watchdog {
    pub(crate) fn new(now: Instant, stall_timeout: Duration, ping_timeout: Duration) -> Self {
        Self { stall_timeout, ping_timeout, last_sign: now, expects_first_sign: true, ping: None }
    }

    /// The child wrote something, or its output was not read.
    pub(crate) fn sign_of_life(&mut self, now: Instant) {
        self.last_sign = now;
        self.expects_first_sign = false;
        self.ping = None;
    }

    /// When [`Watchdog::advice`] is due.
    pub(crate) fn deadline(&self) -> Instant {
        match self.ping {
            Some(ping) => ping.until,
            None if self.expects_first_sign => self.last_sign + self.stall_timeout.min(self.ping_timeout),
            None => self.last_sign + self.stall_timeout,
        }
    }

    /// What to do at `now`. `before` and `vitals`: the process at the last ping and now, where they could be read.
    pub(crate) fn advice(&mut self, now: Instant, before: Option<Vitals>, vitals: Option<Vitals>) -> Advice {
        if now < self.deadline() {
            return Advice::Wait;
        }
        let missed = match self.ping {
            None => 0,
            // The deadline was met late: whether the ping was answered in time is unknown.
            Some(ping) if now - ping.until >= self.ping_timeout => ping.missed,
            Some(ping) => {
                if let Some(until) = self.widened(ping, now, before, vitals) {
                    self.ping = Some(Ping { until, ..ping });
                    return Advice::Wait;
                }
                ping.missed + 1
            }
        };
        let progress = match (before, vitals) {
            (Some(before), Some(now)) => now.ticks > before.ticks,
            _ => false,
        };
        let stopped = vitals.is_some_and(|vitals| vitals.stopped);
        let allowed = if progress { MISSES_WHEN_RUNNING } else { MISSES };
        if missed >= allowed {
            let detector = match (stopped, progress) {
                (true, _) => HangDetector::Stopped,
                (false, true) => HangDetector::NoProgress,
                // It used no processor either.
                (false, false) => HangDetector::Ping,
            };
            return Advice::DeclareDead(detector);
        }
        self.ping = Some(Ping { sent: now, until: now + self.ping_timeout, missed });
        Advice::Ping
    }

    /// Until when a ping that is due waits on, because the child had less than its time to answer.
    fn widened(
        &self,
        ping: Ping,
        now: Instant,
        before: Option<Vitals>,
        vitals: Option<Vitals>,
    ) -> Option<Instant> {
        let starved = vitals?.starved.saturating_sub(before?.starved);
        let waited = now - ping.sent;
        let missing = self.ping_timeout.saturating_sub(waited.saturating_sub(starved));
        let counts = missing >= self.ping_timeout / NEARLY && waited < self.ping_timeout * MOST_WIDENING;
        counts.then(|| now + missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Drives a watch whose child stays silent; returns when it was dead and how many pings went out.
    fn silence(after_first_sign: bool, stopped: bool, busy: bool) -> (Duration, u32, HangDetector) {
        let start = Instant::now();
        let mut watch = Watchdog::new(start, 10 * SECOND, 5 * SECOND);
        if after_first_sign {
            watch.sign_of_life(start);
        }
        let (mut pings, mut ticks) = (0, 0);
        let mut before = None;
        loop {
            let now = watch.deadline();
            ticks += u64::from(busy);
            let vitals = Vitals { stopped, ticks, starved: Duration::ZERO };
            match watch.advice(now, before, Some(vitals)) {
                Advice::Wait => panic!("waits at its own deadline"),
                Advice::Ping => (pings, before) = (pings + 1, Some(vitals)),
                Advice::DeclareDead(finding) => return (now - start, pings, finding),
            }
        }
    }

    #[test]
    fn a_hung_child_is_found_within_25_seconds() {
        assert_eq!(silence(true, true, false), (20 * SECOND, 2, HangDetector::Stopped));
        assert_eq!(silence(true, false, false), (20 * SECOND, 2, HangDetector::Ping));
        assert_eq!(silence(true, false, true), (25 * SECOND, 3, HangDetector::NoProgress));
        assert_eq!(silence(false, true, false), (15 * SECOND, 2, HangDetector::Stopped));
    }

    #[test]
    fn any_sign_acquits() {
        let start = Instant::now();
        let mut watch = Watchdog::new(start, 10 * SECOND, 5 * SECOND);
        assert_eq!(watch.advice(start + 5 * SECOND, None, None), Advice::Ping);
        watch.sign_of_life(start + 6 * SECOND);
        assert_eq!(watch.deadline(), start + 16 * SECOND);
        assert_eq!(watch.advice(start + 15 * SECOND, None, None), Advice::Wait);
    }

    /// A ping that is out since the second returned, with what the process was like then.
    fn pinged(starved: Duration) -> (Watchdog, Instant, Vitals) {
        let start = Instant::now();
        let mut watch = Watchdog::new(start, 10 * SECOND, 5 * SECOND);
        watch.sign_of_life(start);
        let sent = watch.deadline();
        assert_eq!(watch.advice(sent, None, None), Advice::Ping);
        (watch, sent, Vitals { stopped: false, ticks: 0, starved })
    }

    #[test]
    fn starved_child_gets_more_time() {
        let (mut watch, sent, before) = pinged(7 * SECOND);
        // A tenth of the processor: nine of ten seconds are spent waiting for it.
        let mut looks = 0;
        let now = loop {
            let now = watch.deadline();
            let starved = before.starved + (now - sent).mul_f64(0.9);
            if watch.advice(now, Some(before), Some(Vitals { starved, ..before })) == Advice::Ping {
                break now;
            }
            looks += 1;
        };
        let waited = (now - sent).as_secs_f64();
        assert!((44.0..=50.0).contains(&waited), "ten times five seconds, not {waited}");
        assert!(looks < 50, "{looks}");
    }

    #[test]
    fn patience_with_a_starved_child_has_its_end() {
        let (mut watch, sent, before) = pinged(Duration::ZERO);
        let mut dead = None;
        let (mut pings, mut since, mut last) = (1, before, sent);
        while dead.is_none() {
            let now = watch.deadline();
            // It never ran, and others always go first.
            let vitals = Vitals { starved: since.starved + (now - last), ..since };
            match watch.advice(now, Some(since), Some(vitals)) {
                Advice::Wait => {}
                Advice::Ping => (pings, since, last) = (pings + 1, vitals, now),
                Advice::DeclareDead(finding) => dead = Some((finding, now - sent)),
            }
        }
        assert_eq!((dead, pings), (Some((HangDetector::Ping, 200 * SECOND)), 2));
    }

    #[test]
    fn who_comes_too_late_to_hear_the_answer_asks_again() {
        let (mut watch, sent, before) = pinged(Duration::ZERO);
        let mut now = sent;
        // The machine is suspended again and again, each time with a ping out.
        for _ in 0..10 {
            now += 60 * SECOND;
            assert_eq!(watch.advice(now, Some(before), Some(before)), Advice::Ping);
        }
        // Only what is missed in time counts.
        now = watch.deadline();
        assert_eq!(watch.advice(now, Some(before), Some(before)), Advice::Ping);
        assert_eq!(
            watch.advice(watch.deadline(), Some(before), Some(before)),
            Advice::DeclareDead(HangDetector::Ping)
        );
        assert_eq!(watch.deadline() - now, 5 * SECOND);
    }
}
