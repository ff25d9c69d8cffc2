//! Timer for heartbeats on a silent stream.
//!
//! Streams have thousands of events, so an event must not read the clock. The interval is divided into quarters; the end
//! of each quarter checks whether anything was sent in it.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Silent quarters before a heartbeat: with the quarter of the last event, three quarters to one whole interval.
const SILENT_QUARTERS: u32 = 3;

#[derive(Debug)]
pub(super) struct Heartbeat {
    quarter: Duration,
    end: Pin<Box<Sleep>>,
    is_active: bool,
    silent: u32,
}

impl Heartbeat {
    /// Starts with activity now.
    pub(super) fn new(interval: Duration) -> Self {
        let quarter = interval / (SILENT_QUARTERS + 1);
        Self { quarter, end: Box::pin(sleep(quarter)), is_active: true, silent: 0 }
    }

    /// Records that something was sent.
    pub(super) fn reset(&mut self) {
        self.is_active = true;
    }

    /// Ready when a heartbeat is due, which counts as sent.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.end.as_mut().poll(context));
            self.end.as_mut().reset(Instant::now() + self.quarter);
            self.silent = if std::mem::take(&mut self.is_active) { 0 } else { self.silent + 1 };
            if self.silent >= SILENT_QUARTERS {
                self.is_active = true;
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn heartbeat_is_due_only_after_silence() {
        let interval = Duration::from_secs(8);
        let mut heartbeat = Heartbeat::new(interval);
        let begin = Instant::now();
        poll_fn(|context| heartbeat.poll(context)).await;
        assert_eq!(begin.elapsed(), interval);
        for _ in 0..100 {
            let active =
                tokio::time::timeout(Duration::from_secs(1), poll_fn(|context| heartbeat.poll(context)));
            assert!(active.await.is_err());
            heartbeat.reset();
        }
        let last = Instant::now();
        poll_fn(|context| heartbeat.poll(context)).await;
        assert!((interval * 3 / 4..=interval).contains(&last.elapsed()), "{:?}", last.elapsed());
    }
}
