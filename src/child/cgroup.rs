//! The cgroup with the groups of all children, where the machine permits it.
//!
//! Detected and tested once at start. Without cgroups the shims use the next kill method. The shim creates, joins, kills
//! and removes the group of its child; this module handles children of former runs and of killed shims.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::host;
use pilotlight_shim::cgroup::Group;

mod held;
mod limits;
mod place;
mod tree;

pub(crate) use held::Held;
pub(crate) use limits::{GroupLimits, LimitBase};

/// Maximum time for killed processes to leave their group.
const LEAVE_LIMIT: Duration = Duration::from_millis(500);
/// Pause between two checks of a group that is being killed.
const LEAVE_PAUSE: Duration = Duration::from_millis(2);

/// What of cgroups this process can use.
#[derive(Debug)]
pub(crate) struct Groups {
    /// By which trees are killed; `None` without a usable group of version 2.
    pub(crate) base: Option<CgroupBase>,
    /// Where groups with limits can be made, or what is missing.
    pub(crate) limits: Result<LimitBase, String>,
    /// The directories of this server, while it lives.
    pub(crate) held: Vec<Held>,
}

impl Groups {
    /// Creates `prefix` in the groups for children. The prefix must be unique per data directory: [`Self::sweep`] kills
    /// everything that a former run left under it.
    pub(crate) fn detect(prefix: &str, limits_wanted: bool) -> Self {
        let mut held = Vec::new();
        let home = tree::home(limits_wanted);
        let base = home.as_ref().and_then(|home| CgroupBase::make(&home.dir, prefix, &mut held));
        let reason = home.and_then(|home| home.unlimited);
        let limits = match (&base, reason) {
            _ if !limits_wanted => Err("isolation.rungs leaves it out".to_owned()),
            (Some(base), None) => tree::enable(&base.dir).map(|()| LimitBase::V2(base.dir.clone())),
            (_, reason) => Err(reason.unwrap_or_else(|| "no cgroup of version 2 can be made".to_owned())),
        };
        let limits =
            limits.or_else(|reason| match limits_wanted && host::own_cgroup_v1("memory").is_some() {
                true => LimitBase::in_v1(prefix, &mut held),
                false => Err(reason),
            });
        Self { base, limits, held }
    }

    /// Kills and removes all children's groups; returns the number of processes. Only while no child may be alive.
    pub(crate) fn sweep(&self) -> usize {
        self.base.as_ref().map_or(0, CgroupBase::sweep) + self.limits.as_ref().map_or(0, LimitBase::sweep)
    }
}

/// The group of all children.
#[derive(Debug, Clone)]
pub(crate) struct CgroupBase {
    dir: PathBuf,
}

impl CgroupBase {
    fn make(home: &Path, prefix: &str, held: &mut Vec<Held>) -> Option<Self> {
        // Moving a process requires write access to the nearest common ancestor, which is this group.
        fs::File::options().write(true).open(home.join("cgroup.procs")).ok()?;
        held::remove_dead(home);
        let base = Self { dir: home.join(prefix) };
        let hold = Held::make(&base.dir).ok()?;
        // Kernels before 5.14 have no cgroup.kill.
        if !base.dir.join("cgroup.kill").exists() {
            base.remove();
            return None;
        }
        held.push(hold);
        Some(base)
    }

    /// Whether the group still exists: an administrator may remove it.
    pub(crate) fn is_there(&self) -> bool {
        self.dir.join("cgroup.kill").exists()
    }

    /// Path of a child's group. `name` must be new for each start.
    pub(crate) fn child_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn sweep(&self) -> usize {
        let entries = fs::read_dir(&self.dir).into_iter().flatten();
        let groups = entries.filter_map(|entry| entry.ok().filter(|e| e.path().is_dir()));
        groups.map(|group| kill_and_remove(&group.path())).sum()
    }

    /// Removes the parent group at the end; kills no process.
    pub(crate) fn remove(&self) {
        let _still_inhabited = fs::remove_dir(&self.dir);
    }
}

/// Kills and removes a group; returns the number of its processes. Blocks until they are gone, up to a limit.
pub(super) fn kill_and_remove(dir: &Path) -> usize {
    let Some(group) = Group::open(dir) else { return 0 };
    let inhabitants = fs::read_to_string(dir.join("cgroup.procs")).map_or(0, |procs| procs.lines().count());
    if group.kill().is_ok() {
        let begun = host::now();
        while group.is_populated() && begun.elapsed() < LEAVE_LIMIT {
            host::pause(LEAVE_PAUSE);
        }
    }
    // A process that does not die keeps its group, and the next run finds it.
    let _still_inhabited = group.remove();
    inhabitants
}

/// Passes over the processes of a group of version 1, which has no call to kill all: each finds those forked meanwhile.
const MAX_PASSES: usize = 20;

/// Kills the processes of a group of version 1 and removes it; returns their number. Blocks up to a limit.
pub(in crate::child) fn kill_v1(dir: &Path) -> usize {
    let members = || {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect::<Vec<_>>()
    };
    let mut killed = std::collections::HashSet::new();
    let begun = host::now();
    for _ in 0..MAX_PASSES {
        let found = members();
        if found.is_empty() {
            break;
        }
        for pid in found {
            // Opened before the second look: then it belongs to a member, or that one is gone.
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            if members().contains(&pid) && pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
                killed.insert(pid);
            }
        }
        while members().iter().any(|pid| killed.contains(pid)) && begun.elapsed() < LEAVE_LIMIT {
            host::pause(LEAVE_PAUSE);
        }
    }
    // A process that does not die keeps its group, and the next run finds it.
    let _still_inhabited = fs::remove_dir(dir);
    killed.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn groups_of_a_former_run_are_removed() {
        let prefix = format!("pilotlight-test-{}", std::process::id());
        let Some(base) = Groups::detect(&prefix, false).base else {
            pilotlight_test_support::installed::left_out("no writable cgroup v2 here");
            return;
        };
        let left = base.child_dir("left");
        fs::create_dir(&left).unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(left.join("cgroup.procs"), child.id().to_string()).unwrap();
        let again = Groups::detect(&prefix, false);
        assert_eq!(again.sweep(), 1);
        assert!(!child.wait().unwrap().success());
        // A dead process counts until it is reaped, and may have prevented the removal.
        again.sweep();
        assert!(!left.exists());
        base.remove();
        assert!(!base.dir.exists());
    }
}
