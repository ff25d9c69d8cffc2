//! The file of the audit log: appended to, and renamed when it is full.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::support::secret_file;

/// Only the server's user may read it.
const MODE: u32 = 0o600;

#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    files: u32,
    file: File,
}

impl LogFile {
    pub(super) fn open(path: &Path, max_bytes: u64, files: u32) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), max_bytes, files, file: open(path)? })
    }

    /// Opens what has the name now: another program may have renamed the file.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(&self.path, self.max_bytes, self.files)?;
        Ok(())
    }

    /// Appends whole lines, or nothing. Lines that no name leads to would be lost: a file that was deleted is begun again.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.file.metadata()?.nlink() == 0 {
            self.reopen()?;
        }
        // Other programs may have cut it off.
        let mut size = self.file.metadata()?.len();
        if size > 0 && size.saturating_add(lines.len() as u64) > self.max_bytes {
            self.rotate()?;
            size = self.file.metadata()?.len();
        }
        self.file.write_all(lines).inspect_err(|_| {
            // A part of a line would spoil the next one. If this fails too, the line is in two parts.
            self.file.set_len(size).ok();
        })
    }

    /// Renames each file to the next number, and begins another one.
    fn rotate(&mut self) -> io::Result<()> {
        if self.files == 1 {
            return self.file.set_len(0);
        }
        // Renamed already, by an attempt that found no way to begin another file: the others stay where they are.
        if matches!(fs::symlink_metadata(&self.path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
            return self.reopen();
        }
        for number in (1..self.files - 1).rev() {
            renamed(&numbered(&self.path, number), &numbered(&self.path, number + 1))?;
        }
        renamed(&self.path, &numbered(&self.path, 1))?;
        self.reopen()
    }
}

/// Neither a link is followed nor a pipe or device opened, which could block or end elsewhere. What others may write proves
/// nothing, and what they may read is theirs as well.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(MODE)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let fit = secret_file::check(&file.metadata()?);
    fit.map_err(|problem| io::Error::new(io::ErrorKind::InvalidInput, problem.to_string()))?;
    Ok(file)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

fn renamed(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn texts(directory: &Path) -> Vec<(String, String)> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap())
        });
        let mut texts: Vec<_> = entries.collect();
        texts.sort();
        texts
    }

    #[test]
    fn full_files_are_renamed_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let mut log = LogFile::open(&path, 8, 3).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        for line in ["one..\n", "two..\n", "three\n", "four.\n", "a\n"] {
            log.append(line.as_bytes()).unwrap();
        }
        let expected = [("audit", "four.\na\n"), ("audit.1", "three\n"), ("audit.2", "two..\n")];
        assert_eq!(texts(directory.path()), expected.map(|(name, text)| (name.to_owned(), text.to_owned())));

        // A start goes on in the same file, and a single file begins again.
        let mut log = LogFile::open(&path, 8, 1).unwrap();
        log.append(b"more\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "more\n");
    }

    #[test]
    fn rotation_that_was_interrupted_moves_nothing_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let mut log = LogFile::open(&path, 8, 4).unwrap();
        log.append(b"one..\n").unwrap();
        // As after a rename, when no other file could be opened.
        fs::rename(&path, numbered(&path, 1)).unwrap();
        log.append(b"two..\n").unwrap();
        let expected = [("audit", "two..\n"), ("audit.1", "one..\n")];
        assert_eq!(texts(directory.path()), expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    }

    #[test]
    fn links_and_pipes_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (link, elsewhere) = (directory.path().join("link"), directory.path().join("elsewhere"));
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        LogFile::open(&link, 8, 1).unwrap_err();
        assert!(!elsewhere.exists());
        LogFile::open(Path::new("/dev/null"), 8, 1).unwrap_err();
        LogFile::open(directory.path(), 8, 1).unwrap_err();
    }

    #[test]
    fn file_that_others_may_use_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        for (mode, fits) in [(0o666, false), (0o620, false), (0o644, false), (0o640, true), (0o600, true)] {
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(LogFile::open(&path, 8, 1).is_ok(), fits, "{mode:o}");
        }
    }

    #[test]
    fn file_deleted_by_another_program_is_begun_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let mut log = LogFile::open(&path, 1 << 20, 2).unwrap();
        log.append(b"old\n").unwrap();
        fs::remove_file(&path).unwrap();
        log.append(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
        // A link that is put in its place is not followed, and the loss is reported.
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(directory.path().join("elsewhere"), &path).unwrap();
        log.append(b"more\n").unwrap_err();
        assert!(!directory.path().join("elsewhere").exists());
    }

    #[test]
    fn file_cut_off_by_another_program_has_its_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let mut log = LogFile::open(&path, 8, 2).unwrap();
        log.append(b"one..\n").unwrap();
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        log.append(b"two..\n").unwrap();
        assert_eq!(texts(directory.path()), [("audit".to_owned(), "two..\n".to_owned())]);
    }

    #[test]
    fn file_renamed_by_another_program_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let mut log = LogFile::open(&path, 1 << 20, 2).unwrap();
        log.append(b"old\n").unwrap();
        fs::rename(&path, directory.path().join("kept")).unwrap();
        log.reopen().unwrap();
        log.append(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
    }
}
