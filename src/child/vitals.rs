//! A look at one process from outside: is it stopped, does it compute?

use procfs::process::{ProcState, Process};

use super::watch::Vitals;

/// `None` if the process is gone or /proc does not say. Takes some tens of microseconds.
pub(crate) fn read(pid: u32) -> Option<Vitals> {
    let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    let stopped = matches!(stat.state().ok()?, ProcState::Stopped | ProcState::Tracing);
    Some(Vitals { stopped, ticks: stat.utime + stat.stime })
}
