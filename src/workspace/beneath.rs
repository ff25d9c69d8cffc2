//! Access to files below a directory that a child can write.
//!
//! A child may create anything there: links to the outside, pipes, devices, endless files. Every step goes from an open
//! directory to a name in it and follows no link: a swapped name never leads outside. Only regular files with a single
//! name are read, up to a limit, and opening never waits. Works without `openat2`, which kernels before 5.6 and some
//! seccomp profiles lack. Blocking.

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
use rustix::process::geteuid;

use super::ownership::Owner;
use crate::support::atomic_file::{Durability, temporary_name};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Opening never waits: without NONBLOCK a pipe waits for its other end, and a leased file for its holder.
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
    #[error("not a regular file")]
    NotRegular,
    /// A hard link may be a second name of the server's or another user's file.
    #[error("more than one name (hard links)")]
    HardLinked,
    /// Larger than the limit.
    #[error("{size} bytes; at most {limit} are read")]
    TooLarge { size: u64, limit: u64 },
    /// Error of the operating system.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ReadError {
    /// Whether the file is missing.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }

    /// See [`is_shortage`].
    pub(crate) fn is_shortage(&self) -> bool {
        matches!(self, Self::Io(error) if is_shortage(error))
    }
}

/// Whether the host lacks resources, or its disk fails: the file itself is not to blame, and a retry may succeed.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    let shortage = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EINTR, libc::EIO];
    error.raw_os_error().is_some_and(|it| shortage.contains(&it))
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

/// Location of a directory that a child can write.
#[cfg(feature = "server")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChildDir {
    /// Trusted path; its links are the operator's.
    pub(crate) trusted: PathBuf,
    /// Path below, which a child may have swapped.
    pub(crate) inner: PathBuf,
}

#[cfg(feature = "server")]
impl ChildDir {
    pub(crate) fn open(&self) -> io::Result<Beneath> {
        Beneath::open(&self.trusted, &self.inner)
    }
}

/// Open directory that a child can write.
#[derive(Debug)]
pub(crate) struct Beneath(OwnedFd);

impl Beneath {
    /// Opens `inner` below `trusted`. Follows links in `trusted`, which are the operator's, but none in `inner`.
    pub(crate) fn open(trusted: &Path, inner: &Path) -> io::Result<Self> {
        let trusted = Self(openat(CWD, trusted, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty())?);
        Ok(trusted.walk(inner, Self::enter)?.unwrap_or(trusted))
    }

    /// Opens the directory at `path`.
    pub(crate) fn dir(&self, path: &Path) -> io::Result<Self> {
        self.walk(path, Self::enter)?.map_or_else(|| self.again(), Ok)
    }

    /// Goes from directory to directory by `step`; `None` if there is no way to go.
    fn walk(&self, path: &Path, step: fn(&Self, &OsStr) -> io::Result<OwnedFd>) -> io::Result<Option<Self>> {
        let mut reached = None;
        for name in names(path) {
            reached = Some(Self(step(reached.as_ref().unwrap_or(self), name?)?));
        }
        Ok(reached)
    }

    fn enter(&self, name: &OsStr) -> io::Result<OwnedFd> {
        Ok(openat(&self.0, name, DIRECTORY, Mode::empty())?)
    }

    fn again(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Opens the directory at `path` and creates missing ones, mode 0700. Removes other files in their place: only the child
    /// can have created them.
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<Self> {
        self.walk(path, Self::make_one)?.map_or_else(|| self.again(), Ok)
    }

    /// Creates this directory, mode 0700, with the server's owner. Returns false if something has that name.
    pub(super) fn make_new(&self, name: &Path) -> io::Result<bool> {
        match mkdirat(&self.0, name, PRIVATE_DIRECTORY) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn make_one(&self, name: &OsStr) -> io::Result<OwnedFd> {
        // Each attempt removes what is in the way; a child that keeps restoring it gets an error.
        for _ in 0..3 {
            match openat(&self.0, name, DIRECTORY, Mode::empty()) {
                Ok(directory) => return Ok(directory),
                Err(Errno::NOENT) => {}
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    tracing::warn!("removing a file in the place of a session directory");
                    unlinkat(&self.0, name, AtFlags::empty())?;
                }
                Err(Errno::ACCESS) => self.restore_access(name)?,
                Err(errno) => return Err(errno.into()),
            }
            match mkdirat(&self.0, name, PRIVATE_DIRECTORY) {
                Ok(()) => self.give_new_directory(name)?,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(openat(&self.0, name, DIRECTORY, Mode::empty())?)
    }

    /// Gives a directory that was created here to the owner of this one.
    fn give_new_directory(&self, name: &OsStr) -> io::Result<()> {
        if let Some(owner) = self.foreign_owner()? {
            let created = openat(&self.0, name, DIRECTORY, Mode::empty())?;
            // Some file systems show one owner for everything and refuse a change: nothing is missing there.
            owner.take(&created).ok();
        }
        Ok(())
    }

    /// The owner of this directory if it is not this process's user: a child runs as a user of its own, and needs what
    /// is created for it.
    fn foreign_owner(&self) -> io::Result<Option<Owner>> {
        let stat = fstat(&self.0)?;
        let is_foreign = stat.st_uid != geteuid().as_raw();
        Ok(is_foreign.then_some(Owner { uid: stat.st_uid, gid: stat.st_gid }))
    }

    /// Restores the owner's access to a directory.
    pub(super) fn restore_access(&self, name: &OsStr) -> io::Result<()> {
        let directory = openat(&self.0, name, DIRECTORY.union(OFlags::PATH), Mode::empty())?;
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        Ok(chmodat(CWD, path, PRIVATE_DIRECTORY, AtFlags::empty())?)
    }

    /// Opens a regular file for reading.
    pub(crate) fn file(&self, path: &Path) -> Result<File, ReadError> {
        self.file_if(path, |stat| if stat.st_nlink > 1 { Err(ReadError::HardLinked) } else { Ok(()) })
    }

    /// As [`Self::file`], also if it has several names.
    pub(super) fn file_linked(&self, path: &Path) -> Result<File, ReadError> {
        self.file_if(path, |_| Ok(()))
    }

    fn file_if(&self, path: &Path, fits: impl Fn(&Stat) -> Result<(), ReadError>) -> Result<File, ReadError> {
        let check = |stat: &Stat| match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => fits(stat),
            _ => Err(ReadError::NotRegular),
        };
        let (parent, name) = self.parent(path)?;
        let directory = parent.as_ref().unwrap_or(self);
        // Checked before opening: opening a device may have side effects.
        check(&statat(&directory.0, name, AtFlags::SYMLINK_NOFOLLOW)?)?;
        let opened = openat(&directory.0, name, FILE, Mode::empty())?;
        check(&fstat(&opened)?)?;
        Ok(File::from(opened))
    }

    /// Reads a file of at most `limit` bytes.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
        read_up_to(&self.file(path)?, limit)
    }

    /// As [`Self::read`], for a file that may have several names.
    pub(super) fn read_linked(&self, path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
        read_up_to(&self.file_linked(path)?, limit)
    }

    /// Reads the first `limit` bytes of a file.
    #[cfg(feature = "server")]
    pub(crate) fn beginning(&self, path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
        let mut content = Vec::new();
        self.file(path)?.take(limit).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Replaces a file atomically, mode 0600, as [`atomic_file`](crate::support::atomic_file) does for trusted directories.
    /// Its directory must exist.
    pub(crate) fn replace(&self, path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let directory = parent.as_ref().unwrap_or(self);
        let temporary = temporary_name();
        let flags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::CLOEXEC);
        let written = (|| {
            let mut file = File::from(openat(&directory.0, &temporary, flags, PRIVATE_FILE)?);
            if let Some(owner) = directory.foreign_owner()? {
                // As for directories.
                owner.take(&file).ok();
            }
            file.write_all(content)?;
            if durability == Durability::Disk {
                file.sync_all()?;
            }
            renameat(&directory.0, &temporary, &directory.0, name)?;
            Ok::<_, io::Error>(())
        })();
        if let Err(error) = written {
            // The write has failed already; a file that stays is removed by a later sweep.
            unlinkat(&directory.0, &temporary, AtFlags::empty()).ok();
            return Err(error);
        }
        if durability == Durability::Disk {
            fsync(&directory.0)?;
        }
        Ok(())
    }

    /// As [`Self::replace`], but never in place of a directory.
    #[cfg(feature = "server")]
    pub(crate) fn put(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let directory = parent.as_ref().unwrap_or(self);
        match statat(&directory.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.replace(path, content, Durability::Kernel)
    }

    /// Removes a file.
    pub(crate) fn unlink(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let directory = parent.as_ref().unwrap_or(self);
        Ok(unlinkat(&directory.0, name, AtFlags::empty())?)
    }

    /// Directory entries.
    pub(crate) fn entries(&self) -> io::Result<Dir> {
        Ok(Dir::read_from(&self.0)?)
    }

    /// Open directory and file name of a path; no directory if it is this one.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(Option<Self>, &'a OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.walk(path.parent().unwrap_or(Path::new("")), Self::enter)?, name))
    }
}

impl AsFd for Beneath {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The content of a file of at most `limit` bytes.
pub(crate) fn read_up_to(file: &File, limit: u64) -> Result<Vec<u8>, ReadError> {
    let size = file.metadata()?.len();
    if size > limit {
        return Err(ReadError::TooLarge { size, limit });
    }
    let mut content = Vec::new();
    // Reads one byte more than allowed: the file may grow meanwhile.
    file.take(limit + 1).read_to_end(&mut content)?;
    let size = content.len() as u64;
    if size > limit { Err(ReadError::TooLarge { size, limit }) } else { Ok(content) }
}

/// Names of a path without `..`, root and prefix.
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

    /// A session directory full of traps, beside a secret.
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
    fn only_regular_files_are_read() {
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
        // A link replaces the directory itself.
        std::fs::rename(root.path().join("own"), root.path().join("was")).unwrap();
        symlink("other", root.path().join("own")).unwrap();
        assert!(Beneath::open(root.path(), Path::new("own")).is_err());
        assert_eq!(own.read(Path::new("plain"), 8).unwrap(), b"12345678");
    }

    #[test]
    fn device_is_not_opened() {
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
    fn replace_follows_no_link() {
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
        assert!(std::fs::read_dir(root.path().join("own")).unwrap().count() < 13, "a temporary file is left");
    }

    #[test]
    fn make_dir_removes_other_files() {
        let (root, own) = hostile();
        for path in ["dirlink/a", "fifo/a/b", "plain", "dir"] {
            own.make_dir(Path::new(path)).unwrap();
            assert!(own.dir(Path::new(path)).is_ok(), "{path}");
        }
        assert!(!root.path().join("other/a").exists());
        assert!(own.make_dir(Path::new("../x")).is_err());
    }
}
