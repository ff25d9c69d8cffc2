//! The ends of the server under test, asked for or not, and the beginning of the next one.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use super::{Broken, Run, described};
use crate::link::{Link, SOON, Silence};
use crate::process::Id;

/// After SIGKILL of the server nothing of it may be left.
const GONE_WITHIN: Duration = Duration::from_secs(1);

/// A shim that was killed leaves its tree to the server's reaper; if the server is killed so soon after, the rest is for
/// the next one to find.
const REAPER_NEEDS: Duration = Duration::from_secs(3);

/// Drain, every step of a stop, and the rest.
const STOPS_WITHIN: Duration = Duration::from_secs(15);

impl Run {
    pub(super) fn kill_server(&mut self) -> Result<(), Broken> {
        let begun = Instant::now();
        self.link.signal(Signal::KILL);
        self.link.ended(SOON).ok_or("a killed server is still there")?;
        self.hear_the_rest()?;
        self.model.cut();
        let excused = self.shim_killed.is_some_and(|at| begun.duration_since(at) < REAPER_NEEDS);
        let gone = all_gone(|| self.table.alive(), begun, GONE_WITHIN);
        match gone {
            Ok(took) => self.summary.gone = self.summary.gone.max(took),
            // A shim was killed just before its server.
            Err(left) if excused => self.note(format!("left for the next server: {left:?}")),
            Err(left) => return Err(format!("left {GONE_WITHIN:?} after SIGKILL of the server: {left:?}")),
        }
        let left_to_it = self.table.alive();
        self.start_server()?;
        // Beside them are the first spares of the next server.
        let rest = || self.table.alive().into_iter().filter(|id| left_to_it.contains(id)).collect();
        if let Err(left) = all_gone(rest, Instant::now(), GONE_WITHIN) {
            return Err(format!("not found by the next server: {left:?}"));
        }
        Ok(())
    }

    pub(super) fn drain_server(&mut self) -> Result<(), Broken> {
        let begun = Instant::now();
        self.model.disturb_all();
        self.link.signal(Signal::TERM);
        self.stopped(begun)?;
        self.start_server()
    }

    /// The server received a request to stop: it ends well, all its turns have ended, and nothing is left.
    pub(super) fn stopped(&mut self, begun: Instant) -> Result<(), Broken> {
        loop {
            match self.link.hear(STOPS_WITHIN.saturating_sub(begun.elapsed())) {
                Ok(news) => self.take(news)?,
                Err(Silence::Ended) => break,
                Err(Silence::NothingYet) => {
                    return Err(format!("the server does not stop within {STOPS_WITHIN:?}"));
                }
            }
        }
        let status = self.link.ended(SOON).ok_or("a stopped server is still there")?;
        self.summary.stop = self.summary.stop.max(begun.elapsed());
        if !status.success() {
            return Err(format!("the server stopped with {status}"));
        }
        if let Some(number) = self.model.under_way().first() {
            return Err(format!(
                "the server stopped and never reported the end of {}",
                self.model.describe(*number)
            ));
        }
        // When it has ended everything else has ended; the look itself takes its time.
        let left = self.table.alive();
        if left.is_empty() { Ok(()) } else { Err(format!("left after the stop: {:?}", described(&left))) }
    }

    fn start_server(&mut self) -> Result<(), Broken> {
        let begun = Instant::now();
        self.link = Link::start(&self.place, self.servers)?;
        self.servers += 1;
        self.table.set_host(self.link.process.pid);
        self.summary.start = self.summary.start.max(begun.elapsed());
        self.rests.clear();
        self.stopped.clear();
        self.model.new_server();
        Ok(())
    }

    fn hear_the_rest(&mut self) -> Result<(), Broken> {
        while let Ok(news) = self.link.hear(SOON) {
            self.take(news)?;
        }
        Ok(())
    }
}

/// Waits until nothing is left; the processes that are, if it takes longer than `within`.
fn all_gone(alive: impl Fn() -> Vec<Id>, begun: Instant, within: Duration) -> Result<Duration, Vec<String>> {
    loop {
        let left = alive();
        let took = begun.elapsed();
        if left.is_empty() {
            return Ok(took);
        }
        if took > within {
            return Err(described(&left));
        }
    }
}
