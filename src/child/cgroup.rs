//! The group under which every child's own group is made, where the machine lets us.
//!
//! Found and proven once at start. No cgroup is no error: the shims then use the next method. The shim makes,
//! joins, kills and removes the group of its child; what is done here is for children of former runs and for
//! shims that were killed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::host;
use pilotlight_shim::cgroup::Group;

/// How long killed processes may take to leave their group.
const LEAVE_LIMIT: Duration = Duration::from_millis(500);
/// Between two looks at a group that is being killed.
const LEAVE_PAUSE: Duration = Duration::from_millis(2);

/// A group of our own in which groups can be made and killed.
#[derive(Debug, Clone)]
pub(crate) struct CgroupBase {
    dir: PathBuf,
}

impl CgroupBase {
    /// Makes `prefix` below our own group and proves that it works; `None` if it does not. The prefix must be one
    /// per data directory, because what a former run left under it is killed by [`Self::sweep`].
    pub(crate) fn detect(prefix: &str) -> Option<Self> {
        let own = host::own_cgroup_v2()?;
        // Moving a process needs the right to write here, in the nearest group above both places.
        fs::File::options().write(true).open(own.join("cgroup.procs")).ok()?;
        let base = Self { dir: own.join(prefix) };
        Group::create(&base.dir).ok()?;
        // Kernels before 5.14 have no cgroup.kill.
        if !base.dir.join("cgroup.kill").exists() {
            base.remove();
            return None;
        }
        Some(base)
    }

    /// Whether groups can still be made and killed here: the operator of the host may take them away.
    pub(crate) fn is_there(&self) -> bool {
        self.dir.join("cgroup.kill").exists()
    }

    /// Where the group of a child shall be. `name` must be new for each start.
    pub(crate) fn child_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Kills and removes what is left of children, of whatever run. Only for times when no child shall live.
    pub(crate) fn sweep(&self) -> usize {
        let entries = fs::read_dir(&self.dir).into_iter().flatten();
        let groups = entries.filter_map(|entry| entry.ok().filter(|e| e.path().is_dir()));
        groups.map(|group| kill_and_remove(&group.path())).sum()
    }

    /// Removes the group itself at the end; nothing is killed.
    pub(crate) fn remove(&self) {
        let _still_inhabited = fs::remove_dir(&self.dir);
    }
}

/// Ends a group from outside; returns how many processes were in it. Blocks until they are gone, within a bound.
pub(super) fn kill_and_remove(dir: &Path) -> usize {
    let Some(group) = Group::open(dir) else { return 0 };
    let inhabitants = fs::read_to_string(dir.join("cgroup.procs")).map_or(0, |procs| procs.lines().count());
    if group.kill().is_ok() {
        let begun = host::now();
        while group.is_populated() && begun.elapsed() < LEAVE_LIMIT {
            host::pause(LEAVE_PAUSE);
        }
    }
    // What would not die keeps its group, for the next run to find.
    let _still_inhabited = group.remove();
    inhabitants
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_a_former_run_left_is_killed_and_removed() {
        let prefix = format!("pilotlight-test-{}", std::process::id());
        let Some(base) = CgroupBase::detect(&prefix) else {
            pilotlight_test_support::installed::left_out("no writable cgroup v2 here");
            return;
        };
        let left = base.child_dir("left");
        fs::create_dir(&left).unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(left.join("cgroup.procs"), child.id().to_string()).unwrap();
        let again = CgroupBase::detect(&prefix).unwrap();
        assert_eq!(again.sweep(), 1);
        assert!(!child.wait().unwrap().success());
        // The dead one counts as an inhabitant until it is reaped, and may have kept the group from going.
        again.sweep();
        assert!(!left.exists());
        base.remove();
        assert!(!base.dir.exists());
    }
}
