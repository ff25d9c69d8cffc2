//! Removal of directory trees that a child has written.
//!
//! Follows no link, needs two descriptors and constant stack at any depth, and restores access that the child removed. Inner
//! directories are moved up to the top directory before they are removed. Blocking.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;
use tokio::time::Instant;

use super::beneath::Beneath;

/// Limit of one removal: a child may leave millions of files, or create files faster than they are removed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RemovalLimit {
    /// Directory entries that are read.
    pub(crate) entries: u64,
    /// Time from the start of the removal.
    pub(crate) time: Duration,
}

impl RemovalLimit {
    /// Limit for a whole tree: some ten million files on a usual disk.
    pub(super) const TREE: Self = Self { entries: u64::MAX, time: Duration::from_secs(600) };

    pub(super) fn budget(self) -> Budget {
        Budget { entries: self.entries, until: Instant::now() + self.time }
    }
}

/// The rest of a [`RemovalLimit`].
#[derive(Debug)]
pub(super) struct Budget {
    entries: u64,
    until: Instant,
}

impl Budget {
    pub(super) fn spend(&mut self) -> io::Result<()> {
        match self.entries.checked_sub(1).filter(|_| Instant::now() < self.until) {
            Some(left) => {
                self.entries = left;
                Ok(())
            }
            None => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "too many files for one call; the next call continues",
            )),
        }
    }
}

/// Names kept in memory at a time: a directory may have millions.
const BATCH: usize = 10_000;

/// Removes the directory `name` in `parent`, which no child can write; does nothing if it is missing.
pub(crate) fn remove_tree(parent: &Path, name: &OsStr) -> io::Result<()> {
    remove_up_to(parent, name, RemovalLimit::TREE)
}

/// Removes any kind of file at a path that no child can write.
pub(crate) fn remove_any(path: &Path) -> io::Result<()> {
    remove_tree(path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default())
}

/// As [`remove_tree`], up to a limit.
pub(super) fn remove_up_to(parent: &Path, name: &OsStr, limit: RemovalLimit) -> io::Result<()> {
    let parent = match Beneath::open(parent, Path::new("")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    remove_in(&parent, name, &mut limit.budget())
}

/// Removes the entries of `directory` whose name is `unwanted`.
pub(super) fn remove_where(
    directory: &Beneath,
    budget: &mut Budget,
    unwanted: impl Fn(&[u8]) -> bool,
) -> io::Result<()> {
    loop {
        let found = names_where(directory, budget, &unwanted)?;
        if found.is_empty() {
            return Ok(());
        }
        for name in found {
            remove_in(directory, OsStr::from_bytes(name.as_bytes()), budget)?;
        }
    }
}

/// Removes any file `name` in `parent`, which a child may write meanwhile; does nothing if it is missing.
fn remove_in(parent: &Beneath, name: &OsStr, budget: &mut Budget) -> io::Result<()> {
    if removed(unlinkat(parent, name, AtFlags::empty()))? {
        return Ok(());
    }
    let top = enter(parent, name)?;
    let mut number = 0_u64;
    // Each round removes all entries and moves up the directories of the next level.
    loop {
        let found = names(&top, budget)?;
        if found.is_empty() {
            break;
        }
        for inner in found {
            if !removed(unlinkat(&top, &*inner, AtFlags::empty()))?
                && !removed(unlinkat(&top, &*inner, AtFlags::REMOVEDIR))?
            {
                empty(&top, &inner, &mut number, budget)?;
            }
        }
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes the files of a directory and moves its directories up to `top`.
fn empty(top: &Beneath, name: &CString, number: &mut u64, budget: &mut Budget) -> io::Result<()> {
    let directory = enter(top, OsStr::from_bytes(name.as_bytes()))?;
    for inner in names(&directory, budget)? {
        if removed(unlinkat(&directory, &*inner, AtFlags::empty()))?
            || removed(unlinkat(&directory, &*inner, AtFlags::REMOVEDIR))?
        {
            continue;
        }
        *number += 1;
        let up = format!(".removed-{number}");
        match renameat(&directory, &*inner, top, &up) {
            Ok(()) | Err(Errno::NOENT | Errno::EXIST | Errno::NOTEMPTY) => {}
            Err(Errno::ACCESS) => {
                // A directory must be writable to be moved: its `..` changes.
                directory.restore_access(OsStr::from_bytes(inner.as_bytes()))?;
                renameat(&directory, &*inner, top, &up)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn enter(parent: &Beneath, name: &OsStr) -> io::Result<Beneath> {
    let inner = Path::new(name);
    // The child may have removed the owner's access.
    parent.restore_access(name)?;
    parent.dir(inner)
}

fn names(directory: &Beneath, budget: &mut Budget) -> io::Result<Vec<CString>> {
    names_where(directory, budget, |_| true)
}

pub(super) fn names_where(
    directory: &Beneath,
    budget: &mut Budget,
    wanted: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<CString>> {
    let mut found = Vec::new();
    for entry in directory.entries()? {
        budget.spend()?;
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." && wanted(name.as_bytes()) {
            found.push(name);
        }
        if found.len() == BATCH {
            break;
        }
    }
    Ok(found)
}

/// Whether the name is gone; `false` if it is a directory, or one that is not empty.
fn removed(result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        // For a directory unlink fails with EISDIR on Linux, with EPERM by POSIX.
        Err(Errno::ISDIR | Errno::PERM | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::{Mode, OFlags, mkdirat, openat};

    use super::*;

    #[test]
    fn hostile_tree_is_removed_and_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        let root = data.path().join("tree");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join("closed/in")).unwrap();
        fs::write(root.join("closed/in/file"), "x").unwrap();
        fs::write(root.join("a/b/file"), "x").unwrap();
        fs::write(data.path().join("keep"), "").unwrap();
        symlink(data.path(), root.join("a/up")).unwrap();
        symlink(data.path().join("keep"), root.join("link")).unwrap();
        for directory in ["closed/in", "closed"] {
            fs::set_permissions(root.join(directory), fs::Permissions::from_mode(0o0)).unwrap();
        }
        // Deeper than a process has descriptors, or a path has characters.
        let mut deep = Beneath::open(&root, Path::new("a")).unwrap();
        for _ in 0..3000 {
            mkdirat(&deep, "deeper", Mode::RWXU).unwrap();
            deep = deep.dir(Path::new("deeper")).unwrap();
        }
        drop(openat(&deep, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap());
        remove_tree(data.path(), OsStr::new("tree")).unwrap();
        remove_tree(data.path(), OsStr::new("tree")).unwrap();
        assert!(!root.exists() && data.path().join("keep").exists());
        // A link in the directory's place goes, and not what it leads to.
        fs::create_dir(data.path().join("other")).unwrap();
        symlink("other", &root).unwrap();
        remove_tree(data.path(), OsStr::new("tree")).unwrap();
        assert!(fs::symlink_metadata(&root).is_err() && data.path().join("other").exists());
    }

    #[test]
    fn removal_stops_at_its_limit_and_continues() {
        let data = tempfile::tempdir().unwrap();
        for number in 0..100 {
            fs::create_dir_all(data.path().join(format!("unwanted/d{}/{number}", number % 7))).unwrap();
            fs::write(data.path().join(format!("kept-{number}")), "").unwrap();
        }
        let directory = Beneath::open(data.path(), Path::new("")).unwrap();
        let remove = |entries, time| {
            let limit = RemovalLimit { entries, time };
            remove_where(&directory, &mut limit.budget(), |name| name == b"unwanted")
        };
        let long = Duration::from_secs(60);
        for (entries, time) in [(0, long), (50, long), (u64::MAX, Duration::ZERO)] {
            assert_eq!(remove(entries, time).unwrap_err().kind(), io::ErrorKind::TimedOut, "{entries}");
        }
        // Entries that stay count as well; each call leaves fewer.
        let tries = (0..100).take_while(|_| remove(150, long).is_err()).count();
        assert!(tries > 0 && tries < 100, "{tries}");
        assert!(!data.path().join("unwanted").exists() && data.path().join("kept-99").exists());
    }

    #[test]
    fn huge_directory_is_removed() {
        let data = tempfile::tempdir().unwrap();
        let root = data.path().join("tree");
        fs::create_dir(&root).unwrap();
        for number in 0..25_000 {
            fs::hard_link(data.path().join("one"), root.join(number.to_string()))
                .or_else(|_| fs::write(data.path().join("one"), ""))
                .unwrap();
        }
        remove_tree(data.path(), OsStr::new("tree")).unwrap();
        assert!(!root.exists());
    }
}
