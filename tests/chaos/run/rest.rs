//! Moments of rest: nothing runs any more, and everything that is counted has to add up. The last one ends the run.

use std::time::Duration;

use tokio::time::Instant;

use super::{Broken, Run, described};
use crate::link::SOON;
use crate::plan::{Kind, Reader, USERS};
use crate::wire::{News, Order, Report};

/// Every turn has ended by then: a queue of turns that each hang and are tried again.
const TURNS_END_WITHIN: Duration = Duration::from_secs(150);

/// The first rests of a server show what it needs; after them it may have so much more: descriptors, and KiB of its own
/// memory, of which the allocator keeps what large answers once took.
const FIRST_RESTS: usize = 3;
/// Those of two spares among them, which may be on their way at any moment.
const MORE_FDS: usize = 4 + 2 * 6;
const MORE_MEMORY: u64 = 32 * 1024;

impl Run {
    pub(super) fn report(&mut self) -> Result<Report, Broken> {
        self.link.order(&Order::Report);
        let deadline = Instant::now() + SOON;
        loop {
            match self.link.hear(deadline.saturating_duration_since(Instant::now())) {
                Ok(News::Report(report)) => return Ok(report),
                Ok(news) => self.take(news)?,
                Err(silence) => return Err(format!("the server does not report: {silence:?}")),
            }
        }
    }

    /// Waits until nothing runs any more: every turn has ended and every child was evicted for being idle.
    pub(super) fn rest(&mut self) -> Result<(), Broken> {
        let deadline = Instant::now() + TURNS_END_WITHIN;
        while let Some(number) = self.model.under_way().first() {
            if Instant::now() >= deadline {
                let report = self.report()?;
                let turn = self.model.describe(*number);
                return Err(format!("{turn} does not end; {:#?}", report.unsettled));
            }
            self.listen(Duration::from_millis(20))?;
            self.check()?;
        }
        let deadline = Instant::now() + SOON;
        let report = loop {
            let report = self.report()?;
            // Read first: a spare that a session gets meanwhile has its mark until then.
            let spares = self.spares();
            let left = self.table.alive_except(&spares);
            let starts = report.gauge("starts_in_flight");
            if report.unsettled.is_empty() && left.is_empty() && starts == 0.0 {
                break report;
            }
            if Instant::now() >= deadline {
                return Err(format!("not at rest: {:#?}; alive: {:?}", report.unsettled, described(&left)));
            }
            self.listen(Duration::from_millis(50))?;
            self.check()?;
        };
        self.compare(&report)
    }

    /// At rest everything adds up.
    fn compare(&mut self, report: &Report) -> Result<(), Broken> {
        self.model.compare(report)?;
        let first = self.rests.get(..FIRST_RESTS).and_then(|rests| rests.iter().map(|rest| rest.0).max());
        let most_fds = first.map_or(usize::MAX, |most| most + MORE_FDS);
        // What ended last may still be at work on its files.
        let deadline = Instant::now() + SOON;
        let mut open = descriptors(self.link.process.pid);
        while open.len() > most_fds && Instant::now() < deadline {
            self.listen(Duration::from_millis(50))?;
            open = descriptors(self.link.process.pid);
        }
        let fds = open.len();
        let memory = own_memory(self.link.process.pid).unwrap_or(0);
        let summary = &mut self.summary;
        summary.recovery =
            report.most.get("recovery_duration_seconds").copied().unwrap_or(0.0).max(summary.recovery);
        let widen = |(least, most): (u64, u64), now: u64| {
            (if least == 0 { now } else { least.min(now) }, most.max(now))
        };
        summary.memory = widen(summary.memory, memory);
        let (least, most) = widen((summary.fds.0 as u64, summary.fds.1 as u64), fds as u64);
        summary.fds = (least as usize, most as usize);
        self.rests.push((fds, memory));
        self.note(format!("at rest: {fds} descriptors, {memory} KiB"));
        let first = self.rests.iter().take(FIRST_RESTS);
        let most_memory = first.map(|rest| rest.1).max().unwrap_or(memory) + MORE_MEMORY;
        if fds > most_fds || memory > most_memory {
            let rests = &self.rests;
            return Err(format!("{fds} descriptors and {memory} KiB at rest, after {rests:?}: {open:#?}"));
        }
        Ok(())
    }

    /// Rests, has every conversation recalled once more, and stops the server.
    pub(super) fn end(&mut self) -> Result<(), Broken> {
        self.note("the end".to_owned());
        self.rest()?;
        for user in 0..USERS {
            self.send(user, &Kind::Recall, Reader::Eager);
        }
        self.rest()?;
        let begun = Instant::now();
        self.link.order(&Order::ShutDown);
        self.stopped(begun)?;
        self.check()?;
        let left = self.place.leftovers();
        if !left.is_empty() {
            return Err(format!("left at the end: {left:?}"));
        }
        let (clis, looks, leftover) = self.table.totals();
        let summary = &mut self.summary;
        (summary.clis, summary.looks, summary.leftover) = (clis, looks, leftover);
        summary.took = self.begun.elapsed();
        summary.turns = std::mem::take(&mut self.model.tally);
        (summary.recalled, summary.losses_reported) = (self.model.recalled, self.model.losses_reported);
        Ok(())
    }
}

/// What the open descriptors of a process are.
fn descriptors(pid: i32) -> Vec<String> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.map(|fd| {
        std::fs::read_link(fd.path()).map_or_else(|_| "closed".to_owned(), |it| it.display().to_string())
    })
    .collect()
}

/// In KiB, without what is shared with the file system's cache.
fn own_memory(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}
