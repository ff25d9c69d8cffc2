//! Files that are replaced as a whole: a reader, or a crash, sees the old content or the new.
//!
//! The content is written to a temporary file in the same directory, which is then renamed. For directories that only
//! trusted processes write; see `workspace::beneath` for the others. Blocking.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What a completed write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Durability {
    /// A crash of this process: the kernel has the content. Needs no wait for the disk.
    Kernel,
    /// A crash of the machine: the content is on the disk when the call returns.
    Disk,
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
    let staged = Staged::write(path, content, durability, prepare)?;
    put_in_place(&mut [staged]).pop().unwrap_or(Ok(()))
}

/// New content of a file, in a temporary file beside it that is removed unless it is put in place.
#[derive(Debug)]
pub(crate) struct Staged {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    durability: Durability,
    is_in_place: bool,
}

/// Replaces several files. Each step is taken for all of them before the next: what is asked of the disk together costs
/// it fewer writes.
pub(crate) fn put_in_place(files: &mut [Staged]) -> Vec<io::Result<()>> {
    let mut results: Vec<_> = files.iter().map(Staged::sync).collect();
    for step in [Staged::rename, Staged::sync_directory] {
        for (file, result) in files.iter_mut().zip(&mut results) {
            if result.is_ok() {
                *result = step(file);
            }
        }
    }
    results
}

impl Staged {
    /// Writes the content; `prepare` gets the temporary file before.
    pub(crate) fn write(
        path: &Path,
        content: &[u8],
        durability: Durability,
        prepare: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<Self> {
        let directory = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let temporary = directory.join(temporary_name());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let mut staged = Self { file, temporary, path: path.to_owned(), durability, is_in_place: false };
        prepare(&staged.file)?;
        staged.file.write_all(content)?;
        Ok(staged)
    }

    fn sync(&self) -> io::Result<()> {
        match self.durability {
            Durability::Disk => self.file.sync_all(),
            Durability::Kernel => Ok(()),
        }
    }

    fn rename(&mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)?;
        self.is_in_place = true;
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        match (self.durability, self.path.parent()) {
            (Durability::Disk, Some(directory)) => File::open(directory)?.sync_all(),
            _ => Ok(()),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_in_place {
            // The write has failed already; a file that stays is removed by a later sweep.
            fs::remove_file(&self.temporary).ok();
        }
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
    fn one_failure_among_several_leaves_the_others() {
        let data = tempfile::tempdir().unwrap();
        let at = |name: &str| data.path().join(name);
        fs::create_dir(at("b")).unwrap();
        let stage = |name| Staged::write(&at(name), b"new", Durability::Disk, |_| Ok(())).unwrap();
        let mut staged = ["a", "b", "c"].map(stage);
        let results = put_in_place(&mut staged);
        drop(staged);
        // A file does not replace a directory.
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert!(["a", "c"].iter().all(|name| fs::read(at(name)).unwrap() == b"new"));
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 3, "a temporary file is left");
    }

    #[test]
    fn temporary_names_are_recognised() {
        assert!(is_temporary_name(&temporary_name()) && temporary_name() != temporary_name());
        for name in ["session.json", ".mine.new", "x.new", ".00000000000000000000000000000000.old"] {
            assert!(!is_temporary_name(name), "{name}");
        }
    }
}
