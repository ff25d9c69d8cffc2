//! Is a silent child alive? Pure: the driver tells what it saw and does what is decided.
//!
//! The child is asked, not the clock: after some silence it gets a ping, which a living one answers within
//! milliseconds even while a tool or the model's API keeps it waiting. Only unanswered pings condemn it, and one that
//! still uses the processor gets one more.

use std::time::Duration;

use tokio::time::Instant;

/// Unanswered pings that condemn a child which does nothing.
const MISSES: u32 = 2;

/// Unanswered pings that condemn a child which uses the processor: on a starved machine an answer may take long.
const MISSES_WHEN_RUNNING: u32 = 3;

/// Watches one turn.
#[derive(Debug)]
pub(crate) struct Watch {
    stall_timeout: Duration,
    ping_timeout: Duration,
    last_sign: Instant,
    /// Nothing has come since the turn was written: a living child says something at once.
    expects_first_sign: bool,
    /// When the ping that is out was sent, and how many went unanswered before it.
    ping: Option<(Instant, u32)>,
}

/// What a look at the process itself says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vitals {
    /// It is stopped (SIGSTOP, a debugger).
    pub(crate) stopped: bool,
    /// Processor time so far, in clock ticks.
    pub(crate) ticks: u64,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Nothing before [`Watch::deadline`].
    Wait,
    /// Send a ping.
    Ping,
    /// It is hung.
    Condemn(Finding),
}

/// How a hung child was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It was stopped.
    Stopped,
    /// It neither answered nor used the processor.
    Ping,
    /// It used the processor but answered nothing.
    NoProgress,
}

impl Watch {
    pub(crate) fn new(now: Instant, stall_timeout: Duration, ping_timeout: Duration) -> Self {
        Self { stall_timeout, ping_timeout, last_sign: now, expects_first_sign: true, ping: None }
    }

    /// The child said something, or we were not listening.
    pub(crate) fn sign_of_life(&mut self, now: Instant) {
        self.last_sign = now;
        self.expects_first_sign = false;
        self.ping = None;
    }

    /// When [`Watch::advice`] is due.
    pub(crate) fn deadline(&self) -> Instant {
        match self.ping {
            Some((sent, _)) => sent + self.ping_timeout,
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
            Some((_, missed)) => missed + 1,
        };
        let progress = match (before, vitals) {
            (Some(before), Some(now)) => now.ticks > before.ticks,
            _ => false,
        };
        let stopped = vitals.is_some_and(|vitals| vitals.stopped);
        let allowed = if progress { MISSES_WHEN_RUNNING } else { MISSES };
        if missed >= allowed {
            let finding = match (stopped, progress) {
                (true, _) => Finding::Stopped,
                (false, true) => Finding::NoProgress,
                (false, false) => Finding::Ping,
            };
            return Advice::Condemn(finding);
        }
        self.ping = Some((now, missed));
        Advice::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Drives a watch whose child stays silent; returns when it was condemned and how many pings went out.
    fn silence(after_first_sign: bool, stopped: bool, busy: bool) -> (Duration, u32, Finding) {
        let start = Instant::now();
        let mut watch = Watch::new(start, 10 * SECOND, 5 * SECOND);
        if after_first_sign {
            watch.sign_of_life(start);
        }
        let (mut pings, mut ticks) = (0, 0);
        let mut before = None;
        loop {
            let now = watch.deadline();
            ticks += u64::from(busy);
            let vitals = Vitals { stopped, ticks };
            match watch.advice(now, before, Some(vitals)) {
                Advice::Wait => panic!("waits at its own deadline"),
                Advice::Ping => (pings, before) = (pings + 1, Some(vitals)),
                Advice::Condemn(finding) => return (now - start, pings, finding),
            }
        }
    }

    #[test]
    fn a_hung_child_is_found_within_25_seconds() {
        assert_eq!(silence(true, true, false), (20 * SECOND, 2, Finding::Stopped));
        assert_eq!(silence(true, false, false), (20 * SECOND, 2, Finding::Ping));
        assert_eq!(silence(true, false, true), (25 * SECOND, 3, Finding::NoProgress));
        assert_eq!(silence(false, true, false), (15 * SECOND, 2, Finding::Stopped));
    }

    #[test]
    fn any_sign_acquits() {
        let start = Instant::now();
        let mut watch = Watch::new(start, 10 * SECOND, 5 * SECOND);
        assert_eq!(watch.advice(start + 5 * SECOND, None, None), Advice::Ping);
        watch.sign_of_life(start + 6 * SECOND);
        assert_eq!(watch.deadline(), start + 16 * SECOND);
        assert_eq!(watch.advice(start + 15 * SECOND, None, None), Advice::Wait);
    }
}
