//! A workspace's files, seen and read without ever following a symbolic link.
//!
//! The tools of a child write here while we look, so every step goes from an open directory to a name in it: nothing
//! that is swapped under us leads outside. Blocking; called on threads for blocking work.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat};

/// Files looked at. A larger workspace is watched in part, and the answer says so.
const MAX_FILES: usize = 20_000;
/// Directories within directories; each holds a descriptor during the walk.
const MAX_DEPTH: usize = 32;
/// Directories that are never looked into: what package managers put there is not the turn's work.
const PASSED_OVER: [&[u8]; 1] = [b"node_modules"];

/// What tells that a file was written: the change time cannot be set back by whoever owns the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// Whether it was written before `moment`.
    pub(super) fn is_before(&self, moment: SystemTime) -> bool {
        let moment = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(moment.as_secs()).unwrap_or(i64::MAX);
        self.changed < (seconds, i64::from(moment.subsec_nanos()))
    }
}

/// The files of a workspace at one moment, by their path within it.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) files: BTreeMap<PathBuf, Stamp>,
    /// There were more than can be watched.
    pub(super) partial: bool,
}

/// Looks at everything but dotfiles and what is passed over.
pub(super) fn look(root: &Path) -> io::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    let root = openat(CWD, root, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty())?;
    walk(&root, Path::new(""), 0, &mut snapshot)?;
    Ok(snapshot)
}

/// The first `limit` bytes of a regular file.
pub(super) fn read(root: &Path, file: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut directory = openat(CWD, root, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty())?;
    let mut names = file.components().peekable();
    while let Some(name) = names.next() {
        let Component::Normal(name) = name else { return Err(io::ErrorKind::InvalidInput.into()) };
        if names.peek().is_some() {
            directory = openat(&directory, name, DIRECTORY, Mode::empty())?;
            continue;
        }
        // Without NONBLOCK the opening of a pipe would wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(&directory, name, flags, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&opened)?.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut content = Vec::new();
        File::from(opened).take(limit).read_to_end(&mut content)?;
        return Ok(content);
    }
    Err(io::ErrorKind::InvalidInput.into())
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn walk(directory: &OwnedFd, path: &Path, depth: usize, snapshot: &mut Snapshot) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        // Gone, or swapped for something else, since we saw its name: not there.
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        if is_passed_over(name) {
            continue;
        }
        let Ok(stat) = statat(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let path = path.join(OsStr::from_bytes(name.to_bytes()));
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if snapshot.files.len() >= MAX_FILES => snapshot.partial = true,
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let changed = (stat.st_ctime, stat.st_ctime_nsec.cast_signed());
                snapshot.files.insert(path, Stamp { size, inode: stat.st_ino, changed });
            }
            FileType::Directory if depth >= MAX_DEPTH => snapshot.partial = true,
            FileType::Directory => {
                if let Ok(inner) = openat(directory, name, DIRECTORY, Mode::empty()) {
                    walk(&inner, &path, depth + 1, snapshot)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_passed_over(name: &CStr) -> bool {
    let name = name.to_bytes();
    // Also "." and "..", `.git`, and where credentials are kept.
    name.starts_with(b".") || PASSED_OVER.contains(&name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn hidden_files_links_and_packages_are_not_seen() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        let root = tempfile::tempdir().unwrap();
        for directory in ["a/b", ".git", "node_modules/x", "a/.hidden"] {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        for file in ["top", "a/b/deep", ".env", ".git/HEAD", "node_modules/x/y", "a/.hidden/z"] {
            std::fs::write(root.path().join(file), "1").unwrap();
        }
        symlink(outside.path(), root.path().join("way_out")).unwrap();
        symlink(outside.path().join("secret"), root.path().join("a/link")).unwrap();
        let seen: Vec<_> = look(root.path()).unwrap().files.into_keys().collect();
        assert_eq!(seen, [Path::new("a/b/deep"), Path::new("top")]);
        for file in ["way_out/secret", "a/link", "../secret", "", "/etc/passwd", "a"] {
            assert!(read(root.path(), Path::new(file), 10).is_err(), "{file}");
        }
        assert_eq!(read(root.path(), Path::new("a/b/deep"), 10).unwrap(), b"1");
    }

    #[test]
    fn a_written_file_has_another_stamp() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("f"), "one").unwrap();
        let before = look(root.path()).unwrap();
        assert_eq!(look(root.path()).unwrap().files, before.files);
        std::fs::write(root.path().join("f"), "four").unwrap();
        assert_ne!(look(root.path()).unwrap().files, before.files);
    }
}
