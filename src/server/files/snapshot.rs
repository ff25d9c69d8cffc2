//! Snapshot of a workspace's files, taken without following symbolic links.
//!
//! Tools of a child write concurrently: see [`crate::workspace::beneath`]. Blocking.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, statat};

use crate::workspace::beneath::{Beneath, ChildDir};

/// Maximum files in a snapshot. A larger workspace is partial, and the answer reports that.
const MAX_FILES: usize = 20_000;
/// Maximum directory entries of any kind: a directory may hold millions of links, pipes or directories.
const MAX_ENTRIES: usize = 200_000;
/// Maximum depth; each level holds a descriptor during the walk.
const MAX_DEPTH: usize = 32;
/// Directories that are skipped: installed packages are not the turn's work.
const SKIPPED: [&[u8]; 1] = [b"node_modules"];

/// Identity of a file's content: the owner cannot set back the change time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileVersion {
    pub(crate) size: u64,
    inode: u64,
    owner: u32,
    changed: (i64, i64),
    modified: (i64, i64),
}

impl FileVersion {
    /// Whether the content is that of the later version.
    pub(crate) fn is_same(&self, later: &Self) -> bool {
        let is_same_file = (self.size, self.inode) == (later.size, later.inode);
        // The server gives files to the user id of a child when it starts, which sets the change time. No child can.
        let is_given = self.owner != later.owner;
        is_same_file && if is_given { self.modified == later.modified } else { self.changed == later.changed }
    }

    /// Whether the file was written before `moment`.
    pub(crate) fn is_before(&self, moment: SystemTime) -> bool {
        let moment = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(moment.as_secs()).unwrap_or(i64::MAX);
        self.changed < (seconds, i64::from(moment.subsec_nanos()))
    }
}

/// Files of a workspace at one moment, by relative path.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) files: BTreeMap<PathBuf, FileVersion>,
    pub(crate) partial: bool,
}

/// Takes a snapshot of a working directory. One that was removed is empty: a session at rest needs none.
pub(crate) fn of(work: &ChildDir) -> io::Result<Snapshot> {
    match work.open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Snapshot::default()),
        opened => look(&opened?),
    }
}

/// Takes a snapshot without dotfiles and skipped directories.
pub(super) fn look(work: &Beneath) -> io::Result<Snapshot> {
    let mut walk = Walk { snapshot: Snapshot::default(), entries: 0 };
    walk.directory(work, Path::new(""), 0)?;
    Ok(walk.snapshot)
}

struct Walk {
    snapshot: Snapshot,
    entries: usize,
}

impl Walk {
    fn directory(&mut self, directory: &Beneath, path: &Path, depth: usize) -> io::Result<()> {
        for entry in directory.entries()? {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                self.snapshot.partial = true;
                break;
            }
            // Removed or replaced since its name was read.
            let Ok(entry) = entry else { continue };
            let name = entry.file_name();
            if is_passed_over(name) {
                continue;
            }
            let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let name = OsStr::from_bytes(name.to_bytes());
            let path = path.join(name);
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile if self.snapshot.files.len() >= MAX_FILES => {
                    self.snapshot.partial = true
                }
                FileType::RegularFile => {
                    let size = u64::try_from(stat.st_size).unwrap_or(0);
                    let version = FileVersion {
                        size,
                        inode: stat.st_ino,
                        owner: stat.st_uid,
                        changed: (stat.st_ctime, stat.st_ctime_nsec.cast_signed()),
                        modified: (stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
                    };
                    self.snapshot.files.insert(path, version);
                }
                FileType::Directory if depth >= MAX_DEPTH => self.snapshot.partial = true,
                FileType::Directory => {
                    if let Ok(inner) = directory.dir(Path::new(name)) {
                        self.directory(&inner, &path, depth + 1)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_passed_over(name: &CStr) -> bool {
    let name = name.to_bytes();
    // Includes ".", "..", `.git` and credentials.
    name.starts_with(b".") || SKIPPED.contains(&name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(root: &tempfile::TempDir) -> Beneath {
        Beneath::open(root.path(), Path::new("")).unwrap()
    }

    fn look(root: &tempfile::TempDir) -> Snapshot {
        super::look(&open(root)).unwrap()
    }

    #[test]
    fn hidden_files_links_and_packages_are_skipped() {
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
        let seen: Vec<_> = look(&root).files.into_keys().collect();
        assert_eq!(seen, [Path::new("a/b/deep"), Path::new("top")]);
        for file in ["way_out/secret", "a/link", "../secret", "", "/etc/passwd", "a"] {
            assert!(open(&root).beginning(Path::new(file), 10).is_err(), "{file}");
        }
        assert_eq!(open(&root).beginning(Path::new("a/b/deep"), 10).unwrap(), b"1");
    }

    #[test]
    fn file_given_to_a_child_is_the_same() {
        let kept = FileVersion { size: 3, inode: 7, owner: 0, changed: (5, 0), modified: (4, 0) };
        let given = FileVersion { owner: 1_000_000, changed: (6, 0), ..kept };
        assert!(kept.is_same(&kept) && kept.is_same(&given));
        assert!(!kept.is_same(&FileVersion { modified: (6, 0), ..given }), "given and written");
        assert!(!kept.is_same(&FileVersion { changed: (6, 0), ..kept }), "written with its old time");
        assert!(!kept.is_same(&FileVersion { inode: 8, ..given }));
    }

    #[test]
    fn written_file_has_another_version() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("f"), "one").unwrap();
        let before = look(&root);
        assert_eq!(look(&root).files, before.files);
        std::fs::write(root.path().join("f"), "four").unwrap();
        assert_ne!(look(&root).files, before.files);
    }
}
