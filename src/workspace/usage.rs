//! Disk usage of a session's directories, by counting. Follows no links. Blocking.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, statat};

use super::Workspace;
use super::beneath::Beneath;
use crate::config::Limits;

/// Files of a session with `limits.workspace_bytes` alone: empty files must not make the count endless.
const USUAL_FILES: u64 = 1_000_000;
/// Maximum depth of directories: each level holds two descriptors while it is counted.
const MAX_DEPTH: usize = 100;
/// Size of a block in `st_blocks`.
const BLOCK: u64 = 512;

/// Size of a session's files up to which callers add to them, if `limits.workspace_bytes` is unset.
#[cfg(feature = "server")]
const UPLOADED_BYTES: u64 = 1 << 30;
/// Their number, if `limits.workspace_files` is unset.
#[cfg(feature = "server")]
const UPLOADED_FILES: u64 = 10_000;

/// Limits of the files of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UsageLimits {
    bytes: u64,
    files: u64,
}

/// What the files of a session occupy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

/// A limit that the files of a session exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Excess {
    pub(crate) limit: u64,
    /// What is counted, and the key of the limit.
    pub(crate) what: &'static str,
}

impl UsageLimits {
    /// `None` if nothing is limited.
    pub(crate) fn of(limits: &Limits) -> Option<Self> {
        if limits.workspace_bytes.is_none() && limits.workspace_files.is_none() {
            return None;
        }
        Some(Self {
            bytes: limits.workspace_bytes.unwrap_or(u64::MAX),
            files: limits.workspace_files.unwrap_or(USUAL_FILES),
        })
    }

    /// Those of files that callers write by themselves. There always are some: a caller whose child may write nothing could
    /// fill the disk.
    #[cfg(feature = "server")]
    pub(crate) fn of_uploads(limits: &Limits) -> Self {
        Self {
            bytes: limits.workspace_bytes.unwrap_or(UPLOADED_BYTES),
            files: limits.workspace_files.unwrap_or(UPLOADED_FILES),
        }
    }

    /// What may be there before another file of this size.
    #[cfg(feature = "server")]
    pub(crate) fn before_another(self, bytes: u64) -> Self {
        Self { bytes: self.bytes.saturating_sub(bytes), files: self.files.saturating_sub(1) }
    }
}

impl Workspace {
    /// What record and directories occupy: at least this much, if there are too many files to be counted.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let limits = UsageLimits { bytes: u64::MAX, files: USUAL_FILES };
        let mut count = Count { limits, bytes: 0, files: 0 };
        for root in [self.beneath(), Beneath::open(self.record().path(), Path::new(""))] {
            let root = match root {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            // The directory itself. An error ends the count of a directory that is being removed.
            count.files += 1;
            if let Err(Stopped::Io(error)) = count.directory(&root, 0)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
        Ok(Usage { bytes: count.bytes, files: count.files })
    }

    /// The first limit that the session's files exceed, if any; the count ends there.
    pub(crate) fn excess(&self, limits: UsageLimits) -> io::Result<Option<Excess>> {
        let root = match self.beneath() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut count = Count { limits, bytes: 0, files: 0 };
        match count.directory(&root, 0) {
            Ok(()) => Ok(None),
            Err(Stopped::Excess(excess)) => Ok(Some(excess)),
            Err(Stopped::Io(error)) => Err(error),
        }
    }
}

struct Count {
    limits: UsageLimits,
    bytes: u64,
    files: u64,
}

enum Stopped {
    Excess(Excess),
    Io(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Count {
    fn directory(&mut self, directory: &Beneath, depth: usize) -> Result<(), Stopped> {
        if depth > MAX_DEPTH {
            let (limit, what) = (MAX_DEPTH as u64, "levels of directories");
            return Err(Stopped::Excess(Excess { limit, what }));
        }
        for entry in directory.entries()? {
            // Removed or replaced since its name was read.
            let Ok(entry) = entry else { continue };
            let name = entry.file_name();
            if [&b"."[..], b".."].contains(&name.to_bytes()) {
                continue;
            }
            let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            self.add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let name = OsStr::from_bytes(name.to_bytes());
                match open(directory, name) {
                    Err(error) if is_gone(&error) => {}
                    inner => self.directory(&inner?, depth + 1)?,
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, bytes: u64) -> Result<(), Stopped> {
        (self.bytes, self.files) = (self.bytes.saturating_add(bytes), self.files + 1);
        if self.bytes > self.limits.bytes {
            let (limit, what) = (self.limits.bytes, "bytes (limits.workspace_bytes)");
            return Err(Stopped::Excess(Excess { limit, what }));
        }
        if self.files > self.limits.files {
            let (limit, what) = (self.limits.files, "files (limits.workspace_files)");
            return Err(Stopped::Excess(Excess { limit, what }));
        }
        Ok(())
    }
}

/// Opens a directory, also one whose access the child removed: its files count too.
fn open(directory: &Beneath, name: &OsStr) -> io::Result<Beneath> {
    match directory.dir(Path::new(name)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            directory.restore_access(name)?;
            directory.dir(Path::new(name))
        }
        opened => opened,
    }
}

/// Whether the directory was removed, or replaced by another file, since it was seen.
fn is_gone(error: &io::Error) -> bool {
    [libc::ENOENT, libc::ENOTDIR, libc::ELOOP].into_iter().any(|errno| error.raw_os_error() == Some(errno))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::tests::workspace;
    use super::*;

    fn excess(workspace: &Workspace, bytes: Option<u64>, files: Option<u64>) -> Option<&'static str> {
        let limits = Limits { workspace_bytes: bytes, workspace_files: files, ..Limits::default() };
        workspace.excess(UsageLimits::of(&limits).unwrap()).unwrap().map(|excess| excess.what)
    }

    #[test]
    fn usage_counts_all_directories_and_stops_at_a_limit() {
        assert_eq!(UsageLimits::of(&Limits::default()), None);
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let (bytes, files) = ("bytes (limits.workspace_bytes)", "files (limits.workspace_files)");
        assert_eq!(excess(&workspace, Some(1 << 20), None), None);
        for directory in [&workspace.dirs.work, &workspace.dirs.home, &workspace.dirs.tmp] {
            let inner = directory.join("a/.hidden");
            fs::create_dir_all(&inner).unwrap();
            fs::write(inner.join("file"), vec![1; 2 << 20]).unwrap();
            assert_eq!(excess(&workspace, Some(1 << 20), None), Some(bytes), "{directory:?}");
            assert_eq!(excess(&workspace, Some(3 << 20), Some(100)), None);
            fs::remove_file(inner.join("file")).unwrap();
        }
        for number in 0..100 {
            symlink("/", workspace.dirs.work.join(number.to_string())).unwrap();
        }
        assert_eq!(excess(&workspace, None, Some(100)), Some(files));
        assert_eq!(excess(&workspace, None, Some(200)), None, "no link is followed");
    }

    #[test]
    fn usage_of_closed_and_deep_directories_counts() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let closed = workspace.dirs.work.join("closed");
        fs::create_dir(&closed).unwrap();
        fs::write(closed.join("file"), vec![1; 2 << 20]).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        assert_eq!(excess(&workspace, Some(1 << 20), None), Some("bytes (limits.workspace_bytes)"));
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        fs::remove_dir_all(&closed).unwrap();
        let deep = std::iter::repeat_n("d", MAX_DEPTH + 1).collect::<std::path::PathBuf>();
        fs::create_dir_all(workspace.dirs.work.join(deep)).unwrap();
        assert_eq!(excess(&workspace, Some(1 << 20), None), Some("levels of directories"));
    }

    #[test]
    fn usage_has_directories_and_record() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let before = workspace.usage().unwrap();
        assert_eq!(before.files, 5, "session directory, three in it, record directory");
        fs::write(workspace.record().session_file(), vec![1; 1 << 20]).unwrap();
        fs::write(workspace.dirs.work.join("file"), vec![1; 2 << 20]).unwrap();
        let after = workspace.usage().unwrap();
        assert_eq!(after.files, 7);
        assert!((3 << 20..4 << 20).contains(&(after.bytes - before.bytes)), "{after:?}");
        workspace.delete().unwrap();
        assert_eq!(workspace.usage().unwrap(), Usage::default());
    }

    #[test]
    fn sparse_file_counts_by_its_blocks() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let file = fs::File::create(workspace.dirs.work.join("sparse")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert_eq!(excess(&workspace, Some(1 << 20), None), None);
    }

    #[cfg(feature = "server")]
    #[test]
    fn uploads_are_always_limited() {
        let limits = UsageLimits::of_uploads(&Limits::default());
        assert_eq!(limits, UsageLimits { bytes: UPLOADED_BYTES, files: UPLOADED_FILES });
        let configured = Limits { workspace_bytes: Some(7), workspace_files: Some(3), ..Limits::default() };
        let left = UsageLimits::of_uploads(&configured).before_another(5);
        assert_eq!(left, UsageLimits { bytes: 2, files: 2 });
        assert_eq!(left.before_another(9), UsageLimits { bytes: 0, files: 1 });
    }
}
