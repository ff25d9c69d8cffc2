//! A look at one process from outside: is it stopped, does it compute, would it like to?

use std::time::Duration;

use procfs::process::{ProcState, Process};

use super::watch::Vitals;

/// `None` if the process is gone or /proc does not say. Takes some tens of microseconds.
pub(crate) fn read(pid: u32) -> Option<Vitals> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let stat = process.stat().ok()?;
    let stopped = matches!(stat.state().ok()?, ProcState::Stopped | ProcState::Tracing);
    Some(Vitals { stopped, ticks: stat.utime + stat.stime, starved: starved(pid) })
}

/// How long its threads have waited for a processor so far, all together. Zero where the kernel does not count it.
fn starved(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_thread = |thread: std::fs::DirEntry| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    };
    Duration::from_nanos(threads.filter_map(of_thread).fold(0, u64::saturating_add))
}
