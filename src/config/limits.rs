//! Section `limits`: limits of the whole instance.

use std::time::Duration;

use super::value::{self, MemoryBudget};

section! {
    /// Limits of the whole instance.
    #[derive(Debug)]
    pub struct Limits {
        /// Maximum number of running children. Default 256.
        pub max_children: usize = 256,
        /// Maximum number of children that start at the same time. Default: the number of cores, because a start costs half a
        /// CPU second.
        pub starts_in_flight: usize = std::thread::available_parallelism().map_or(2, Into::into),
        /// Maximum memory of all children together: bytes, or a percentage of the memory of the container or host.
        /// Default `"80%"`.
        pub memory_budget: MemoryBudget = MemoryBudget::Percent(80),
        /// Maximum memory of one child and its descendants: bytes, or a percentage of the memory of the container or host.
        /// A tree above the limit is killed with [`crate::TurnError::MemoryLimit`]. Default: a quarter of
        /// [`Limits::memory_budget`], at least 768 MiB.
        pub memory_per_session: Option<MemoryBudget> = None,
        /// Maximum number of sessions in memory, with or without a child. Default 10 000.
        pub max_sessions: usize = 10_000,
        /// Maximum number of named sessions of one user, including those on disk. The default conversation does not count,
        /// nor do those that the server begins for clients that name none (`http.conversations_per_user`). Default 256.
        pub sessions_per_user: usize = 256,
        /// Maximum number of starts that wait for a slot. Default 1024.
        pub queue: usize = 1024,
        /// Maximum time a start waits for a slot. Default 30 s.
        #[serde(with = "value::duration")]
        pub queue_deadline: Duration = Duration::from_secs(30),
        /// Maximum number of open files of a child (`RLIMIT_NOFILE`, inherited by its tools), at least 32. Default
        /// and maximum: half of the limit of this process.
        pub child_open_files: Option<u64> = None,
        /// Maximum number of processes of the child's user id, over all sessions (`RLIMIT_NPROC`). With the rung `cgroup` also
        /// the maximum number of tasks of one session; 2048 if unset.
        pub child_processes: Option<u64> = None,
        /// Maximum number of cores that one child and its descendants use on average. Needs the rung `cgroup`.
        pub cpu_per_session: Option<f64> = None,
        /// Maximum size of a file that a child writes, in bytes (`RLIMIT_FSIZE`).
        pub child_file_size: Option<u64> = None,
        /// Maximum size of all files of one session, in bytes, by counting: see the manual for how much it may be exceeded
        /// meanwhile. Above it the child is ended with [`crate::TurnError::WorkspaceLimit`]. Default none.
        pub workspace_bytes: Option<u64> = None,
        /// Maximum number of files of one session, directories and links included, by counting. Default none; a million
        /// with [`Limits::workspace_bytes`].
        pub workspace_files: Option<u64> = None,
        /// Maximum cost of one user's turns in a day (UTC), in US dollars. Beyond it turns and requests to the model's API are
        /// refused with `spend_limit` until the day ends; a running request may exceed it. Default: no limit.
        pub usd_per_user_day: Option<f64> = None,
        /// Adjustment of a child's OOM score, so that the kernel kills a child before this process. Default 500.
        pub child_oom_score: i32 = 500,
    }
}

impl Limits {
    /// The limit of one session on a machine with `available` bytes in all.
    pub(crate) fn memory_of_session(&self, available: u64) -> u64 {
        /// A working CLI with a few tools.
        const MINIMUM: u64 = 768 << 20;
        self.memory_per_session
            .map_or_else(|| (self.memory_budget.of(available) / 4).max(MINIMUM), |limit| limit.of(available))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_memory_of_session_defaults_to_a_quarter() {
        let limits = Limits { memory_budget: MemoryBudget::Percent(80), ..Limits::default() };
        assert_eq!(limits.memory_of_session(20 << 30), 4 << 30);
        assert_eq!(limits.memory_of_session(1 << 30), 768 << 20);
        let given = |limit| Limits { memory_per_session: Some(limit), ..limits.clone() };
        assert_eq!(given(MemoryBudget::Percent(10)).memory_of_session(10 << 30), 1 << 30);
        assert_eq!(given(MemoryBudget::Bytes(5)).memory_of_session(10 << 30), 5);
    }
}
