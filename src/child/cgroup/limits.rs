//! Limits of one child's tree by its cgroup: memory, tasks and processor time.
//!
//! With version 2 they are files of the group by which the tree is killed; with version 1 each controller has a hierarchy
//! of its own. Groups and limits exist before the shim starts, and the CLI is a member before its first instruction. The
//! shim removes the groups; [`LimitBase::sweep`] removes those of killed shims.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::held::{Held, remove_dead};
use super::kill_v1;
use crate::child::host;

/// What a tree may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct GroupLimits {
    /// Bytes, file pages included, which the kernel takes back first.
    pub(crate) memory: u64,
    /// Processes and threads.
    pub(crate) tasks: u64,
    /// Cores, on average.
    pub(crate) cores: Option<f64>,
}

/// Period of a limit on processor time, in microseconds: the kernel's default. A tree that has used its share waits for the
/// rest of it.
const PERIOD: u64 = 100_000;
/// Smallest share of a period that the kernel accepts, in microseconds.
const LEAST_SHARE: u64 = 1_000;
/// Weight of children beside the server, whose own is 100 (1024 in version 1): the server answers while they compute.
const WEIGHT: (u64, u64) = (50, 512);

/// Where the groups with limits are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LimitBase {
    /// The group of all children, whose controllers are enabled.
    V2(PathBuf),
    /// One directory per controller.
    V1 { memory: PathBuf, tasks: PathBuf, cpu: PathBuf },
}

impl LimitBase {
    /// Finds hierarchies of version 1 that can be used, and creates `prefix` below this process's groups in them.
    ///
    /// # Errors
    /// What is missing. Nothing is left then.
    pub(super) fn in_v1(prefix: &str, held: &mut Vec<Held>) -> Result<Self, String> {
        let own = |controller: &str| {
            let own = host::own_cgroup_v1(controller).map(|own| own.join(prefix));
            own.ok_or_else(|| format!("this process has no controller `{controller}` to limit children with"))
        };
        let base = Self::V1 { memory: own("memory")?, tasks: own("pids")?, cpu: own("cpu")? };
        held.extend(base.make()?);
        Ok(base)
    }

    /// Makes the groups of all children in version 1, and tries them.
    fn make(&self) -> Result<Vec<Held>, String> {
        let Self::V1 { memory, tasks, cpu } = self else { return Ok(Vec::new()) };
        let make = |dir: &PathBuf| {
            dir.parent().map(remove_dead);
            Held::make(dir).map_err(|error| format!("no group can be made at `{}` ({error})", dir.display()))
        };
        let made: Result<Vec<_>, _> = [memory, tasks, cpu].into_iter().map(make).collect();
        // Without members they can be removed.
        made.and_then(|made| self.try_limits().map(|()| made)).inspect_err(|_| self.remove())
    }

    /// Whether limits can be written: a group may be writable and its files not.
    fn try_limits(&self) -> Result<(), String> {
        let trial = GroupLimits { memory: 1 << 30, tasks: 1024, cores: Some(1.0) };
        let tried = self.create("trial", trial);
        let result = tried.as_ref().map(drop).map_err(|error| format!("limits cannot be set ({error})"));
        for dir in self.dirs("trial") {
            // Not there if it could not be made.
            fs::remove_dir(dir).ok();
        }
        result
    }

    /// The directories of one child's group.
    fn dirs(&self, name: &str) -> Vec<PathBuf> {
        match self {
            Self::V2(base) => vec![base.join(name)],
            Self::V1 { memory, tasks, cpu } => [memory, tasks, cpu].map(|base| base.join(name)).to_vec(),
        }
    }

    /// The group of a child that is also the one it is killed by.
    pub(crate) fn v2_dir(&self, name: &str) -> Option<PathBuf> {
        match self {
            Self::V2(base) => Some(base.join(name)),
            Self::V1 { .. } => None,
        }
    }

    /// Makes the group of a child with its limits. Returns the directories that the shim is to join, and to remove; none
    /// with version 2, where it is the group that it is killed by.
    ///
    /// # Errors
    /// The error of the first step that failed. Nothing is left then.
    pub(crate) fn create(&self, name: &str, limits: GroupLimits) -> io::Result<Vec<PathBuf>> {
        let dirs = self.dirs(name);
        let made = (|| {
            for dir in &dirs {
                match fs::create_dir(dir) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
            }
            for Setting { dir, file, value, is_needed } in self.settings(name, limits) {
                match fs::write(dir.join(file), &value) {
                    Err(error) if is_needed => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        })();
        if let Err(error) = made {
            // Without members they can be removed.
            dirs.iter().for_each(|dir| drop(fs::remove_dir(dir)));
            return Err(error);
        }
        Ok(match self {
            Self::V2(_) => Vec::new(),
            Self::V1 { .. } => dirs,
        })
    }

    /// The files to write, in their order.
    fn settings(&self, name: &str, limits: GroupLimits) -> Vec<Setting> {
        let quota = limits.cores.map(|cores| ((cores * PERIOD as f64) as u64).max(LEAST_SHARE));
        let setting = |base: &Path, file, value: String, is_needed| Setting {
            dir: base.join(name),
            file,
            value,
            is_needed,
        };
        match self {
            Self::V2(base) => {
                let max = quota.map_or_else(|| format!("max {PERIOD}"), |quota| format!("{quota} {PERIOD}"));
                vec![
                    setting(base, "memory.max", limits.memory.to_string(), true),
                    // Without swap limits in the kernel the file is missing.
                    setting(base, "memory.swap.max", "0".to_owned(), false),
                    setting(base, "pids.max", limits.tasks.to_string(), true),
                    setting(base, "cpu.max", max, true),
                    setting(base, "cpu.weight", WEIGHT.0.to_string(), false),
                ]
            }
            Self::V1 { memory, tasks, cpu } => {
                let quota = quota.map_or_else(|| "-1".to_owned(), |quota| quota.to_string());
                vec![
                    setting(memory, "memory.limit_in_bytes", limits.memory.to_string(), true),
                    // Memory and swap together; without swap accounting the file is missing.
                    setting(memory, "memory.memsw.limit_in_bytes", limits.memory.to_string(), false),
                    setting(tasks, "pids.max", limits.tasks.to_string(), true),
                    setting(cpu, "cpu.cfs_quota_us", quota, limits.cores.is_some()),
                    setting(cpu, "cpu.shares", WEIGHT.1.to_string(), false),
                ]
            }
        }
    }

    /// Kills and removes the groups of version 1 that killed shims left; returns the number of processes. Those of version
    /// 2 are swept with the group of all children.
    pub(crate) fn sweep(&self) -> usize {
        let Self::V1 { memory, tasks, cpu } = self else { return 0 };
        let groups = |base: &PathBuf| {
            let entries = fs::read_dir(base).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect::<Vec<_>>()
        };
        [tasks, memory, cpu].into_iter().flat_map(groups).map(|group| kill_v1(&group)).sum()
    }

    /// Removes the parent groups at the end; kills no process.
    pub(crate) fn remove(&self) {
        if let Self::V1 { memory, tasks, cpu } = self {
            [memory, tasks, cpu].into_iter().for_each(|base| drop(fs::remove_dir(base)));
        }
    }
}

struct Setting {
    dir: PathBuf,
    file: &'static str,
    value: String,
    /// Whether the limit is missing if it cannot be written.
    is_needed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: GroupLimits = GroupLimits { memory: 1 << 30, tasks: 100, cores: Some(1.5) };

    fn written(base: &LimitBase, limits: GroupLimits) -> Vec<String> {
        let settings = base.settings("x", limits);
        let relative =
            |setting: Setting| format!("{} {} {}", setting.dir.display(), setting.file, setting.value);
        settings.into_iter().map(relative).collect()
    }

    #[test]
    fn limits_of_both_versions_are_written() {
        assert_eq!(
            written(&LimitBase::V2("/cg".into()), LIMITS),
            [
                "/cg/x memory.max 1073741824",
                "/cg/x memory.swap.max 0",
                "/cg/x pids.max 100",
                "/cg/x cpu.max 150000 100000",
                "/cg/x cpu.weight 50",
            ]
        );
        let v1 = LimitBase::V1 { memory: "/m".into(), tasks: "/p".into(), cpu: "/c".into() };
        assert_eq!(
            written(&v1, GroupLimits { cores: None, ..LIMITS }),
            [
                "/m/x memory.limit_in_bytes 1073741824",
                "/m/x memory.memsw.limit_in_bytes 1073741824",
                "/p/x pids.max 100",
                "/c/x cpu.cfs_quota_us -1",
                "/c/x cpu.shares 512",
            ]
        );
        let little = GroupLimits { cores: Some(0.001), ..LIMITS };
        assert!(written(&v1, little).contains(&"/c/x cpu.cfs_quota_us 1000".to_owned()));
    }

    #[test]
    fn groups_of_version_2_have_their_limits() {
        let root = tempfile::tempdir().unwrap();
        let base = LimitBase::V2(root.path().to_owned());
        assert!(base.create("x", LIMITS).unwrap().is_empty());
        assert_eq!(fs::read_to_string(root.path().join("x/pids.max")).unwrap(), "100");
        assert_eq!(base.sweep(), 0);
    }

    #[test]
    fn controller_that_fails_leaves_no_group() {
        let root = tempfile::tempdir().unwrap();
        let of = |name: &str| root.path().join(name).join("prefix");
        fs::create_dir(root.path().join("memory")).unwrap();
        let base = LimitBase::V1 { memory: of("memory"), tasks: of("missing"), cpu: of("missing") };
        assert!(base.make().unwrap_err().contains("missing"));
        assert!(!of("memory").exists());
    }

    #[test]
    fn limits_hold_and_groups_are_removed() {
        let prefix = format!("pilotlight-test-limits-{}", std::process::id());
        let mut held = Vec::new();
        let base = match LimitBase::in_v1(&prefix, &mut held) {
            Ok(base) => base,
            Err(reason) => return pilotlight_test_support::installed::left_out(&reason),
        };
        let dirs = base.create("x", GroupLimits { tasks: 3, ..LIMITS }).unwrap();
        assert_eq!(dirs.len(), 3);
        let tasks = &dirs[1];
        assert_eq!(fs::read_to_string(tasks.join("pids.max")).unwrap().trim(), "3");
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(tasks.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert_eq!(base.sweep(), 1);
        assert!(!child.wait().unwrap().success());
        base.sweep();
        base.remove();
        assert!(dirs.iter().all(|dir| !dir.exists() && !dir.parent().unwrap().exists()));
    }
}
