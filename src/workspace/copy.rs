//! Copies of directory trees that children write while they are read.
//!
//! Follows no link and opens nothing but directories and regular files. A file is copied up to the length that it had,
//! with its holes. What vanishes meanwhile was deleted. What cannot be copied is counted. Blocking.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom as Position};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, chownat, fchmod, fchown,
    fstat, futimens, mkdirat, openat, readlinkat, seek, statat, symlinkat,
};
use rustix::io::Errno;

use super::beneath::{Beneath, ReadError};

/// Deepest directory that is copied: each level holds two descriptors.
const DEEPEST: usize = 128;
/// Entries of one tree: a child could create files faster than they are copied.
const MAX_ENTRIES: u64 = 50_000_000;
/// Bits of a mode that are kept: no set-uid, no set-gid.
const MODE: u32 = 0o777;

/// What a copy has, and how much it left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copied {
    /// Sessions.
    pub sessions: u64,
    /// Regular files.
    pub files: u64,
    /// Their bytes, without holes.
    pub bytes: u64,
    /// Sockets, pipes and devices, files without read access, directories that lie too deep; links and files with several
    /// names, where these are not copied.
    pub left_out: u64,
}

/// What becomes of links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Symbolic links are made again, and each name of a file becomes a file.
    Copied,
    /// The copy leaves the server's hands: what a link leads to may be another user's.
    LeftOut,
}

/// A copy in progress.
#[derive(Debug)]
pub(crate) struct TreeCopy {
    pub(crate) copied: Copied,
    links: Links,
    /// Owners are kept: only root may give files away.
    keeps_owner: bool,
    entries: u64,
}

impl TreeCopy {
    pub(crate) fn new(links: Links) -> Self {
        let keeps_owner = links == Links::Copied && rustix::process::geteuid().is_root();
        Self { copied: Copied::default(), links, keeps_owner, entries: 0 }
    }

    /// Copies the directory `name` of `from` to `to`, which has none of this name, with all entries whose name is `wanted`.
    /// Whether it was there.
    pub(crate) fn tree(
        &mut self,
        from: &Beneath,
        name: &str,
        to: &Beneath,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> io::Result<bool> {
        self.tree_as((from, name), (to, name), wanted)
    }

    /// As [`TreeCopy::tree`], under another name.
    pub(crate) fn tree_as(
        &mut self,
        (from, name): (&Beneath, &str),
        (to, new_name): (&Beneath, &str),
        wanted: impl Fn(&[u8]) -> bool,
    ) -> io::Result<bool> {
        let source = match from.dir(Path::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        mkdirat(to, new_name, Mode::RWXU)?;
        let target = to.dir(Path::new(new_name))?;
        self.fill(&source, &target, DEEPEST, &wanted)?;
        self.finish(&target, &fstat(&source)?)?;
        Ok(true)
    }

    /// Copies one file, if it is there.
    pub(crate) fn file_named(&mut self, from: &Beneath, name: &OsStr, to: &Beneath) -> io::Result<()> {
        match statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            stat => self.file(from, name, to, &stat?),
        }
    }

    fn fill(
        &mut self,
        from: &Beneath,
        to: &Beneath,
        levels: usize,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<()> {
        for entry in from.entries()? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") || !wanted(name.to_bytes()) {
                continue;
            }
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(io::Error::other(format!("more than {MAX_ENTRIES} files")));
            }
            match self.entry(from, name, to, levels, wanted) {
                // A directory that changes may list a name twice.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {}
                Err(error) if is_left_out(&error) => self.copied.left_out += 1,
                copied => copied?,
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: &Beneath,
        name: &CStr,
        to: &Beneath,
        levels: usize,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<()> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let name = OsStr::from_bytes(name.to_bytes());
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if levels > 0 => {
                let source = from.dir(Path::new(name))?;
                mkdirat(to, name, Mode::RWXU)?;
                let target = to.dir(Path::new(name))?;
                self.fill(&source, &target, levels - 1, wanted)?;
                self.finish(&target, &stat)
            }
            FileType::RegularFile => self.file(from, name, to, &stat),
            FileType::Symlink if self.links == Links::Copied => {
                symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
                if self.keeps_owner {
                    let (uid, gid) = owner(&stat);
                    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                }
                Ok(())
            }
            _ => {
                self.copied.left_out += 1;
                Ok(())
            }
        }
    }

    fn file(&mut self, from: &Beneath, name: &OsStr, to: &Beneath, stat: &Stat) -> io::Result<()> {
        let opened = match self.links {
            Links::Copied => from.file_linked(Path::new(name)),
            Links::LeftOut => from.file(Path::new(name)),
        };
        let source = match opened {
            Ok(source) => source,
            Err(ReadError::NotRegular | ReadError::HardLinked) => {
                self.copied.left_out += 1;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = File::from(openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
        self.copied.bytes += copy_content(&source, &target)?;
        self.copied.files += 1;
        let modified = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() };
        futimens(&target, &Timestamps { last_access: modified, last_modification: modified })?;
        self.finish(&target, stat)
    }

    /// Gives a copy mode and owner of the original.
    fn finish(&self, target: impl std::os::fd::AsFd, stat: &Stat) -> io::Result<()> {
        if self.keeps_owner {
            let (uid, gid) = owner(stat);
            fchown(&target, Some(uid), Some(gid))?;
        }
        Ok(fchmod(&target, Mode::from_raw_mode(stat.st_mode & MODE))?)
    }
}

/// Whether the child has caused this: it took the access away, holds a lease, changed what the name stands for, or made a
/// file longer than the copy's file system can have. It must not stop a copy that has the files of others too.
pub(crate) fn is_left_out(error: &io::Error) -> bool {
    let caused =
        [Errno::ACCESS, Errno::PERM, Errno::AGAIN, Errno::NOTDIR, Errno::ISDIR, Errno::LOOP, Errno::FBIG];
    Errno::from_io_error(error).is_some_and(|errno| caused.contains(&errno))
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

/// Copies the content that a file has now, without its holes. Returns the bytes that were copied.
fn copy_content(mut from: &File, mut to: &File) -> io::Result<u64> {
    let length = from.metadata()?.len();
    let (mut at, mut copied) = (0, 0);
    while at < length {
        let data = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            // A file system without holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(from, SeekFrom::Hole(data)).unwrap_or(length).clamp(data, length);
        from.seek(Position::Start(data))?;
        to.seek(Position::Start(data))?;
        copied += io::copy(&mut from.take(end - data), &mut to)?;
        if end == data {
            break;
        }
        at = end;
    }
    // It may have been cut meanwhile.
    to.set_len(length.min(from.metadata()?.len()))?;
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn open(path: &Path) -> Beneath {
        Beneath::open(path, Path::new("")).unwrap()
    }

    fn copy(from: &Path, to: &Path, links: Links) -> Copied {
        let mut copy = TreeCopy::new(links);
        assert!(copy.tree(&open(from), "own", &open(to), |name| name != b"unwanted").unwrap());
        assert!(!copy.tree(&open(from), "missing", &open(to), |_| true).unwrap());
        copy.copied
    }

    #[test]
    fn copy_keeps_files_and_follows_nothing() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let own = from.path().join("own");
        fs::create_dir_all(own.join("inner/unwanted")).unwrap();
        fs::create_dir(own.join("unwanted")).unwrap();
        fs::write(from.path().join("secret"), "secret").unwrap();
        fs::write(own.join("inner/run"), "#!").unwrap();
        fs::set_permissions(own.join("inner/run"), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::set_permissions(own.join("inner"), fs::Permissions::from_mode(0o550)).unwrap();
        symlink("../../secret", own.join("link")).unwrap();
        symlink("..", own.join("dirlink")).unwrap();
        fs::hard_link(from.path().join("secret"), own.join("hard")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(own.join("socket")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, own.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::File::create(own.join("sparse")).unwrap().set_len(1 << 40).unwrap();

        let copied = copy(from.path(), to.path(), Links::LeftOut);
        assert_eq!((copied.files, copied.bytes, copied.left_out), (2, 2, 5));
        let new = to.path().join("own");
        assert!(
            ["link", "dirlink", "hard", "socket", "unwanted"].iter().all(|name| !new.join(name).exists())
        );
        let run = fs::metadata(new.join("inner/run")).unwrap();
        assert_eq!(run.mode() & 0o7777, 0o750, "without set-uid");
        assert_eq!(run.mtime(), fs::metadata(own.join("inner/run")).unwrap().mtime());
        assert_eq!(fs::metadata(new.join("inner")).unwrap().mode() & 0o777, 0o550);
        let sparse = fs::metadata(new.join("sparse")).unwrap();
        assert_eq!((sparse.len(), sparse.blocks()), (1 << 40, 0));

        let to = tempfile::tempdir().unwrap();
        let copied = copy(from.path(), to.path(), Links::Copied);
        assert_eq!((copied.files, copied.left_out), (3, 2), "the socket and the pipe");
        let new = to.path().join("own");
        assert_eq!(fs::read_link(new.join("link")).unwrap(), Path::new("../../secret"));
        assert_eq!(fs::read_to_string(new.join("hard")).unwrap(), "secret");
        fs::set_permissions(own.join("inner"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::set_permissions(new.join("inner"), fs::Permissions::from_mode(0o750)).unwrap();
    }

    /// The holder of a lease, a name that is listed twice, a name whose file is exchanged.
    #[test]
    fn child_cannot_stop_a_copy() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["a", "b"] {
            fs::write(from.path().join(name), name).unwrap();
        }
        fs::create_dir(from.path().join("d")).unwrap();
        fs::write(from.path().join("d/inner"), "").unwrap();
        let mut copy = TreeCopy::new(Links::Copied);
        for _ in 0..2 {
            copy.fill(&open(from.path()), &open(to.path()), 1, &|_| true).unwrap();
        }
        assert_eq!((copy.copied.files, copy.copied.left_out), (3, 0));
        for errno in [Errno::AGAIN, Errno::LOOP, Errno::NOTDIR] {
            assert!(is_left_out(&errno.into()) && is_left_out(&ReadError::Io(errno.into()).into()));
        }
        assert!(!is_left_out(&Errno::NOSPC.into()) && !is_left_out(&Errno::IO.into()));
    }

    #[test]
    fn deep_directories_are_left_out_and_holes_kept() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let deep = std::iter::repeat_n("d", DEEPEST + 5).collect::<std::path::PathBuf>();
        fs::create_dir_all(from.path().join("own").join(deep)).unwrap();
        let file = fs::File::create(from.path().join("own/holes")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"end", 1 << 30).unwrap();
        let copied = copy(from.path(), to.path(), Links::Copied);
        assert_eq!(copied.left_out, 1);
        let new = fs::File::open(to.path().join("own/holes")).unwrap();
        assert!(copied.bytes < 1 << 20, "{copied:?}");
        let mut end = [0; 3];
        std::os::unix::fs::FileExt::read_exact_at(&new, &mut end, 1 << 30).unwrap();
        assert_eq!(&end, b"end");
    }
}
