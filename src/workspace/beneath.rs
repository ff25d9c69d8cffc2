//! Files below a directory that a child can write.
//!
//! A child may put anything there: links out of its directory, pipes, devices, files without end. Every step goes from
//! an open directory to a name in it and follows no link, so nothing that is swapped meanwhile leads outside. A file is
//! read only if it is a regular one with a single name, up to a limit, and opening it never waits. Needs no `openat2`,
//! which kernels before 5.6 and some seccomp profiles lack. Blocking.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
#[cfg(feature = "server")]
use std::path::PathBuf;
use std::path::{Component, Path};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, chmodat, fstat, fsync, mkdirat, openat, renameat,
    statat, unlinkat,
};
use rustix::io::Errno;

use crate::support::atomic_file::{Durability, temporary_name};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// NONBLOCK: the opening of a pipe would wait for its other end, that of a leased file for its holder.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
const PRIVATE_DIRECTORY: Mode = Mode::RWXU;
const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// A directory, a link, a pipe, a socket or a device.
    #[error("it is not a regular file")]
    NotRegular,
    /// A hard link may be the server's own file, or another user's, under a second name.
    #[error("it has more than one name (hard links)")]
    HardLinked,
    /// More than is read of such a file.
    #[error("it has {size} bytes; at most {limit} are read")]
    TooLarge { size: u64, limit: u64 },
    /// The system's answer.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ReadError {
    /// Whether there is simply no such file.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// Whether the host, not the file, is the reason: another try may work.
    pub(crate) fn is_shortage(&self) -> bool {
        let shortage = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EINTR, libc::EIO];
        matches!(self, Self::Io(error) if error.raw_os_error().is_some_and(|it| shortage.contains(&it)))
    }
}

impl From<Errno> for ReadError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::LOOP | Errno::NXIO | Errno::ISDIR | Errno::NODEV => Self::NotRegular,
            errno => Self::Io(errno.into()),
        }
    }
}

impl From<ReadError> for io::Error {
    fn from(refused: ReadError) -> Self {
        match refused {
            ReadError::Io(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other.to_string()),
        }
    }
}

/// Where a directory is below which a child can write.
#[cfg(feature = "server")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChildDir {
    /// Links in it are the operator's.
    pub(crate) trusted: PathBuf,
    /// What a child may have swapped.
    pub(crate) inner: PathBuf,
}

#[cfg(feature = "server")]
impl ChildDir {
    pub(crate) fn open(&self) -> io::Result<Beneath> {
        Beneath::open(&self.trusted, &self.inner)
    }
}

/// An open directory below which a child can write.
#[derive(Debug)]
pub(crate) struct Beneath(OwnedFd);

impl Beneath {
    /// Opens `inner` below `trusted`. Links in `trusted` are the operator's and are followed; those in `inner` are not.
    pub(crate) fn open(trusted: &Path, inner: &Path) -> io::Result<Self> {
        let trusted = openat(CWD, trusted, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty())?;
        Self(trusted).dir(inner)
    }

    /// The directory at `path`.
    pub(crate) fn dir(&self, path: &Path) -> io::Result<Self> {
        let mut directory = Self(self.0.try_clone()?);
        for name in names(path) {
            directory = Self(openat(&directory.0, name?, DIRECTORY, Mode::empty())?);
        }
        Ok(directory)
    }

    /// The directory at `path`, created where it is missing, for its owner alone. What stands in its place and is no
    /// directory is removed: it is the child's own doing.
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<Self> {
        let mut directory = Self(self.0.try_clone()?);
        for name in names(path) {
            directory = Self(directory.make_one(name?)?);
        }
        Ok(directory)
    }

    fn make_one(&self, name: &OsStr) -> io::Result<OwnedFd> {
        // Each try removes what is in the way; a child that puts it back each time gets its error.
        for _ in 0..3 {
            match openat(&self.0, name, DIRECTORY, Mode::empty()) {
                Ok(directory) => return Ok(directory),
                Err(Errno::NOENT) => {}
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    tracing::warn!(
                        "something that is no directory stood in a session's place for one; it is removed"
                    );
                    unlinkat(&self.0, name, AtFlags::empty())?;
                }
                Err(Errno::ACCESS) => self.restore_access(name)?,
                Err(errno) => return Err(errno.into()),
            }
            match mkdirat(&self.0, name, PRIVATE_DIRECTORY) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(openat(&self.0, name, DIRECTORY, Mode::empty())?)
    }

    /// Gives the owner its rights back on a directory that was closed to it.
    pub(super) fn restore_access(&self, name: &OsStr) -> io::Result<()> {
        let directory = openat(&self.0, name, DIRECTORY.union(OFlags::PATH), Mode::empty())?;
        let itself = format!("/proc/self/fd/{}", directory.as_raw_fd());
        Ok(chmodat(CWD, itself, PRIVATE_DIRECTORY, AtFlags::empty())?)
    }

    /// A regular file, to be read.
    pub(crate) fn file(&self, path: &Path) -> Result<File, ReadError> {
        self.file_if(path, |stat| if stat.st_nlink > 1 { Err(ReadError::HardLinked) } else { Ok(()) })
    }

    fn file_if(&self, path: &Path, fits: impl Fn(&Stat) -> Result<(), ReadError>) -> Result<File, ReadError> {
        let check = |stat: &Stat| match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => fits(stat),
            _ => Err(ReadError::NotRegular),
        };
        let (directory, name) = self.parent(path)?;
        // Before it is opened: opening a device may do something.
        check(&statat(&directory.0, name, AtFlags::SYMLINK_NOFOLLOW)?)?;
        let opened = openat(&directory.0, name, FILE, Mode::empty())?;
        check(&fstat(&opened)?)?;
        Ok(File::from(opened))
    }

    /// A whole file of at most `limit` bytes.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
        read_up_to(&self.file(path)?, limit)
    }

    /// The same, of a file that may have other names.
    pub(super) fn read_linked(&self, path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
        read_up_to(&self.file_if(path, |_| Ok(()))?, limit)
    }

    /// The first `limit` bytes of a file.
    #[cfg(feature = "server")]
    pub(crate) fn beginning(&self, path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
        let mut content = Vec::new();
        self.file(path)?.take(limit).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Replaces a file as a whole, mode 0600. Its directory must exist.
    pub(crate) fn replace(&self, path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
        let (directory, name) = self.parent(path)?;
        let temporary = temporary_name();
        let flags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);
        let written = (|| {
            let mut file = File::from(openat(&directory.0, &temporary, flags, PRIVATE_FILE)?);
            file.write_all(content)?;
            if durability == Durability::Disk {
                file.sync_all()?;
            }
            renameat(&directory.0, &temporary, &directory.0, name)?;
            Ok::<_, io::Error>(())
        })();
        if let Err(error) = written {
            // Half a file helps nobody; the error says that it was not written.
            unlinkat(&directory.0, &temporary, AtFlags::empty()).ok();
            return Err(error);
        }
        if durability == Durability::Disk {
            fsync(&directory.0)?;
        }
        Ok(())
    }

    /// Removes a name that is no directory.
    pub(crate) fn unlink(&self, path: &Path) -> io::Result<()> {
        let (directory, name) = self.parent(path)?;
        Ok(unlinkat(&directory.0, name, AtFlags::empty())?)
    }

    /// What is in it.
    pub(crate) fn entries(&self) -> io::Result<Dir> {
        Ok(Dir::read_from(&self.0)?)
    }

    /// The directory of a path and the last name in it.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(Self, &'a OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let directory = self.dir(path.parent().unwrap_or(Path::new("")))?;
        Ok((directory, name))
    }
}

impl AsFd for Beneath {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn read_up_to(file: &File, limit: u64) -> Result<Vec<u8>, ReadError> {
    let size = file.metadata()?.len();
    if size > limit {
        return Err(ReadError::TooLarge { size, limit });
    }
    let mut content = Vec::new();
    // One more than allowed: it may grow while it is read.
    file.take(limit + 1).read_to_end(&mut content)?;
    let size = content.len() as u64;
    if size > limit { Err(ReadError::TooLarge { size, limit }) } else { Ok(content) }
}

/// The names in a path that leads downwards.
fn names(path: &Path) -> impl Iterator<Item = io::Result<&OsStr>> {
    path.components().map(|component| match component {
        Component::Normal(name) => Ok(name),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A session's directory full of traps, beside a secret.
    fn hostile() -> (tempfile::TempDir, Beneath) {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("own");
        std::fs::create_dir_all(own.join("dir")).unwrap();
        std::fs::create_dir(root.path().join("other")).unwrap();
        std::fs::write(root.path().join("other/secret"), "secret").unwrap();
        std::fs::write(own.join("plain"), "12345678").unwrap();
        symlink("../other/secret", own.join("link")).unwrap();
        symlink("../other", own.join("dirlink")).unwrap();
        symlink("/dev/zero", own.join("zero")).unwrap();
        std::fs::hard_link(root.path().join("other/secret"), own.join("hard")).unwrap();
        mkfifo(&own.join("fifo"));
        std::fs::File::create(own.join("sparse")).unwrap().set_len(10 << 30).unwrap();
        std::os::unix::net::UnixListener::bind(own.join("socket")).unwrap();
        let beneath = Beneath::open(root.path(), Path::new("own")).unwrap();
        (root, beneath)
    }

    fn mkfifo(path: &Path) {
        rustix::fs::mknodat(CWD, path, FileType::Fifo, PRIVATE_FILE, 0).unwrap();
    }

    #[test]
    fn only_regular_files_of_its_own_are_read() {
        let (root, own) = hostile();
        let read = |path: &str| own.read(Path::new(path), 8);
        assert_eq!(read("plain").unwrap(), b"12345678");
        for path in ["link", "zero", "fifo", "socket", "dir"] {
            assert!(matches!(read(path), Err(ReadError::NotRegular)), "{path}: {:?}", read(path));
        }
        assert!(matches!(read("hard"), Err(ReadError::HardLinked)));
        assert!(matches!(read("sparse"), Err(ReadError::TooLarge { size, limit: 8 }) if size == 10 << 30));
        assert!(matches!(own.read(Path::new("plain"), 7), Err(ReadError::TooLarge { .. })));
        assert!(read("missing").unwrap_err().is_absent() && read("no/such").unwrap_err().is_absent());
        for path in ["dirlink/secret", "../other/secret", "/etc/passwd", "", "plain/x"] {
            assert!(read(path).is_err(), "{path}");
        }
        assert_eq!(own.beginning(Path::new("sparse"), 3).unwrap(), [0; 3]);
        // The directory itself is swapped for a link.
        std::fs::rename(root.path().join("own"), root.path().join("was")).unwrap();
        symlink("other", root.path().join("own")).unwrap();
        assert!(Beneath::open(root.path(), Path::new("own")).is_err());
        assert_eq!(own.read(Path::new("plain"), 8).unwrap(), b"12345678");
    }

    #[test]
    fn a_device_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("device");
        // The device of `/dev/zero`. Only root may make one.
        let made = rustix::fs::mknodat(CWD, &device, FileType::CharacterDevice, PRIVATE_FILE, 0x105);
        if made.is_err() {
            return pilotlight_test_support::installed::left_out("no device node can be made here");
        }
        let own = Beneath::open(root.path(), Path::new("")).unwrap();
        assert!(matches!(own.read(Path::new("device"), 8), Err(ReadError::NotRegular)));
    }

    #[test]
    fn a_file_is_replaced_and_no_link_followed() {
        let (root, own) = hostile();
        let write = |path: &str| own.replace(Path::new(path), b"new", Durability::Disk);
        for path in ["link", "hard", "fifo", "zero", "plain", "fresh"] {
            write(path).unwrap();
            assert_eq!(own.read(Path::new(path), 9).unwrap(), b"new", "{path}");
            let mode = root.path().join("own").join(path).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(write("dirlink/secret").is_err() && write("dir").is_err() && write("../x").is_err());
        assert_eq!(std::fs::read(root.path().join("other/secret")).unwrap(), b"secret");
        assert!(std::fs::read_dir(root.path().join("own")).unwrap().count() < 13, "nothing half is left");
    }

    #[test]
    fn what_stands_in_a_directorys_place_is_removed() {
        let (root, own) = hostile();
        for path in ["dirlink/a", "fifo/a/b", "plain", "dir"] {
            own.make_dir(Path::new(path)).unwrap();
            assert!(own.dir(Path::new(path)).is_ok(), "{path}");
        }
        assert!(!root.path().join("other/a").exists());
        assert!(own.make_dir(Path::new("../x")).is_err());
    }
}
