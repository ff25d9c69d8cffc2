//! Limits, memory, disk and clock of the host, compared with what the configuration may need.

use std::path::Path;
use std::time::{Duration, SystemTime};

use pilotlight::Config;
use rustix::process::{Resource, getrlimit};

use super::finding::Finding;

/// Descriptors of the server for one child: three pipes, the control socket, a pidfd, files of its session, in transit.
const FILES_PER_CHILD: u64 = 10;
/// Listeners, log, journal, events, runtime.
const FILES_OF_SERVER: u64 = 100;
/// Memory of an idle child of the real CLI.
const CHILD_MEMORY: u64 = 116 << 20;
/// Less free space than this, and a transcript or journal may soon not be written.
const LITTLE_SPACE: u64 = 1 << 30;
const LITTLE_SHARE: f64 = 0.05;
/// Below it nothing of a turn can be kept.
const NO_SPACE: u64 = 64 << 20;
/// Moments ahead of the clock by more than this were written by a clock that was put back.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(120);
/// This program was not written before (2026-01-01).
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![of_files(getrlimit(Resource::Nofile).current, config)];
    findings.extend(available_memory().map(|memory| of_memory(memory, config.limits.max_children)));
    findings.extend(of_directory(&config.data_dir));
    findings.push(of_clock(SystemTime::now(), newest(&config.data_dir)));
    findings
}

/// `None` of a limit is unlimited.
fn of_files(limit: Option<u64>, config: &Config) -> Finding {
    let children = u64::try_from(config.limits.max_children).unwrap_or(u64::MAX);
    let connections = u64::try_from(config.http.max_connections).unwrap_or(u64::MAX);
    let needed =
        children.saturating_mul(FILES_PER_CHILD).saturating_add(connections).saturating_add(FILES_OF_SERVER);
    match limit {
        Some(limit) if limit < needed => Finding::warning(
            "open files",
            format!(
                "at most {limit} open files; limits.max_children and http.max_connections may need {needed}"
            ),
            format!(
                "LimitNOFILE={needed} in the unit, or ulimit -n {needed}; the limit of this shell may differ from the \
                     server's"
            ),
        ),
        _ => Finding::good(
            "open files",
            limit.map_or("unlimited".to_owned(), |limit| format!("at most {limit}")),
        ),
    }
}

fn of_memory(available: u64, children: usize) -> Finding {
    let room = available / CHILD_MEMORY;
    let text = format!("{} MiB available, room for some {room} idle children of claude", available >> 20);
    if u64::try_from(children).is_ok_and(|children| children > room) {
        let remedy = format!(
            "limits.max_children is {children}: children beyond the memory are evicted earlier, and starts wait; lower it, \
             or add memory"
        );
        return Finding::warning("memory", text, remedy);
    }
    Finding::good("memory", text)
}

fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Free space and files below the data directory, or below the directory in which it will be made.
fn of_directory(data_dir: &Path) -> Vec<Finding> {
    let existing = data_dir.ancestors().find(|path| path.is_dir());
    let Some(found) = existing.and_then(|path| rustix::fs::statvfs(path).ok()) else {
        let text = format!("{} cannot be looked at", data_dir.display());
        return vec![Finding::problem(
            "disk",
            text,
            "data_dir must be a directory that the server may write",
        )];
    };
    vec![
        of_space(
            found.f_bavail.saturating_mul(found.f_frsize),
            found.f_blocks.saturating_mul(found.f_frsize),
        ),
        of_inodes(found.f_favail, found.f_files),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "a share needs no exact bytes")]
fn is_little(free: u64, all: u64) -> bool {
    all > 0 && (free as f64) < all as f64 * LITTLE_SHARE
}

fn of_space(free: u64, all: u64) -> Finding {
    let text = format!("{} MiB of {} MiB free at data_dir", free >> 20, all >> 20);
    let remedy =
        "make room, or delete what is old: retention in docs/configuration.md, `pilotlight user delete`";
    match free {
        0..NO_SPACE => Finding::problem("disk", text, remedy),
        NO_SPACE..LITTLE_SPACE => Finding::warning("disk", text, remedy),
        _ if is_little(free, all) => Finding::warning("disk", text, remedy),
        _ => Finding::good("disk", text),
    }
}

/// A file system without a number of files reports none.
fn of_inodes(free: u64, all: u64) -> Finding {
    let text = format!("{free} of {all} inodes free at data_dir");
    match (free, all) {
        (_, 0) => Finding::good("disk", "without a limit of inodes"),
        (0..1_000, _) => {
            Finding::problem("disk", text, "delete files, or use a file system with more inodes")
        }
        _ if is_little(free, all) => {
            Finding::warning("disk", text, "limits.workspace_files bounds the files of a session")
        }
        _ => Finding::good("disk", text),
    }
}

/// The latest change of an entry of the data directory.
fn newest(data_dir: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(data_dir).ok()?;
    entries.flatten().filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()
}

fn of_clock(now: SystemTime, newest: Option<SystemTime>) -> Finding {
    let remedy = "set the clock, and keep it with chrony or systemd-timesyncd: days of spend, retention and signatures of \
                  webhooks depend on it";
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if since < EARLIEST {
        return Finding::problem("clock", "it is before the release of this program", remedy);
    }
    match newest.and_then(|newest| newest.duration_since(now).ok()) {
        Some(ahead) if ahead > CLOCK_TOLERANCE => {
            let text = format!("the data directory has files of {} s ahead of it", ahead.as_secs());
            Finding::warning("clock", text, remedy)
        }
        _ => Finding::good("clock", humantime::format_rfc3339_seconds(now).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    #[test]
    fn limits_are_compared_with_the_configuration() {
        let config = Config::default();
        assert_eq!(of_files(Some(1024), &config).level, Level::Warning);
        assert_eq!(of_files(Some(1 << 20), &config).level, Level::Good);
        assert_eq!(of_files(None, &config).level, Level::Good);
        assert_eq!(of_memory(8 << 30, 256).level, Level::Warning);
        assert_eq!(of_memory(64 << 30, 256).level, Level::Good);
    }

    #[test]
    fn little_space_is_a_warning_and_none_a_problem() {
        const GIB: u64 = 1 << 30;
        for (free, all, level) in [
            (10 * GIB, 100 * GIB, Level::Good),
            (3 * GIB, 100 * GIB, Level::Warning),
            (GIB / 2, GIB, Level::Warning),
            (GIB / 100, 100 * GIB, Level::Problem),
        ] {
            assert_eq!(of_space(free, all).level, level, "{free} of {all}");
        }
        assert_eq!(of_inodes(0, 0).level, Level::Good);
        assert_eq!(of_inodes(10, 1_000_000).level, Level::Problem);
        assert_eq!(of_inodes(20_000, 1_000_000).level, Level::Warning);
    }

    #[test]
    fn clock_is_compared_with_files_and_release() {
        let now = SystemTime::UNIX_EPOCH + EARLIEST + Duration::from_secs(1_000_000);
        assert_eq!(of_clock(SystemTime::UNIX_EPOCH, None).level, Level::Problem);
        assert_eq!(of_clock(now, Some(now + Duration::from_secs(3_600))).level, Level::Warning);
        assert_eq!(of_clock(now, Some(now - Duration::from_secs(3_600))).level, Level::Good);
        assert_eq!(of_clock(now, None).level, Level::Good);
    }
}
