//! What is in use of what the limits give, for an operator's page.

use std::sync::Arc;

use super::blocking;
use crate::admission::Used;
use crate::child::{memory_limit, open_files};
use crate::model::SessionState;
use crate::session::sessions::Sessions;

/// Use and limit of each thing that can run out. A limit of `None` is not known, or there is none.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) starts: Used,
    /// Children that run a turn.
    pub(crate) busy: usize,
    pub(crate) max_children: usize,
    pub(crate) max_starting: usize,
    pub(crate) max_waiting: usize,
    /// Memory of all trees when they were last measured.
    pub(crate) memory_bytes: u64,
    pub(crate) memory_budget: u64,
    /// What one session may use.
    pub(crate) session_memory: u64,
    /// Processors of the host or the container of the server, and how many of them the trees keep busy, as far as that is known.
    pub(crate) processors: usize,
    pub(crate) cpu_cores: f64,
    /// Of the file system of the data directory.
    pub(crate) disk: Option<Disk>,
    pub(crate) open_files: Option<u64>,
    pub(crate) open_files_limit: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) free_bytes: u64,
    pub(crate) total_bytes: u64,
}

pub(super) async fn of(sessions: &Arc<Sessions>) -> Load {
    // As reloaded; the share of one session stays as it was at the start.
    let (now, at_start) = (sessions.env.current(), &sessions.env.config.limits);
    let limits = &now.limits;
    let (mut busy, mut memory_bytes, mut cpu_cores) = (0, 0_u64, 0.0);
    for entry in sessions.registry.entries() {
        entry.status.read(|visible| {
            busy += usize::from(visible.status.state == SessionState::Busy);
            memory_bytes = memory_bytes.saturating_add(visible.status.memory_bytes);
            cpu_cores += visible.status.cpu_cores.unwrap_or_default();
        });
    }
    let data_dir = sessions.env.config.data_dir.clone();
    let measured = blocking(move || {
        let disk = rustix::fs::statvfs(&data_dir).ok().map(|found| Disk {
            free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
            // Blocks that are reserved for root are neither free nor used.
            total_bytes: found
                .f_blocks
                .saturating_sub(found.f_bfree)
                .saturating_add(found.f_bavail)
                .saturating_mul(found.f_frsize),
        });
        Ok((disk, open_files(), memory_limit().unwrap_or(u64::MAX)))
    });
    let (disk, open_files, available) = measured.await.unwrap_or((None, None, u64::MAX));
    Load {
        starts: sessions.admission.used(),
        busy,
        max_children: limits.max_children,
        max_starting: limits.starts_in_flight,
        max_waiting: limits.queue,
        memory_bytes,
        memory_budget: limits.memory_budget.of(available),
        session_memory: at_start.memory_of_session(available),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        cpu_cores,
        disk,
        open_files,
        open_files_limit: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
    }
}
