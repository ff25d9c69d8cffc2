//! What of the file system a mount brings into reach, if something below it is hidden.
//!
//! Landlock and bind mounts grant whole trees. A directory above a hidden path is therefore replaced by its other
//! entries. A file that replaces a hidden one by rename(2) stays out of reach, too.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::super::isolation::Mount;

/// Maximum number of entries that replace directories above hidden paths. Each costs a few microseconds at each start;
/// a configuration file in a directory of packages or of home directories is a mistake.
const MAX_ENTRIES: usize = 4096;

/// Opens a mount's path as a mere reference. A path that the CLI may write is the session's own and must have no symbolic
/// link: the CLI could have planted it.
pub(crate) fn open(path: &Path, write: bool) -> io::Result<OwnedFd> {
    let resolve = if write { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::empty() };
    Ok(openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// The trees that replace `mount`: itself, or entries of it that lead to no hidden path.
pub(crate) fn trees(mount: &Mount, hidden: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let root = if mount.write { mount.path.clone() } else { fs::canonicalize(&mount.path)? };
    let mut found = Vec::new();
    collect(root, hidden, &mut found)?;
    Ok(found)
}

fn collect(tree: PathBuf, hidden: &[PathBuf], found: &mut Vec<PathBuf>) -> io::Result<()> {
    if hidden.iter().any(|hidden| tree.starts_with(hidden)) {
        return Ok(());
    }
    if !hidden.iter().any(|hidden| hidden.starts_with(&tree)) {
        if found.len() == MAX_ENTRIES {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        found.push(tree);
        return Ok(());
    }
    for entry in fs::read_dir(&tree)? {
        let entry = entry?;
        // The target of a link is in reach by its own path, or not at all.
        if !entry.file_type()?.is_symlink() {
            collect(entry.path(), hidden, found)?;
        }
    }
    Ok(())
}

/// Hidden paths without symbolic links. The last component may be missing: the file may be created later.
pub(crate) fn resolved(hidden: &[PathBuf]) -> Vec<PathBuf> {
    hidden.iter().flat_map(|path| [fs::canonicalize(path).ok(), in_resolved_parent(path)]).flatten().collect()
}

fn in_resolved_parent(path: &Path) -> Option<PathBuf> {
    let parent = path.parent()?;
    Some(fs::canonicalize(parent).unwrap_or_else(|_| parent.to_owned()).join(path.file_name()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory below the target directory that removes itself.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("pilotlight-reach-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(fs::canonicalize(dir).unwrap())
        }

        fn make(&self, dirs: &[&str], files: &[&str]) {
            dirs.iter().for_each(|dir| fs::create_dir_all(self.0.join(dir)).unwrap());
            files.iter().for_each(|file| fs::write(self.0.join(file), "x").unwrap());
        }

        fn trees(&self, hidden: &[&str]) -> Vec<String> {
            let hidden: Vec<_> = hidden.iter().map(|path| self.0.join(path)).collect();
            let found = trees(&Mount::read(&self.0), &resolved(&hidden)).unwrap();
            let mut names: Vec<_> = found
                .iter()
                .map(|path| path.strip_prefix(&self.0).unwrap().to_str().unwrap().to_owned())
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn trees_contain_no_hidden_path() {
        let dir = Dir::new("trees");
        dir.make(&["a/b/c", "d"], &["a/keys", "a/b/x", "a/b/c/secret", "e"]);
        symlink(dir.0.join("a"), dir.0.join("link")).unwrap();
        for (hidden, expected) in [
            (&[][..], &[""][..]),
            (&["elsewhere/x"], &["a", "d", "e"]),
            (&["d"], &["a", "e"]),
            (&["a/keys"], &["a/b", "d", "e"]),
            (&["a/keys", "a/b/c/secret"], &["a/b/x", "d", "e"]),
            (&["link/keys"], &["a/b", "d", "e"]),
            (&["a/not-yet-there"], &["a/b", "a/keys", "d", "e"]),
            (&["."], &[]),
            (&["a/b/c", "a"], &["d", "e"]),
        ] {
            assert_eq!(dir.trees(hidden), expected, "hidden {hidden:?}");
        }
    }

    #[test]
    fn writable_path_with_a_link_is_refused() {
        let dir = Dir::new("links");
        dir.make(&["own/tmp", "others"], &["others/secret"]);
        symlink(dir.0.join("others"), dir.0.join("own/work")).unwrap();
        assert!(open(&dir.0.join("own/tmp"), true).is_ok());
        for planted in ["own/work", "own/work/secret"] {
            assert!(open(&dir.0.join(planted), false).is_ok());
            let error = open(&dir.0.join(planted), true).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP), "{planted}");
        }
    }
}
