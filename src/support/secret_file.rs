//! Files with secrets or access rules: read only if no other user can read or write them.
//!
//! The group may read, as containers mount secrets that way. Only the owner may write. Independent of the content.
//! Blocking.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Mode bits that are refused: write access of the group, any access of others.
const FORBIDDEN: u32 = 0o027;
/// The same for a file without secrets: write access of others than the owner.
#[cfg(feature = "broker")]
const FORBIDDEN_IF_PUBLIC: u32 = 0o022;

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InsecureFile {
    /// Error of the operating system.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// A directory, a pipe or a device.
    #[error("it is not a regular file")]
    NotRegular,
    /// Another user owns the file and can write it.
    #[error("it belongs to another user (uid {0}); make it your own or root's")]
    ForeignOwner(u32),
    /// The mode gives access to others.
    #[error("its mode {0:04o} lets others in; chmod it to 0600 (or 0640, for its group to read)")]
    Mode(u32),
    /// Larger than the limit.
    #[error("it has {0} bytes; at most {1} are read")]
    TooLarge(u64, u64),
}

/// Identity and version of a file. Differs after any change, also for a renamed file of the same size and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileId {
    /// The id of the file at `path`, following links.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        path.metadata().map(|metadata| Self::of(&metadata))
    }

    /// The id of an open file.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Reads a file of at most `limit` bytes, with its id. Checks the open file, so a swapped path has no effect.
pub(crate) fn read(path: &Path, limit: u64) -> Result<(Vec<u8>, FileId), InsecureFile> {
    read_without(FORBIDDEN, path, limit)
}

/// Reads a file that everybody may read, and only its owner write.
#[cfg(feature = "broker")]
pub(crate) fn read_public(path: &Path, limit: u64) -> Result<Vec<u8>, InsecureFile> {
    read_without(FORBIDDEN_IF_PUBLIC, path, limit).map(|(content, _)| content)
}

/// Whether an open file is one of this user or root that nobody else may change, nor others read.
#[cfg(feature = "server")]
pub(crate) fn check(metadata: &Metadata) -> Result<(), InsecureFile> {
    check_without(FORBIDDEN, metadata)
}

fn check_without(forbidden: u32, metadata: &Metadata) -> Result<(), InsecureFile> {
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if !metadata.is_file() {
        return Err(InsecureFile::NotRegular);
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(InsecureFile::ForeignOwner(owner));
    }
    if mode & forbidden != 0 {
        return Err(InsecureFile::Mode(mode));
    }
    Ok(())
}

fn read_without(forbidden: u32, path: &Path, limit: u64) -> Result<(Vec<u8>, FileId), InsecureFile> {
    // Without NONBLOCK, opening a pipe waits for its other end.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    check_without(forbidden, &metadata)?;
    let mut content = Vec::new();
    // Reads one byte more than allowed: the file may grow meanwhile.
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
    fn only_private_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        write(&file, "12345678").unwrap();
        for (mode, fits) in [(0o600, true), (0o400, true), (0o640, true), (0o644, false), (0o660, false)] {
            set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&file, 8).is_ok(), fits, "{mode:o}");
        }
        set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(read(&file, 7), Err(InsecureFile::TooLarge(8, 7))));
        assert!(matches!(
            read(directory.path(), 8),
            Err(InsecureFile::NotRegular | InsecureFile::Unreadable(_))
        ));
        assert!(matches!(read(Path::new("/nowhere"), 8), Err(InsecureFile::Unreadable(_))));
    }

    #[test]
    fn renamed_file_has_another_id() {
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
