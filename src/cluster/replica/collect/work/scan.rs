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
use super::super::{Collector, Job, Scope};
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
    pub(in super::super) fn look_at_work(&mut self, session: &SessionHash) {
        let Some(path) = self.places.session(session) else { return };
        let root = Path::new(path.file_name().unwrap_or_default()).join("work");
        let opened = Beneath::open(&sessions_dir(self.places.data_dir()), &root);
        let opened = opened.and_then(|work| Ok((fstat(&work)?.st_uid, work)));
        let (owner, work) = match opened {
            Ok(opened) => opened,
            // No child has been there yet, or the directory is gone with what was in it: the next child gets a new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(_) => {
                self.summary.unreadable += 1;
                return;
            }
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
        let is_whole = scan.directory(&work, &[], MAX_DEPTH);
        let Scan { mut jobs, seen, unseen, .. } = scan;
        if is_whole {
            self.gone_from_work(&area, &seen, &unseen);
        } else {
            self.summary.is_cut = true;
        }
        jobs.sort_by(|one, other| (one.rank(), &one.place.path).cmp(&(other.rank(), &other.place.path)));
        self.jobs.extend(jobs.into_iter().map(Job::Work));
    }

    /// What the replica has and the directory has no more: the topmost paths stand for what is below them.
    fn gone_from_work(&mut self, area: &Area, seen: &HashSet<Vec<u8>>, unseen: &[Vec<u8>]) {
        if self.scope == Scope::Snapshot {
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
    fn directory(&mut self, directory: &Beneath, path: &[u8], levels: usize) -> bool {
        let Ok(entries) = directory.entries() else { return self.not_seen(path) };
        for entry in entries {
            let Ok(entry) = entry else { return self.not_seen(path) };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || std::str::from_utf8(name).is_ok_and(is_temporary_name) {
                continue;
            }
            self.entries += 1;
            if self.entries > WORK_ENTRIES {
                return false;
            }
            let inner = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            if !self.entry(directory, name, inner, levels) {
                return false;
            }
        }
        true
    }

    fn not_seen(&mut self, path: &[u8]) -> bool {
        self.collector.summary.unreadable += 1;
        self.unseen.push([path, b"/"].concat());
        // The working directory itself: nothing was seen.
        !path.is_empty()
    }

    fn entry(&mut self, directory: &Beneath, name: &[u8], path: Vec<u8>, levels: usize) -> bool {
        let name = OsStr::from_bytes(name);
        // What is gone was deleted meanwhile.
        let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { return true };
        let is_valid = levels > 0 && is_valid_path(&self.area, &path, &Change::Removed);
        let found = match FileType::from_raw_mode(stat.st_mode) {
            _ if !is_valid => None,
            FileType::Directory => Some(Found::Directory { mode: mode(&stat) }),
            FileType::Symlink => target(directory, name).map(|target| Found::Link { target }),
            FileType::RegularFile if is_own(&stat, self.owner) => {
                Some(Found::File { size: stat.st_size.max(0).unsigned_abs() })
            }
            _ => None,
        };
        self.files += 1;
        let Some(found) = found.filter(|_| self.files <= WORK_FILES_KNOWN) else {
            self.collector.summary.left_out += 1;
            return true;
        };
        let is_directory = matches!(found, Found::Directory { .. });
        self.job(&path, &stat, found);
        self.seen.insert(path.clone());
        if !is_directory {
            return true;
        }
        match directory.dir(Path::new(name)) {
            Ok(inner) => self.directory(&inner, &path, levels - 1),
            // Exchanged meanwhile, or closed by the child.
            Err(_) => self.not_seen(&path),
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

fn target(directory: &Beneath, name: &OsStr) -> Option<Vec<u8>> {
    let target = readlinkat(directory, name, Vec::new()).ok()?.into_bytes();
    (!target.is_empty() && target.len() <= MAX_PATH_BYTES).then_some(target)
}
