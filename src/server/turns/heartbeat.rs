//! When a caller has heard nothing for so long that it wants a sign of life.
//!
//! Events come by the thousand, so that one of them costs no look at the clock: time is cut into quarters, and only the
//! end of a quarter asks whether anything was said in it.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Quarters in which nothing was said, after which it is time: with the one in which it was said last, a silence of
/// three quarters of the heartbeat to a whole one.
const SILENT: u32 = 3;

/// The silence of one stream.
#[derive(Debug)]
pub(super) struct Silence {
    quarter: Duration,
    end: Pin<Box<Sleep>>,
    said: bool,
    silent: u32,
}

impl Silence {
    /// Begins with something said now.
    pub(super) fn new(heartbeat: Duration) -> Self {
        let quarter = heartbeat / (SILENT + 1);
        Self { quarter, end: Box::pin(sleep(quarter)), said: true, silent: 0 }
    }

    /// Something was said.
    pub(super) fn broken(&mut self) {
        self.said = true;
    }

    /// Ready when a sign of life is due; it counts as said.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.end.as_mut().poll(context));
            self.end.as_mut().reset(Instant::now() + self.quarter);
            self.silent = if std::mem::take(&mut self.said) { 0 } else { self.silent + 1 };
            if self.silent >= SILENT {
                self.said = true;
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
    async fn a_sign_is_due_after_silence_alone() {
        let heartbeat = Duration::from_secs(8);
        let mut silence = Silence::new(heartbeat);
        let begin = Instant::now();
        poll_fn(|context| silence.poll(context)).await;
        assert_eq!(begin.elapsed(), heartbeat);
        for _ in 0..100 {
            let talking =
                tokio::time::timeout(Duration::from_secs(1), poll_fn(|context| silence.poll(context)));
            assert!(talking.await.is_err());
            silence.broken();
        }
        let last = Instant::now();
        poll_fn(|context| silence.poll(context)).await;
        assert!((heartbeat * 3 / 4..=heartbeat).contains(&last.elapsed()), "{:?}", last.elapsed());
    }
}
