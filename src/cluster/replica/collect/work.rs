//! The working directory of a session, where its child may leave anything. Blocking.
//!
//! Each step goes from an open directory to a name in it, follows no link and opens nothing but directories and regular
//! files, without a wait. Symbolic links are replicated as links: the server follows none, and a child could make the same
//! ones itself. A file with several names may be another user's, unless it belongs to the user's own uid.

mod scan;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::process::geteuid;

use super::super::delta::{Area, Change, Meta};
use super::super::places::Place;
use super::super::state::{ContentHash, Known, Stamp};
use super::reading::{Form, Reading};
use super::{Budget, Collector, accessed};
use crate::workspace::beneath::{Beneath, is_shortage};
use crate::workspace::sessions_dir;

/// Opening never waits, whatever lies there.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
/// Bits of a mode that are kept: no set-uid, no set-gid.
const MODE: u32 = 0o777;

/// Something in a working directory that may differ from the replica.
#[derive(Debug)]
pub(super) struct Work {
    place: Place,
    /// Path of the working directory below `sessions/`.
    root: PathBuf,
    /// Owner of the working directory.
    owner: u32,
    found: Found,
}

#[derive(Debug)]
enum Found {
    File { size: u64 },
    Directory { mode: u16 },
    Link { target: Vec<u8> },
}

impl Work {
    pub(super) fn area(&self) -> &Area {
        &self.place.area
    }

    /// Bytes when it was looked at.
    pub(super) fn bytes(&self) -> u64 {
        match self.found {
            Found::File { size } => size,
            Found::Directory { .. } | Found::Link { .. } => 0,
        }
    }

    /// Directories come before what is in them, and small files before large ones: most of them fit.
    fn rank(&self) -> (u8, u64) {
        match self.found {
            Found::Directory { .. } => (0, 0),
            Found::Link { .. } => (1, 0),
            Found::File { size } => (2, size),
        }
    }
}

impl Collector {
    pub(super) fn work(&mut self, work: Work) -> io::Result<()> {
        let Work { place, root, owner, found } = work;
        match found {
            Found::Directory { mode } => {
                self.push(&place, Change::Directory { mode });
                self.changes.push((place, Some(Known::Directory { mode })));
            }
            Found::Link { target } => {
                self.push(&place, Change::Link { target: &target });
                self.changes.push((place, Some(Known::Link { digest: ContentHash::of(&target) })));
            }
            Found::File { .. } => {
                self.renew_budget(&place.area);
                let path = PathBuf::from(OsStr::from_bytes(&place.path));
                match self.open(&root, &path, owner) {
                    Ok(file) => self.file(place, file)?,
                    Err(error) => self.unread(error)?,
                }
            }
        }
        Ok(())
    }

    /// Something of a child's that cannot be read stays out, whatever the child has done to it. What the host is to blame for
    /// ends the object: it may concern any file, and a snapshot without them would replace what the replica has.
    pub(super) fn unread(&mut self, error: io::Error) -> io::Result<()> {
        if is_shortage(&error) {
            return Err(error);
        }
        // What has vanished is found by the next scan.
        self.summary.unreadable += u64::from(error.kind() != io::ErrorKind::NotFound);
        Ok(())
    }

    /// Without the limits of a turn each session has a budget of its own.
    fn renew_budget(&mut self, area: &Area) {
        let Area::Work(session) = area else { return };
        if !self.scope.is_limited() && self.budget_of.as_ref() != Some(session) {
            self.budget = Budget::whole(self.options);
            self.budget_of = Some(session.clone());
        }
    }

    fn open(&self, root: &Path, path: &Path, owner: u32) -> io::Result<File> {
        accessed()?;
        let work = Beneath::open(&sessions_dir(self.places.data_dir()), root)?;
        let directory = work.dir(path.parent().unwrap_or(Path::new("")))?;
        let name = path.file_name().unwrap_or_default();
        // Looked at before it is opened: opening a device may have side effects.
        let stats = [statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?];
        let fits = |stat: &Stat| is_file(stat) && is_own(stat, owner);
        if !stats.iter().all(fits) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = File::from(openat(&directory, name, FILE, Mode::empty())?);
        if fits(&fstat(&file)?) { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Sends a file that differs, if it is within the limits.
    fn file(&mut self, place: Place, file: File) -> io::Result<()> {
        let stat = fstat(&file)?;
        let length = stat.st_size.max(0).unsigned_abs();
        let stamp = stamp(&stat, self.now);
        let meta = meta(&stat);
        if let Some(Known::File { length: before, digest, mode, .. }) = self.known(&place)
            && before == length
        {
            let Some(read) = self.budget.read.checked_sub(length) else {
                self.later(length);
                return Ok(());
            };
            self.budget.read = read;
            let hash = match Reading::hash(&file, length) {
                Ok(hash) => hash,
                Err(error) => return self.unread(error),
            };
            if hash == digest {
                if mode != meta.mode {
                    self.push(&place, Change::Mode(meta));
                }
                self.changes.push((place, Some(Known::File { stamp, length, digest, mode: meta.mode })));
                return Ok(());
            }
        }
        let left = self.budget.sent.checked_sub(length).zip(self.budget.files.checked_sub(1));
        let Some((sent, files)) = left else {
            if self.scope.is_limited() {
                self.later(length);
            } else {
                self.summary.left_out += 1;
            }
            return Ok(());
        };
        (self.budget.sent, self.budget.files) = (sent, files);
        self.reading = Some(Reading::whole(place, file, length, stamp, meta, Form::File));
        Ok(())
    }

    fn later(&mut self, bytes: u64) {
        self.summary.later_files += 1;
        self.summary.later_bytes = self.summary.later_bytes.saturating_add(bytes);
    }
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Whether no other user can have the file.
fn is_own(stat: &Stat, owner: u32) -> bool {
    stat.st_nlink == 1 || (stat.st_uid == owner && owner != geteuid().as_raw())
}

fn mode(stat: &Stat) -> u16 {
    u16::try_from(stat.st_mode & MODE).unwrap_or_default()
}

fn meta(stat: &Stat) -> Meta {
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or_default().min(999_999_999);
    Meta { mode: mode(stat), seconds: stat.st_mtime, nanos }
}

fn stamp(stat: &Stat, now: std::time::SystemTime) -> Stamp {
    let nanos = |nanos| i64::try_from(nanos).unwrap_or_default();
    let modified = (stat.st_mtime, nanos(stat.st_mtime_nsec));
    let changed = (stat.st_ctime, nanos(stat.st_ctime_nsec));
    Stamp::new(stat.st_ino, stat.st_size.max(0).unsigned_abs(), modified, changed, now)
}
