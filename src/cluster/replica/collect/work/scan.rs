//! What there is in a working directory, and what of it the replica has not. Blocking.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Stat, fstat, readlinkat, statat};

use super::super::super::delta::{Area, Change, is_valid_path};
use super::super::super::limits::{MAX_DEPTH, MAX_PATH_BYTES, WORK_ENTRIES, WORK_FILES_KNOWN};
use super::super::super::places::Place;
use super::super::super::state::{ContentHash, Known};
use super::super::{Collector, Job, accessed};
use super::{Found, Work, is_own, mode, stamp};
use crate::model::ids::SessionHash;
use crate::support::atomic_file::is_temporary_name;
use crate::workspace::beneath::Beneath;
use crate::workspace::sessions_dir;

/// A look at one working directory.
struct Scan<'a> {
    collector: &'a mut Collector,
    area: Area,
    root: PathBuf,
    owner: u32,
    entries: u64,
    files: u64,
    jobs: Vec<Work>,
    seen: HashSet<Vec<u8>>,
    /// Directories that could not be read: what is known of them stays. With a slash at the end.
    unseen: Vec<Vec<u8>>,
}

impl Collector {
    pub(in super::super) fn look_at_work(&mut self, session: &SessionHash) -> io::Result<()> {
        accessed()?;
        let Some(name) = self.places.session_name(session)? else { return Ok(()) };
        let root = Path::new(name.as_str()).join("work");
        let opened = accessed().and_then(|()| Beneath::open(&sessions_dir(self.places.data_dir()), &root));
        let opened = opened.and_then(|work| Ok((fstat(&work)?.st_uid, work)));
        let (owner, work) = match opened {
            Ok(opened) => opened,
            // Without one no child has been there yet, or it is gone with what was in it: the next child gets a new one.
            Err(error) => return self.unread(error),
        };
        let area = Area::Work(session.clone());
        let mut scan = Scan {
            collector: self,
            area: area.clone(),
            root,
            owner,
            entries: 0,
            files: 0,
            jobs: Vec::new(),
            seen: HashSet::new(),
            unseen: Vec::new(),
        };
        let is_whole = scan.directory(&work, &[], MAX_DEPTH)?;
        let Scan { mut jobs, seen, unseen, .. } = scan;
        if is_whole {
            self.gone_from_work(&area, &seen, &unseen);
        } else {
            self.summary.is_cut = true;
        }
        jobs.sort_by(|one, other| (one.rank(), &one.place.path).cmp(&(other.rank(), &other.place.path)));
        self.jobs.extend(jobs.into_iter().map(Job::Work));
        Ok(())
    }

    /// What the replica has and the directory has no more: the topmost paths stand for what is below them.
    fn gone_from_work(&mut self, area: &Area, seen: &HashSet<Vec<u8>>, unseen: &[Vec<u8>]) {
        if self.scope.is_snapshot() {
            return;
        }
        let mut gone: Vec<Place> = Vec::new();
        let known = self.state.of(area).map(|(place, _)| place);
        for place in known.filter(|place| !seen.contains(&place.path)) {
            let is_unseen = unseen.iter().any(|directory| place.path.starts_with(directory));
            let is_below = gone.last().is_some_and(|top| {
                place.path.strip_prefix(top.path.as_slice()).is_some_and(|rest| rest.first() == Some(&b'/'))
            });
            if !is_unseen && !is_below {
                gone.push(place.clone());
            }
        }
        self.jobs.extend(gone.into_iter().map(Job::Removed));
    }
}

impl Scan<'_> {
    /// Looks at a directory and what is below. Whether all of it was seen, or what was not is noted.
    fn directory(&mut self, directory: &Beneath, path: &[u8], levels: usize) -> io::Result<bool> {
        let entries = match accessed().and_then(|()| directory.entries()) {
            Ok(entries) => entries,
            Err(error) => return self.not_seen(path, error),
        };
        for entry in entries {
            let entry = match accessed().and_then(|()| Ok(entry?)) {
                Ok(entry) => entry,
                Err(error) => return self.not_seen(path, error),
            };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || std::str::from_utf8(name).is_ok_and(is_temporary_name) {
                continue;
            }
            self.entries += 1;
            if self.entries > WORK_ENTRIES {
                return Ok(false);
            }
            let inner = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            if !self.entry(directory, name, inner, levels)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn not_seen(&mut self, path: &[u8], error: io::Error) -> io::Result<bool> {
        self.collector.unread(error)?;
        self.unseen.push([path, b"/"].concat());
        // The working directory itself: nothing was seen.
        Ok(!path.is_empty())
    }

    fn entry(&mut self, directory: &Beneath, name: &[u8], path: Vec<u8>, levels: usize) -> io::Result<bool> {
        let name = OsStr::from_bytes(name);
        let stat = match accessed().and_then(|()| Ok(statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?)) {
            Ok(stat) => stat,
            // What is gone was deleted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => {
                // The child has closed the directory: what is in it is still there.
                self.seen.insert(path.clone());
                return self.not_seen(&path, error);
            }
        };
        let is_valid = levels > 0 && is_valid_path(&self.area, &path, &Change::Removed);
        let found = match FileType::from_raw_mode(stat.st_mode) {
            _ if !is_valid => None,
            FileType::Directory => Some(Found::Directory { mode: mode(&stat) }),
            FileType::Symlink => match accessed().and_then(|()| target(directory, name)) {
                Ok(target) => target.map(|target| Found::Link { target }),
                // Exchanged meanwhile: neither sent nor gone.
                Err(error) => {
                    self.collector.unread(error)?;
                    self.seen.insert(path);
                    return Ok(true);
                }
            },
            FileType::RegularFile if is_own(&stat, self.owner) => {
                Some(Found::File { size: stat.st_size.max(0).unsigned_abs() })
            }
            _ => None,
        };
        self.files += 1;
        let Some(found) = found.filter(|_| self.files <= WORK_FILES_KNOWN) else {
            self.collector.summary.left_out += 1;
            return Ok(true);
        };
        let is_directory = matches!(found, Found::Directory { .. });
        self.job(&path, &stat, found);
        self.seen.insert(path.clone());
        if !is_directory {
            return Ok(true);
        }
        match accessed().and_then(|()| directory.dir(Path::new(name))) {
            Ok(inner) => self.directory(&inner, &path, levels - 1),
            // Exchanged meanwhile, or closed by the child.
            Err(error) => self.not_seen(&path, error),
        }
    }

    fn job(&mut self, path: &[u8], stat: &Stat, found: Found) {
        let place = Place::new(self.area.clone(), path);
        let is_known = match (self.collector.known(&place), &found) {
            (Some(Known::File { stamp: before, .. }), Found::File { .. }) => {
                stamp(stat, self.collector.now).is_same(before)
            }
            (Some(Known::Directory { mode: before }), Found::Directory { mode }) => before == *mode,
            (Some(Known::Link { digest }), Found::Link { target }) => digest == ContentHash::of(target),
            _ => false,
        };
        if !is_known {
            let (root, owner) = (self.root.clone(), self.owner);
            self.jobs.push(Work { place, root, owner, found });
        }
    }
}

fn target(directory: &Beneath, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let target = readlinkat(directory, name, Vec::new())?.into_bytes();
    Ok((!target.is_empty() && target.len() <= MAX_PATH_BYTES).then_some(target))
}
