//! Memory and cgroups of this process, as the machine or the container grants them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::exit::count_in;
use crate::support::lock::MutexExt as _;

/// Version 1 states "no limit" as a number near the largest one; nobody has a quarter of an exabyte.
const UNLIMITED: u64 = 1 << 58;

/// The files of one version of the memory controller.
struct Files {
    limit: &'static str,
    usage: &'static str,
    kills: &'static str,
    inactive: &'static str,
}

const V2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    kills: "memory.events",
    inactive: "inactive_file ",
};
const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    kills: "memory.oom_control",
    inactive: "total_inactive_file ",
};

/// The smaller of the host's memory and the limits of all groups of this process, in bytes.
pub(crate) fn memory_limit() -> Option<u64> {
    let groups = limited_groups().into_iter().map(|(limit, _, _)| limit);
    meminfo("MemTotal:").into_iter().chain(groups).min()
}

/// What can still be used before the kernel has to take it from someone, in bytes.
pub(crate) fn available_memory() -> Option<u64> {
    let groups = limited_groups().into_iter().filter_map(|(limit, dir, files)| {
        let usage = number(&dir.join(files.usage))?;
        let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        // Given back when it is needed.
        let cache =
            stat.lines().find_map(|line| line.strip_prefix(files.inactive)?.parse().ok()).unwrap_or(0);
        Some(limit.saturating_sub(usage.saturating_sub(cache)))
    });
    meminfo("MemAvailable:").into_iter().chain(groups).min()
}

/// For how much of the last ten seconds something here waited for the resource, from 0 to 1; `None` where the kernel
/// does not say.
pub(crate) fn pressure(resource: &str) -> Option<f64> {
    let text = fs::read_to_string(Path::new("/proc/pressure").join(resource)).ok()?;
    share_of_ten_seconds(&text)
}

fn share_of_ten_seconds(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let percent: f64 = some.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()?;
    Some(percent / 100.0)
}

pub(crate) fn open_files() -> Option<u64> {
    let dir = Path::new("/proc/self/fd");
    // Since Linux 6.2 the directory's size is their number; to list thousands takes milliseconds.
    match fs::metadata(dir).ok()?.len() {
        0 => Some(fs::read_dir(dir).ok()?.count() as u64),
        count => Some(count),
    }
}

/// The count of kills in this process's own memory group; `None` at the root, which does not keep it.
pub(super) fn group_oom_kills() -> Option<u64> {
    let own = own_groups()?;
    let mut known = KILLS.lock_unpoisoned();
    if known.as_ref().is_none_or(|(groups, _)| *groups != own) {
        let (dir, _, files) = memory_group()?;
        *known = Some((own, dir.join(files.kills)));
    }
    let (_, kills) = known.as_ref()?;
    count_in(&fs::read_to_string(kills).ok()?)
}

/// The file of [`group_oom_kills`] for these groups: each start reads it, and the mounts are long.
static KILLS: Mutex<Option<(String, PathBuf)>> = Mutex::new(None);

/// The group of this process in version 2, and the mount of the hierarchy.
pub(super) fn own_cgroup_v2() -> Option<(PathBuf, PathBuf)> {
    let (mountinfo, own) = place()?;
    let (dir, mount) = group_dir(&mountinfo, &own, "cgroup2", "")?;
    // At the root of a mount the path has a slash at its end.
    let dir: PathBuf = dir.components().collect();
    dir.is_dir().then_some((dir, mount))
}

/// The group of this process in the hierarchy of one controller (version 1).
pub(super) fn own_cgroup_v1(controller: &str) -> Option<PathBuf> {
    let (mountinfo, own) = place()?;
    group_dir(&mountinfo, &own, "cgroup", controller).map(|(dir, _)| dir).filter(|dir| dir.is_dir())
}

/// The clock of the blocking threads here, which never run on a paused clock.
#[expect(clippy::disallowed_methods, reason = "blocking threads have no runtime and no paused clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}

pub(super) fn pause(duration: Duration) {
    let duration = rustix::event::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    };
    let _interrupted = rustix::event::poll(&mut [], Some(&duration));
}

/// Every group with a limit, from this process's own up to the mount.
fn limited_groups() -> Vec<(u64, PathBuf, &'static Files)> {
    let Some((own, mount, files)) = memory_group() else { return Vec::new() };
    own.ancestors()
        .take_while(|dir| dir.starts_with(&mount))
        .filter_map(|dir| Some((number(&dir.join(files.limit))?, dir.to_owned(), files)))
        .filter(|(limit, _, _)| *limit < UNLIMITED)
        .collect()
}

/// The group where the memory of this process is accounted: its directory, the mount it is in, the names of its files.
fn memory_group() -> Option<(PathBuf, PathBuf, &'static Files)> {
    let (mountinfo, own) = place()?;
    let v1 = group_dir(&mountinfo, &own, "cgroup", "memory").map(|(dir, mount)| (dir, mount, &V1));
    v1.or_else(|| group_dir(&mountinfo, &own, "cgroup2", "").map(|(dir, mount)| (dir, mount, &V2)))
}

fn place() -> Option<(String, String)> {
    Some((fs::read_to_string("/proc/self/mountinfo").ok()?, own_groups()?))
}

fn own_groups() -> Option<String> {
    fs::read_to_string("/proc/self/cgroup").ok()
}

/// The directory of this process in one hierarchy and its mount, from the texts of `mountinfo` and `cgroup`.
fn group_dir(mountinfo: &str, own: &str, kind: &str, controller: &str) -> Option<(PathBuf, PathBuf)> {
    let (root, mount) = mountinfo.lines().find_map(|line| {
        let (place, what) = line.split_once(" - ")?;
        let mut what = what.split(' ');
        let fits = what.next() == Some(kind)
            && (controller.is_empty() || what.next_back()?.split(',').any(|option| option == controller));
        let mut place = place.split(' ').skip(3);
        fits.then_some((place.next()?, place.next()?))
    })?;
    let path = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })?;
    // In a container the mount may show only a part of the hierarchy: the rest of the path is invisible.
    let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    Some((Path::new(mount).join(below), mount.into()))
}

fn meminfo(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 =
        text.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse().ok())?;
    Some(kib * 1024)
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn our_place_is_found_in_every_common_layout() {
        let own = "8:pids:/\n4:memory:/jobs/7\n0::/\n";
        let dir = |mounts: &str, own: &str, kind: &str, controller: &str| {
            group_dir(mounts, own, kind, controller)
                .map(|(dir, _)| dir.to_string_lossy().trim_end_matches('/').to_owned())
        };
        assert_eq!(dir(HYBRID, own, "cgroup", "memory").unwrap(), "/sys/fs/cgroup/memory/jobs/7");
        assert_eq!(dir(HYBRID, own, "cgroup2", "").unwrap(), "/sys/fs/cgroup/unified");

        let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(dir(v2, "0::/app.slice/x\n", "cgroup2", "").unwrap(), "/sys/fs/cgroup/app.slice/x");
        assert_eq!(dir(v2, "0::/app.slice/x\n", "cgroup", "memory"), None);

        let container = "35 31 0:32 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        assert_eq!(
            dir(container, "4:memory:/docker/ab\n", "cgroup", "memory").unwrap(),
            "/sys/fs/cgroup/memory"
        );
        assert_eq!(dir("", "", "cgroup2", ""), None);
    }

    #[test]
    fn pressure_is_a_share() {
        let text =
            "some avg10=12.50 avg60=1.00 avg300=0.10 total=99\nfull avg10=3.00 avg60=0 avg300=0 total=1\n";
        assert_eq!(share_of_ten_seconds(text), Some(0.125));
        assert_eq!(share_of_ten_seconds(""), None);
        assert_eq!(pressure("no-such-resource"), None);
    }

    #[test]
    fn open_files_are_counted() {
        let before = open_files().unwrap();
        let held: Vec<_> = (0..200).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        // Other tests of this process open and close files meanwhile.
        assert!(open_files().unwrap() > before + 100, "{before}");
        drop(held);
    }

    #[test]
    fn host_memory_is_plausible() {
        let (limit, available) = (memory_limit().unwrap(), available_memory().unwrap());
        assert!(limit > 64 << 20, "{limit}");
        assert!(limit <= meminfo("MemTotal:").unwrap());
        assert!(available > 0 && available <= limit, "{available} of {limit}");
    }
}
