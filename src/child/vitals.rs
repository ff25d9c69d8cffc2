//! Run state of one process: stopped, running, or waiting for a processor.

use std::time::Duration;

use procfs::process::{ProcState, Process};

use super::watchdog::Vitals;

/// Run state; `None` if the process is gone or /proc does not report it. Takes some tens of microseconds.
pub(crate) fn read(pid: u32) -> Option<Vitals> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let stat = process.stat().ok()?;
    let stopped = matches!(stat.state().ok()?, ProcState::Stopped | ProcState::Tracing);
    Some(Vitals { stopped, ticks: stat.utime + stat.stime, starved: starved(pid) })
}

/// Total time that the main thread, which answers, has waited for a processor. Other threads do not count: spinning threads
/// make each other wait. Zero if the kernel does not count it.
fn starved(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).unwrap_or_default();
    Duration::from_nanos(text.split(' ').nth(1).and_then(|waited| waited.parse().ok()).unwrap_or_default())
}
