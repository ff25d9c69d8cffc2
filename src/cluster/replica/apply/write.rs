//! Entries of an object as files on the stage. Blocking.
//!
//! A working directory may hold links that a child has made. Every step goes from an open directory to a name in it and
//! follows none of them. What is removed moves aside: no removal walks a tree here.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, futimens, mkdirat, openat,
    renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::super::delta::{Area, Change, Entry, Meta};
use super::super::limits::EDGE_BYTES;
use super::super::places::Place;
use super::super::state::{ContentHash, Known, Stamp, UserState, edge_of};
use super::ApplyError;
use super::place::{OTHERS, RECORDS, Stage};
use crate::model::ids::SessionHash;
use crate::workspace::beneath::Beneath;

/// What the owner needs, whatever a child has taken away: the server writes there again.
const FILE_MODE: u16 = 0o600;
const DIRECTORY_MODE: u16 = 0o700;
const OPEN: OFlags = OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Where entries are written.
#[derive(Debug)]
pub(super) struct Target {
    records: Beneath,
    sessions: Beneath,
    /// The directory of the last entry: the next one is mostly in the same.
    last: Option<(PathBuf, bool, Beneath)>,
    /// The file of the last entry: its next piece follows.
    open: Option<Open>,
    removed: u64,
}

#[derive(Debug)]
struct Open {
    place: Place,
    file: File,
    length: u64,
    /// Of all that was written; `None` for a file that was there before.
    hash: Option<ContentHash>,
}

/// The session whose whole removal an entry is.
pub(super) fn whole_session<'a>(entry: &'a Entry<'_>) -> Option<&'a SessionHash> {
    match &entry.area {
        Area::Record(session) if entry.path.is_empty() => Some(session),
        _ => None,
    }
}

impl Target {
    pub(super) fn open(stage: &Stage) -> io::Result<Self> {
        let open = |path: &Path| Beneath::open(path, Path::new(""));
        let (records, sessions) = (open(&stage.records)?, open(&stage.sessions)?);
        Ok(Self { records, sessions, last: None, open: None, removed: 0 })
    }

    /// Writes one entry, and notes what the replica has of it.
    pub(super) fn entry(&mut self, entry: &Entry<'_>, state: &mut UserState) -> Result<(), ApplyError> {
        let place = Place::new(entry.area.clone(), entry.path);
        let is_next_piece = self.open.as_ref().is_some_and(|open| open.place == place);
        if !is_next_piece {
            self.open = None;
        }
        let known = match entry.change {
            Change::Whole { meta, content } => self.whole(&place, meta, content)?,
            Change::Append { base, edge, meta, content } => {
                self.append(&place, (base, edge), meta, content)?
            }
            Change::Patch { at, content } => {
                let open = self.existing(&place)?;
                if at.checked_add(content.len() as u64).is_none_or(|end| end > open.length) {
                    return Err(ApplyError::Unfit);
                }
                open.file.write_all_at(content, at)?;
                open.hash = None;
                None
            }
            Change::Directory { mode } => {
                self.directory(&place, mode)?;
                state.keep(place, Known::Directory { mode });
                return Ok(());
            }
            Change::Link { target } => {
                let (directory, name) = self.clear(&place)?;
                symlinkat(OsStr::from_bytes(target), directory, &*name).map_err(io::Error::from)?;
                Some(Known::Link { digest: ContentHash::of(target) })
            }
            Change::Mode(meta) => {
                let open = self.existing(&place)?;
                set_meta(&open.file, &place.area, meta)?;
                match state.files.get(&place) {
                    Some(Known::File { stamp, length, digest, .. }) => {
                        Some(Known::File { stamp: *stamp, length: *length, digest: *digest, mode: meta.mode })
                    }
                    _ => None,
                }
            }
            Change::Removed => {
                self.remove(&place)?;
                None
            }
        };
        state.remove(&place);
        if let Some(known) = known {
            state.keep(place, known);
        }
        Ok(())
    }

    fn whole(&mut self, place: &Place, meta: Meta, content: &[u8]) -> io::Result<Option<Known>> {
        self.open = None;
        let (directory, name) = self.clear(place)?;
        let flags = OPEN.union(OFlags::CREATE).union(OFlags::EXCL);
        let file = File::from(openat(directory, &*name, flags, Mode::RUSR | Mode::WUSR)?);
        let open = Open { place: place.clone(), file, length: 0, hash: Some(ContentHash::default()) };
        self.open.insert(open).write(meta, content)
    }

    fn append(
        &mut self,
        place: &Place,
        (base, edge): (u64, [u8; 32]),
        meta: Meta,
        content: &[u8],
    ) -> Result<Option<Known>, ApplyError> {
        let open = self.existing(place)?;
        let mut tail = vec![0; usize::try_from(base).unwrap_or(EDGE_BYTES).min(EDGE_BYTES)];
        if open.length != base {
            return Err(ApplyError::Unfit);
        }
        let from = base - tail.len() as u64;
        open.file.read_exact_at(&mut tail, from)?;
        if edge_of(&tail) != edge {
            return Err(ApplyError::Unfit);
        }
        Ok(open.write(meta, content)?)
    }

    /// A file that an earlier entry has written.
    fn existing(&mut self, place: &Place) -> Result<&mut Open, ApplyError> {
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let (directory, name) = self.parent(place, false)?.ok_or(ApplyError::Unfit)?;
                let file = match openat(directory, &*name, OPEN, Mode::empty()) {
                    Err(Errno::NOENT | Errno::LOOP | Errno::ISDIR) => return Err(ApplyError::Unfit),
                    file => File::from(file.map_err(io::Error::from)?),
                };
                let length = file.metadata()?.len();
                Open { place: place.clone(), file, length, hash: None }
            }
        };
        Ok(self.open.insert(open))
    }

    fn directory(&mut self, place: &Place, mode: u16) -> io::Result<()> {
        let Some((directory, name)) = self.parent(place, true)? else { return Ok(()) };
        let is_directory = match statat(directory, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
            Err(Errno::NOENT) => false,
            Err(errno) => return Err(errno.into()),
        };
        if !is_directory {
            let (directory, name) = self.clear(place)?;
            mkdirat(directory, &*name, Mode::RWXU)?;
        }
        let Some((directory, name)) = self.parent(place, false)? else { return Ok(()) };
        let made = directory.dir(Path::new(&*name))?;
        Ok(fchmod(&made, Mode::from_raw_mode(u32::from(mode | DIRECTORY_MODE)))?)
    }

    /// Moves what is there aside. What is below it is known no more.
    fn remove(&mut self, place: &Place) -> io::Result<()> {
        if place.path.is_empty() {
            return Ok(());
        }
        self.open = None;
        let is_in_sessions = matches!(place.area, Area::Work(_));
        let number = self.removed;
        let Some((directory, name)) = self.parent(place, false)? else { return Ok(()) };
        match unlinkat(directory, &*name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
        let directory = directory.dir(Path::new(""))?;
        let aside = if is_in_sessions { &self.sessions } else { &self.records };
        renameat(&directory, &*name, aside, format!(".removed-{number}"))?;
        self.removed += 1;
        // It may have been the directory of the last entry, or one above it.
        self.last = None;
        Ok(())
    }

    /// Removes all of a session.
    pub(super) fn remove_session(&mut self, session: &SessionHash) -> io::Result<()> {
        (self.open, self.last) = (None, None);
        let below = Path::new(RECORDS).join(session.as_str());
        for (root, path) in [(&self.records, below.as_path()), (&self.sessions, Path::new(session.as_str()))]
        {
            match renameat(root, path, root, format!(".removed-{}", self.removed)) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.removed += 1;
        Ok(())
    }

    /// The directory of a place with nothing under its name.
    fn clear(&mut self, place: &Place) -> io::Result<(&Beneath, Box<OsStr>)> {
        self.remove(place)?;
        self.parent(place, true)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The directory of a place, and its name there. `None`: there is none, and none is made.
    fn parent(&mut self, place: &Place, is_made: bool) -> io::Result<Option<(&Beneath, Box<OsStr>)>> {
        let path = Path::new(OsStr::from_bytes(&place.path));
        let name = path.file_name().unwrap_or_default().into();
        let (is_in_sessions, root) = match &place.area {
            Area::User => (false, PathBuf::from(OTHERS)),
            Area::Record(session) => (false, Path::new(RECORDS).join(session.as_str())),
            Area::Work(session) => (true, Path::new(session.as_str()).join("work")),
        };
        let parent = root.join(path.parent().unwrap_or(Path::new("")));
        let is_last =
            self.last.as_ref().is_some_and(|(last, side, _)| *last == parent && *side == is_in_sessions);
        if !is_last {
            let top = if is_in_sessions { &self.sessions } else { &self.records };
            let opened = match top.dir(&parent) {
                // A file or a link in the place of a directory goes: the object knows it as a directory.
                Err(_) if is_made => top.make_dir(&parent)?,
                Err(error) if is_missing(&error) => return Ok(None),
                opened => opened?,
            };
            self.last = Some((parent, is_in_sessions, opened));
        }
        Ok(self.last.as_ref().map(|(_, _, directory)| (directory, name)))
    }
}

/// Whether a path leads nowhere.
fn is_missing(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

impl Open {
    fn write(&mut self, meta: Meta, content: &[u8]) -> io::Result<Option<Known>> {
        self.file.write_all_at(content, self.length)?;
        self.length += content.len() as u64;
        set_meta(&self.file, &self.place.area, meta)?;
        let Some(hash) = &mut self.hash else { return Ok(None) };
        hash.update(content);
        let (length, digest) = (self.length, hash.finish());
        Ok(Some(Known::File { stamp: Stamp::default(), length, digest, mode: meta.mode }))
    }
}

fn set_meta(file: &File, area: &Area, meta: Meta) -> io::Result<()> {
    if !matches!(area, Area::Work(_)) {
        return Ok(());
    }
    fchmod(file, Mode::from_raw_mode(u32::from(meta.mode | FILE_MODE)))?;
    let modified = Timespec { tv_sec: meta.seconds, tv_nsec: i64::from(meta.nanos) };
    let omitted = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    match futimens(file, &Timestamps { last_access: omitted, last_modification: modified }) {
        // A time that this file system cannot have.
        Err(Errno::INVAL) | Ok(()) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
