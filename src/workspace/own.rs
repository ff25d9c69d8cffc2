//! Access to the server's own files.
//!
//! Children of another user cannot reach them. Children of the same user, and a damaged disk, may leave anything in their
//! place: opening never waits, and reading has a limit. Blocking.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::beneath::{Beneath, ReadError};
use super::remove::{RemovalLimit, remove_up_to};

/// Limit of what is removed from a file's place, while sessions wait.
const IN_THE_WAY: RemovalLimit = RemovalLimit { entries: 10_000, time: Duration::from_secs(1) };

/// Reads a file of at most `limit` bytes. It may have several names: backups use hard links.
pub(crate) fn read_own(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let (directory, name) = (path.parent(), path.file_name());
    let directory = directory.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Beneath::open(directory, Path::new(""))?.read_linked(Path::new(name.unwrap_or_default()), limit)
}

/// Opens a file for reading.
pub(crate) fn open_to_read(path: &Path) -> Result<File, ReadError> {
    let (directory, name) = (path.parent(), path.file_name());
    let directory = directory.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Beneath::open(directory, Path::new(""))?.file_linked(Path::new(name.unwrap_or_default()))
}

/// Opens a file to be written in place; creates it with mode 0600. Removes anything but a regular file in its place.
pub(crate) fn open_own(path: &Path) -> io::Result<File> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        tracing::warn!("removing what is no file in the place of a server file");
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        remove_up_to(directory, path.file_name().unwrap_or_default(), IN_THE_WAY)?;
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::{FileExt, symlink};
    use std::path::PathBuf;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    /// Creators of files that block, never end or are too large.
    pub(crate) const TRAPS: [fn(&Path); 5] = [
        |path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
        |path| symlink("/dev/zero", path).unwrap(),
        |path| fs::create_dir(path).unwrap(),
        |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        |path| File::create(path).unwrap().set_len(1 << 40).unwrap(),
    ];

    #[test]
    fn reading_a_trap_does_not_block() {
        let data = tempfile::tempdir().unwrap();
        let at = |number: usize| -> PathBuf { data.path().join(number.to_string()) };
        for (number, set) in TRAPS.iter().enumerate() {
            set(&at(number));
            let refused = read_own(&at(number), 8).unwrap_err();
            assert!(
                matches!(refused, ReadError::NotRegular | ReadError::TooLarge { .. }),
                "{number}: {refused}"
            );
        }
        assert!(read_own(&at(9), 8).unwrap_err().is_absent());
        fs::write(at(9), "12345678").unwrap();
        fs::hard_link(at(9), at(10)).unwrap();
        assert_eq!(read_own(&at(10), 8).unwrap(), b"12345678");
        assert!(matches!(read_own(&at(10), 7), Err(ReadError::TooLarge { size: 8, limit: 7 })));
    }

    #[test]
    fn opening_replaces_a_trap() {
        let data = tempfile::tempdir().unwrap();
        for (number, set) in TRAPS.iter().enumerate() {
            let path = data.path().join(number.to_string());
            set(&path);
            open_own(&path).unwrap().write_all_at(b"new", 0).unwrap();
            assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{number}");
        }
        let path = data.path().join("0");
        open_own(&path).unwrap().write_all_at(b"N", 0).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"New");
    }
}
