//! Files that are replaced as a whole: a reader, or a crash, sees the old content or the new.
//!
//! The content is written to a temporary file in the same directory, which is then renamed. For directories that only
//! trusted processes write; see `workspace::beneath` for the others. Blocking.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What a completed write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// A crash of the machine: the content is on the disk when the call returns.
    Disk,
    /// A crash of this process: the kernel has the content. Needs no wait for the disk.
    Kernel,
}

/// Ending of the name of a temporary file.
const SUFFIX: &str = ".new";

/// A new name: concurrent writers never share a temporary file, and a planted link is never followed.
pub(crate) fn temporary_name() -> String {
    format!(".{}{SUFFIX}", uuid::Uuid::new_v4().simple())
}

/// Whether [`temporary_name`] made this name.
pub(crate) fn is_temporary_name(name: &str) -> bool {
    let id = name.strip_prefix('.').and_then(|name| name.strip_suffix(SUFFIX));
    id.is_some_and(|id| uuid::Uuid::try_parse(id).is_ok())
}

/// Replaces a file; mode 0600.
pub(crate) fn replace(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    replace_with(path, content, durability, |_| Ok(()))
}

/// As [`replace`]; `prepare` gets the temporary file before it has content.
pub(crate) fn replace_with(
    path: &Path,
    content: &[u8],
    durability: Durability,
    prepare: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let temporary = directory.join(temporary_name());
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        prepare(&file)?;
        file.write_all(content)?;
        if durability == Durability::Disk {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    })();
    if let Err(error) = written {
        // The write has failed already; a file that stays is removed by a later sweep.
        fs::remove_file(&temporary).ok();
        return Err(error);
    }
    match durability {
        Durability::Disk => File::open(directory)?.sync_all(),
        Durability::Kernel => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn replace_is_private_and_follows_no_link() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("a.json");
        let elsewhere = data.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        for (content, durability) in [("one", Durability::Disk), ("two", Durability::Kernel)] {
            replace(&file, content.as_bytes(), durability).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), content);
        }
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!elsewhere.exists(), "a planted link was followed");
    }

    #[test]
    fn failed_write_leaves_the_old_file_alone() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("a");
        fs::write(&file, "old").unwrap();
        let fail = |_: &File| Err(io::ErrorKind::PermissionDenied.into());
        replace_with(&file, b"new", Durability::Disk, fail).unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 1, "a temporary file is left");
    }

    #[test]
    fn temporary_names_are_recognised() {
        assert!(is_temporary_name(&temporary_name()) && temporary_name() != temporary_name());
        for name in ["session.json", ".mine.new", "x.new", ".00000000000000000000000000000000.old"] {
            assert!(!is_temporary_name(name), "{name}");
        }
    }
}
