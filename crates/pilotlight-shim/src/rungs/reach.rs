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

/// Maximum number of entries that replace directories above hidden paths. Each costs a descriptor and some microseconds
/// at each start; a configuration file beside hundreds of others belongs into a directory of its own.
const MAX_ENTRIES: usize = 512;

/// A part of a mount that can be shown.
#[derive(Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) path: PathBuf,
    /// The path below the mount.
    pub(crate) below: PathBuf,
    pub(crate) kind: Kind,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Kind {
    /// Everything at and below the path.
    Tree,
    /// A symbolic link. Its target is in reach by its own path, or not at all.
    Link,
    /// A directory above a hidden path; its entries follow.
    Above,
}

/// Opens a mount's path as a mere reference. A path that the CLI may write is the session's own and must have no symbolic
/// link: the CLI could have planted it.
pub(crate) fn open(path: &Path, write: bool) -> io::Result<OwnedFd> {
    let resolve = if write { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::empty() };
    Ok(openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// The parts of a mount that lead to no hidden path: usually the whole.
pub(crate) fn parts(mount: &Mount, hidden: &[PathBuf]) -> io::Result<Vec<Part>> {
    let root = if mount.write { mount.path.clone() } else { fs::canonicalize(&mount.path)? };
    let mut found = Vec::new();
    collect(root, PathBuf::new(), hidden, &mut found)?;
    Ok(found)
}

fn collect(path: PathBuf, below: PathBuf, hidden: &[PathBuf], found: &mut Vec<Part>) -> io::Result<()> {
    if hidden.iter().any(|hidden| path.starts_with(hidden)) {
        return Ok(());
    }
    if found.len() >= MAX_ENTRIES {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    if !hidden.iter().any(|hidden| hidden.starts_with(&path)) {
        // The mount itself is never a link: it is resolved, or refused when it is opened.
        let is_link = !below.as_os_str().is_empty() && path.is_symlink();
        let kind = if is_link { Kind::Link } else { Kind::Tree };
        found.push(Part { path, below, kind });
        return Ok(());
    }
    found.push(Part { path: path.clone(), below: below.clone(), kind: Kind::Above });
    for entry in fs::read_dir(&path)? {
        let entry = entry?;
        collect(entry.path(), below.join(entry.file_name()), hidden, found)?;
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

        fn parts(&self, hidden: &[&str]) -> Vec<String> {
            let hidden: Vec<_> = hidden.iter().map(|path| self.0.join(path)).collect();
            let found = parts(&Mount::read(&self.0), &resolved(&hidden)).unwrap();
            found.iter().for_each(|part| assert_eq!(part.path, self.0.join(&part.below)));
            let sign = |kind: &Kind| match kind {
                Kind::Tree => "",
                Kind::Link => "@",
                Kind::Above => "/",
            };
            let mut names: Vec<_> =
                found.iter().map(|part| format!("{}{}", part.below.display(), sign(&part.kind))).collect();
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
    fn parts_contain_no_hidden_path() {
        let dir = Dir::new("parts");
        dir.make(&["a/b/c", "d"], &["a/keys", "a/b/x", "a/b/c/secret", "e"]);
        symlink(dir.0.join("a"), dir.0.join("link")).unwrap();
        for (hidden, expected) in [
            (&[][..], &[""][..]),
            (&["elsewhere/x"], &["/", "a", "d", "e", "link@"]),
            (&["d"], &["/", "a", "e", "link@"]),
            (&["a/keys"], &["/", "a/", "a/b", "d", "e", "link@"]),
            (&["a/keys", "a/b/c/secret"], &["/", "a/", "a/b/", "a/b/c/", "a/b/x", "d", "e", "link@"]),
            (&["link/keys"], &["/", "a/", "a/b", "d", "e", "link@"]),
            (&["a/not-yet-there"], &["/", "a/", "a/b", "a/keys", "d", "e", "link@"]),
            (&["."], &[]),
            (&["a/b/c", "a"], &["/", "d", "e", "link@"]),
        ] {
            assert_eq!(dir.parts(hidden), expected, "hidden {hidden:?}");
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
