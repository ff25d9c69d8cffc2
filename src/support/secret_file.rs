//! Files that hold secrets, or decide who has access: read only if nobody else could have read or written them.
//!
//! The group may read (that is how secrets are mounted into containers), others nothing, and nobody but the owner
//! may write. Blocking. Must not know what is in the files.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Reading by others, writing by the group or by others.
const FORBIDDEN: u32 = 0o027;

/// Why such a file is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InsecureFile {
    /// The system's answer.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// A directory, a pipe or a device.
    #[error("it is not a regular file")]
    NoFile,
    /// Somebody else could put anything into it.
    #[error("it belongs to another user (uid {0}); make it your own or root's")]
    Foreign(u32),
    /// Others can read or write it.
    #[error("its mode {0:04o} lets others in; chmod it to 0600 (or 0640, for its group to read)")]
    Open(u32),
    /// Larger than anything sensible.
    #[error("it has {0} bytes; at most {1} are read")]
    TooLarge(u64, u64),
}

/// What tells that a file is no longer the one that was read: also a file of the same size and time that was renamed
/// into its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileId {
    /// Of the file that the path leads to now.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        path.metadata().map(|metadata| Self::of(&metadata))
    }

    /// Of an open file.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The whole file, at most `limit` bytes, and what to know it by. Checked on the open file, so that nothing can be put in
/// its place in between.
pub(crate) fn read(path: &Path, limit: u64) -> Result<(Vec<u8>, FileId), InsecureFile> {
    // Without NONBLOCK the opening of a pipe would wait for its other end.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if !metadata.is_file() {
        return Err(InsecureFile::NoFile);
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(InsecureFile::Foreign(owner));
    }
    if mode & FORBIDDEN != 0 {
        return Err(InsecureFile::Open(mode));
    }
    let mut content = Vec::new();
    // One more than allowed: it may grow while it is read.
    file.take(limit + 1).read_to_end(&mut content)?;
    let size = metadata.len().max(content.len() as u64);
    if size > limit {
        return Err(InsecureFile::TooLarge(size, limit));
    }
    Ok((content, FileId::of(&metadata)))
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_what_is_private_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        write(&file, "12345678").unwrap();
        for (mode, fits) in [(0o600, true), (0o400, true), (0o640, true), (0o644, false), (0o660, false)] {
            set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&file, 8).is_ok(), fits, "{mode:o}");
        }
        set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(read(&file, 7), Err(InsecureFile::TooLarge(8, 7))));
        assert!(matches!(read(directory.path(), 8), Err(InsecureFile::NoFile | InsecureFile::Unreadable(_))));
        assert!(matches!(read(Path::new("/nowhere"), 8), Err(InsecureFile::Unreadable(_))));
    }

    #[test]
    fn a_file_renamed_into_its_place_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let (file, other) = (directory.path().join("a"), directory.path().join("b"));
        write(&file, "one").unwrap();
        let before = FileId::at(&file).unwrap();
        assert_eq!(FileId::at(&file).unwrap(), before);
        write(&other, "two").unwrap();
        std::fs::rename(&other, &file).unwrap();
        assert_ne!(FileId::at(&file).unwrap(), before);
    }
}
