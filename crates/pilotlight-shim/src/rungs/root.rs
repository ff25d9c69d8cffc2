//! The CLI's root directory in its own mount namespace: nothing but its mounts, a few devices and its own `/proc`.
//!
//! The root is a small file system in memory, read-only once it is complete. Everything else is bound into it, from
//! references that are opened before anything is mounted.

use std::{
    cmp::Ordering,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, chmodat, fstat, linkat, mkdirat, openat, symlinkat, unlinkat,
    },
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount,
        mount_change, move_mount, open_tree, unmount,
    },
    path::Arg,
    process::{chdir, fchdir, pivot_root},
};

use super::{at, landlock::DEVICES, reach};
use crate::{
    isolation::{Isolation, Mount},
    sys,
};

/// Where the new root is attached until it becomes the root: a directory that exists everywhere.
const BASE: &str = "/proc";

/// Size of the root's file system, hence of `/dev/shm`, its only writable part. No limit on processes counts this
/// memory; browsers and databases need some.
const SIZE: &str = "64m";
/// Files and directories in it. Each takes a kilobyte of the kernel's memory beside the size.
const FILES: &str = "16k";

/// A file that all places of mounted files are links to, while the root is made: an inode costs the kernel a kilobyte, a
/// name a fifth of it.
const PLACE: &str = "place";
/// An empty directory, which lies over hidden ones. Its name goes when the root is made.
const EMPTY: &str = "empty";

/// Links that programs expect below `/dev`.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
];

/// Something that the new root shows.
struct Entry {
    /// Relative to the root.
    to: PathBuf,
    what: What,
}

enum What {
    /// A mount that is not yet attached.
    Tree { tree: OwnedFd, is_dir: bool },
    /// A symbolic link with this text.
    Link(PathBuf),
    /// A directory whose entries are shown one by one.
    Dir,
    /// Nothing, in the place of a directory that is there already.
    Cover,
}

/// Makes the new root and moves this process into it. The old one stays attached until [`settle`]: the kernel allows a
/// new `/proc` only to a process that has one in sight.
pub(crate) fn build(isolation: &Isolation) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let entries = entries(isolation)?;
    let devices = devices();
    let root = memory()?;
    attach(&root, CWD, Path::new(BASE))?;
    for dir in ["proc", "dev", "dev/shm"] {
        mkdirat(&root, dir, Mode::from_raw_mode(0o755))?;
    }
    share(&root, Path::new("dev/shm"))?;
    create(&root, PLACE)?;
    mkdirat(&root, EMPTY, Mode::from_raw_mode(0o755))?;
    for entry in entries {
        at(&entry.to, show(&root, &entry))?;
    }
    for (name, device) in devices {
        let target = target(&root, Path::new(name), false)?;
        attach(device, target, Path::new(""))?;
    }
    for (text, link) in LINKS {
        symlinkat(text, &root, link)?;
    }
    unlinkat(&root, PLACE, AtFlags::empty())?;
    unlinkat(&root, EMPTY, AtFlags::REMOVEDIR)?;
    sys::restrict_mount(&root, MountAttrFlags::MOUNT_ATTR_RDONLY, false)?;
    fchdir(&root)?;
    // The old root is now mounted over the new one, at the working directory.
    Ok(pivot_root(".", ".")?)
}

/// Completes the root, in the process that becomes the CLI: a `/proc` of its own processes, no way to the old root, and
/// the working directory.
pub(crate) fn settle(work: &Path) -> io::Result<()> {
    // Read-only: user 0 may write below /proc/sys without any capability.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    mount("proc", "/proc", "proc", flags, None)?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    at(work, chdir(work).map_err(io::Error::from))
}

/// What the root shows, the mounts above others first.
fn entries(isolation: &Isolation) -> io::Result<Vec<Entry>> {
    let hidden = Hidden::of(reach::resolved(&isolation.hidden));
    let mut mounts: Vec<_> = isolation.mounts.iter().filter(|mount| !mount.to.starts_with("/proc")).collect();
    // A stable sort: of two mounts at one path, the later covers the earlier.
    mounts.sort_by(|one, other| above(&one.to, &other.to));
    let mut entries = Vec::new();
    for mount in mounts {
        match link(mount, &isolation.mounts) {
            Some(text) => entries.push(Entry { to: relative(&mount.to), what: What::Link(text) }),
            None => at(&mount.path, trees(mount, &hidden, &mut entries))?,
        }
    }
    Ok(entries)
}

fn above(one: &Path, other: &Path) -> Ordering {
    one.components().count().cmp(&other.components().count())
}

/// The text of a link that leads to another mount, as `/bin` does in many systems; such a path stays a link.
fn link(mount: &Mount, all: &[Mount]) -> Option<PathBuf> {
    if mount.write || mount.to != mount.path {
        return None;
    }
    let text = fs::read_link(&mount.path).ok()?;
    let target = fs::canonicalize(&mount.path).ok()?;
    let is_shown = |other: &Mount| other.to == other.path && target.starts_with(&other.path);
    all.iter().any(is_shown).then_some(text)
}

/// Hidden paths by the way in which they are hidden.
struct Hidden {
    /// Covered by a mount, which costs a tenth of leaving them out. A rename on the host would take the cover away.
    directories: Vec<PathBuf>,
    /// Left out, since programs replace files by rename(2).
    files: Vec<PathBuf>,
}

impl Hidden {
    fn of(paths: Vec<PathBuf>) -> Self {
        let is_dir = |path: &PathBuf| path.symlink_metadata().is_ok_and(|of| of.is_dir());
        let (mut directories, mut files): (Vec<_>, Vec<_>) = paths.into_iter().partition(is_dir);
        // Sorted, what lies below a directory follows it. A path has two names where it is its own real one.
        directories.sort();
        directories.dedup_by(|below, above| below.starts_with(above));
        files.retain(|file| !directories.iter().any(|directory| file.starts_with(directory)));
        Self { directories, files }
    }
}

fn trees(mount: &Mount, hidden: &Hidden, entries: &mut Vec<Entry>) -> io::Result<()> {
    let real = if mount.write { mount.path.clone() } else { fs::canonicalize(&mount.path)? };
    // A tool may rename what lies above a cover that it can write, and the next session would see the rest elsewhere.
    let left_out: Vec<_> = match mount.write {
        true => hidden.directories.iter().chain(&hidden.files).cloned().collect(),
        false => hidden.files.clone(),
    };
    if hidden.directories.iter().any(|directory| real.starts_with(directory)) {
        return Ok(());
    }
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if !mount.write {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    for part in reach::parts(mount, &left_out)? {
        let to = relative(&mount.to.join(&part.below));
        let what = match part.kind {
            reach::Kind::Tree => {
                let source = reach::open(&part.path, mount.write)?;
                let is_dir = is_dir(&source)?;
                What::Tree { tree: bound(&source, attributes)?, is_dir }
            }
            reach::Kind::Link => What::Link(fs::read_link(&part.path)?),
            reach::Kind::Above => What::Dir,
        };
        entries.push(Entry { to, what });
    }
    let covered = hidden.directories.iter().filter(|_| !mount.write);
    for below in covered.filter_map(|directory| directory.strip_prefix(&real).ok()) {
        entries.push(Entry { to: relative(&mount.to.join(below)), what: What::Cover });
    }
    Ok(())
}

/// A mount of a tree and of everything mounted below, not yet attached.
fn bound(source: &OwnedFd, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(source, "", flags)?;
    sys::restrict_mount(&tree, attributes, true)?;
    Ok(tree)
}

/// The devices that exist here. Unlike other mounts, they may be used as devices.
fn devices() -> Vec<(&'static str, OwnedFd)> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let found = DEVICES.into_iter().filter_map(|path| {
        let source = reach::open(Path::new(path), false).ok()?;
        Some((path.trim_start_matches('/'), bound(&source, attributes).ok()?))
    });
    found.collect()
}

/// A file system in memory, not yet attached.
fn memory() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "mode", "755")?;
    fsconfig_set_string(&context, "size", SIZE)?;
    fsconfig_set_string(&context, "nr_inodes", FILES)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Keeps a directory of the root writable for everybody: a mount of its own does not become read-only with the root.
fn share(root: &OwnedFd, path: &Path) -> io::Result<()> {
    chmodat(root, path, Mode::from_raw_mode(0o1777), AtFlags::empty())?;
    let dir = target(root, path, true)?;
    attach(bound(&dir, MountAttrFlags::empty())?, dir, Path::new(""))
}

fn attach(tree: impl AsFd, dir: impl AsFd, path: &Path) -> io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.as_os_str().is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    Ok(move_mount(tree, "", dir, path, flags)?)
}

fn show(root: &OwnedFd, entry: &Entry) -> io::Result<()> {
    match &entry.what {
        What::Tree { tree, is_dir } => attach(tree, target(root, &entry.to, *is_dir)?, Path::new("")),
        What::Dir => target(root, &entry.to, true).map(drop),
        What::Cover => {
            let empty = bound(&target(root, Path::new(EMPTY), true)?, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            attach(empty, target(root, &entry.to, true)?, Path::new(""))
        }
        What::Link(text) => {
            let (parent, name) = (entry.to.parent(), entry.to.file_name());
            let (Some(parent), Some(name)) = (parent, name) else { return Err(Errno::INVAL.into()) };
            match symlinkat(text, target(root, parent, true)?, name) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
    }
}

/// Opens the place of a mount. Missing directories and files are made, which fails in what is read-only. No link is
/// followed: it may lie in a directory of the CLI.
fn target(root: &OwnedFd, path: &Path, is_dir: bool) -> io::Result<OwnedFd> {
    let mut at = root.try_clone()?;
    let mut names = path.components().peekable();
    while let Some(component) = names.next() {
        let Component::Normal(name) = component else { return Err(Errno::INVAL.into()) };
        let is_dir = is_dir || names.peek().is_some();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = if is_dir { flags | OFlags::DIRECTORY } else { flags };
        let open = || openat(&at, name, flags, Mode::empty());
        at = match open() {
            Err(Errno::NOENT) => {
                if is_dir {
                    mkdirat(&at, name, Mode::from_raw_mode(0o755))?;
                } else if linkat(root, PLACE, &at, name, AtFlags::empty()).is_err() {
                    // In another file system: below a mount.
                    create(&at, name)?;
                }
                open()?
            }
            opened => opened?,
        };
    }
    Ok(at)
}

fn create(directory: &OwnedFd, name: impl Arg) -> io::Result<()> {
    let new = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(openat(directory, name, new, Mode::from_raw_mode(0o444)).map(drop)?)
}

fn is_dir(file: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Directory)
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}
