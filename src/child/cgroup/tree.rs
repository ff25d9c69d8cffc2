//! The groups of version 2 around this process: what decides about them is read, and what was decided is done.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pilotlight_shim::descendants;
use rustix::fs::{Access, AtFlags, CWD, accessat, getxattr};
use rustix::process::{Pid, geteuid, getpid, getppid};

use super::place::{CONTROLLERS, Level, Place, choose};
use crate::child::host;

/// The group that the server moves into. One name, so that a server that is started again finds it.
const OF_SERVER: &str = "pilotlight-server";
/// Marks of systemd on a group that it leaves to its service; the second one is visible to root only.
const DELEGATED: [&str; 2] = ["user.delegate", "trusted.delegate"];
/// Passes over the processes to be moved: one that forks meanwhile is found by the next.
const MAX_PASSES: usize = 10;

/// The group in which that of all children is made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) dir: PathBuf,
    /// Why children cannot have limits there.
    pub(super) unlimited: Option<String>,
}

/// Finds it, and prepares it for limits if they are wanted. `None` without a group of version 2.
pub(super) fn home(limits_wanted: bool) -> Option<Home> {
    let (own, mount) = host::own_cgroup_v2()?;
    if !limits_wanted {
        return Some(Home { dir: own, unlimited: None });
    }
    let limited = settle(&own, &mount, &family());
    Some(match limited {
        Ok(dir) => Home { dir, unlimited: None },
        Err(reason) => Home { dir: own, unlimited: Some(reason) },
    })
}

/// This process and its descendants; as a server in a container also its first process, which is the same program.
fn family() -> Vec<i32> {
    let mut family = vec![getpid().as_raw_pid()];
    descendants::add_descendants(&mut family);
    let program = |pid: &str| fs::metadata(format!("/proc/{pid}/exe")).ok().map(|it| (it.dev(), it.ino()));
    if getppid() == Some(Pid::INIT) && program("1").is_some_and(|first| Some(first) == program("self")) {
        family.push(Pid::INIT.as_raw_pid());
    }
    family
}

/// Prepares the group for limits and returns it.
fn settle(own: &Path, mount: &Path, family: &[i32]) -> Result<PathBuf, String> {
    let parent = own.parent().filter(|_| own != mount);
    let (level, above) = (read(own, mount, family), parent.map(|parent| read(parent, mount, family)));
    let place = choose(&level, above.as_ref())?;
    let home = match (place, parent) {
        (Place::Beside, Some(parent)) => parent,
        _ => own,
    };
    if place == Place::Below {
        move_down(own)?;
    }
    let enabled = enable(home);
    if enabled.is_err() && place == Place::Below {
        move_up(own);
    }
    enabled.map(|()| home.to_owned())
}

/// What decides about a group.
fn read(dir: &Path, mount: &Path, family: &[i32]) -> Level {
    // Only the root of the hierarchy has no type, also if a container's own root is another group.
    let is_root = !dir.join("cgroup.type").exists();
    let (own, others): (Vec<_>, Vec<_>) = members(dir).into_iter().partition(|pid| family.contains(pid));
    Level {
        is_root,
        is_delegated: is_delegated(dir, mount, is_root),
        closed: closed(dir),
        lacks: missing(&dir.join("cgroup.controllers")),
        own,
        others: others.len(),
    }
}

/// Whether the group was left to this service: marked by systemd, given to this process's user, or the root of a container.
fn is_delegated(dir: &Path, mount: &Path, is_root: bool) -> bool {
    let mut value = [0_u8; 1];
    let mut is_marked = |name: &str| getxattr(dir, name, &mut value[..]).is_ok() && value == *b"1";
    if dir == mount {
        return !is_root;
    }
    let belongs = |dir: &Path| fs::metadata(dir).is_ok_and(|it| it.uid() == geteuid().as_raw());
    // The user's own manager owns groups below the one that was given to it, and arranges them.
    let is_given = || !geteuid().is_root() && belongs(dir) && !dir.parent().is_some_and(belongs);
    DELEGATED.into_iter().any(&mut is_marked) || is_given()
}

/// Why nothing can be changed in it.
fn closed(dir: &Path) -> Option<String> {
    let files = ["", "cgroup.procs", "cgroup.subtree_control"].map(|name| dir.join(name));
    let tried = files.iter().try_for_each(|file| accessat(CWD, file, Access::WRITE_OK, AtFlags::EACCESS));
    let error = io::Error::from(tried.err()?);
    Some(format!("the cgroup of this service cannot be changed ({error})"))
}

/// The controllers that a file does not list.
fn missing(file: &Path) -> Vec<&'static str> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let is_there = |name: &str| text.split_ascii_whitespace().any(|word| word == name);
    CONTROLLERS.into_iter().filter(|name| !is_there(name)).collect()
}

/// Hands the controllers down to the groups below.
pub(super) fn enable(dir: &Path) -> Result<(), String> {
    let file = dir.join("cgroup.subtree_control");
    if missing(&file).is_empty() {
        return Ok(());
    }
    let request = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
    fs::write(&file, request)
        .map_err(|error| format!("the cgroup of this service hands no limits down ({error})"))?;
    match missing(&file)[..] {
        [] => Ok(()),
        _ => Err("the cgroup of this service hands no limits down".to_owned()),
    }
}

/// Moves this process and its descendants into a group of their own.
fn move_down(own: &Path) -> Result<(), String> {
    let below = own.join(OF_SERVER);
    let failed = |error: io::Error| format!("the server cannot move into a cgroup of its own ({error})");
    match fs::create_dir(&below) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let moved = move_members(own, &below);
    if moved.is_err() {
        move_up(own);
    }
    moved.map_err(failed)
}

/// Undoes [`move_down`].
fn move_up(own: &Path) {
    let below = own.join(OF_SERVER);
    // What stays is found by the next start.
    let _incomplete = move_members(&below, own).and_then(|()| fs::remove_dir(&below));
}

/// Moves processes of this process's family only.
fn move_members(from: &Path, to: &Path) -> io::Result<()> {
    for _ in 0..MAX_PASSES {
        let family = family();
        let found: Vec<_> = members(from).into_iter().filter(|pid| family.contains(pid)).collect();
        if found.is_empty() {
            break;
        }
        for pid in found {
            match fs::write(to.join("cgroup.procs"), pid.to_string()) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// The processes of a group.
fn members(dir: &Path) -> Vec<i32> {
    // One of another PID namespace is listed as 0.
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}
