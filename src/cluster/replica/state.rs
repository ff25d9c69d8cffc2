//! What the replica has of a user, as far as this node knows: the next delta has what differs from it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

use super::delta::{Area, Digest};
use super::key::ObjectId;
use super::limits::{CHAIN_BYTES, CHAIN_ENTRIES, EDGE_BYTES, UNSETTLED};
use super::places::Place;
use crate::model::ids::SessionHash;

/// Objects that may have been written although no answer came. More failures in a row need a snapshot.
const MOST_ATTEMPTS: usize = 4;

/// A file as the replica has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// Sent as a whole when it differs.
    File {
        stamp: Stamp,
        length: u64,
        digest: u64,
        mode: u16,
    },
    /// Grows at its end. `edge` is the digest of the last bytes, `head` that of the first.
    Log {
        stamp: Stamp,
        length: u64,
        head: u64,
        edge: Digest,
    },
    Directory {
        mode: u16,
    },
    Link {
        digest: u64,
    },
}

/// Changes of files, in the order in which they were sent. `None`: the file is gone.
pub(crate) type Changes = Vec<(Place, Option<Known>)>;

/// What the objects of a chain have together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ChainSize {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

impl ChainSize {
    pub(crate) fn with(self, bytes: u64, entries: u64) -> Self {
        Self { bytes: self.bytes.saturating_add(bytes), entries: self.entries.saturating_add(entries) }
    }

    /// Whether a node takes such a chain over. Who writes one asks as well as who reads it.
    pub(crate) fn fits(self) -> bool {
        self.bytes <= CHAIN_BYTES && self.entries <= CHAIN_ENTRIES
    }
}

/// What the replica has of one user. Without a snapshot nothing is known, and the next object is one.
#[derive(Debug, Default)]
pub(crate) struct UserState {
    pub(super) files: BTreeMap<Place, Known>,
    is_known: bool,
    size: ChainSize,
    attempts: Vec<Attempt>,
}

/// An object that may have been written.
#[derive(Debug)]
pub(super) struct Attempt {
    id: ObjectId,
    digest: Digest,
    is_snapshot: bool,
    changes: Changes,
    /// Of the chain with it.
    size: ChainSize,
}

impl UserState {
    /// State after these files were taken over.
    pub(crate) fn taken(files: BTreeMap<Place, Known>) -> Self {
        Self { files, is_known: true, ..Self::default() }
    }

    /// What the chain has that these files were taken over from.
    pub(super) fn with_size(self, size: ChainSize) -> Self {
        Self { size, ..self }
    }

    pub(super) fn size(&self) -> ChainSize {
        self.size
    }

    /// Whether a delta can be made.
    pub(crate) fn is_known(&self) -> bool {
        self.is_known
    }

    /// Files that are known.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    pub(crate) fn has_session(&self, session: &SessionHash) -> bool {
        self.of(&Area::Record(session.clone())).next().is_some()
    }

    /// The known places of an area.
    pub(super) fn of<'a>(&'a self, area: &'a Area) -> impl Iterator<Item = (&'a Place, &'a Known)> {
        let first = Place { area: area.clone(), path: Vec::new() };
        self.files.range(first..).take_while(move |(place, _)| place.area == *area)
    }

    /// An object is about to be written.
    pub(super) fn attempt(
        &mut self,
        id: ObjectId,
        digest: Digest,
        is_snapshot: bool,
        changes: Changes,
        size: ChainSize,
    ) {
        if self.attempts.first().is_some_and(|before| before.id != id) {
            self.attempts.clear();
        }
        if self.attempts.len() == MOST_ATTEMPTS {
            self.attempts.remove(0);
        }
        self.attempts.push(Attempt { id, digest, is_snapshot, changes, size });
    }

    /// The object with this digest was written. Whether it is one of the attempts.
    pub(super) fn written(&mut self, id: ObjectId, digest: &Digest) -> bool {
        let attempts = std::mem::take(&mut self.attempts);
        let written = attempts.into_iter().rev().find(|it| it.id == id && it.digest == *digest);
        let Some(Attempt { is_snapshot, changes, size, .. }) = written else { return false };
        self.size = size;
        if is_snapshot {
            self.files.clear();
            self.is_known = true;
        }
        for (place, known) in changes {
            match known {
                Some(known) => drop(self.files.insert(place, known)),
                None => self.remove(&place),
            }
        }
        true
    }

    pub(super) fn keep(&mut self, place: Place, known: Known) {
        self.files.insert(place, known);
    }

    /// Forgets a place and what lies below it.
    pub(super) fn remove(&mut self, place: &Place) {
        if let (Area::Record(session), true) = (&place.area, place.path.is_empty()) {
            for area in [Area::Record(session.clone()), Area::Work(session.clone())] {
                self.remove_below(&Place::new(area, Vec::new()));
            }
            return;
        }
        self.files.remove(place);
        let mut below = place.clone();
        below.path.push(b'/');
        self.remove_below(&below);
    }

    fn remove_below(&mut self, begin: &Place) {
        let is_below = |it: &Place| it.area == begin.area && it.path.starts_with(&begin.path);
        let found = self.files.range(begin.clone()..).take_while(|(place, _)| is_below(place));
        let found: Vec<_> = found.map(|(place, _)| place.clone()).collect();
        for place in &found {
            self.files.remove(place);
        }
    }
}

/// Stands for a file and the time of its last change. `None`: it may have changed without a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stamp(Option<u64>);

impl Stamp {
    /// A file may change twice within one tick of the clock that stamps it, so that a recent stamp says nothing. A changed
    /// `ctime` cannot be taken back by a child.
    pub(crate) fn new(
        inode: u64,
        size: u64,
        modified: (i64, i64),
        changed: (i64, i64),
        now: SystemTime,
    ) -> Self {
        let at = UNIX_EPOCH + Duration::new(changed.0.max(0).unsigned_abs(), changed.1.max(0) as u32);
        let is_settled = now.duration_since(at).is_ok_and(|age| age > UNSETTLED);
        let mut hasher = DefaultHasher::new();
        for number in [inode, size] {
            hasher.write_u64(number);
        }
        for number in [modified.0, modified.1, changed.0, changed.1] {
            hasher.write_i64(number);
        }
        Self(is_settled.then(|| hasher.finish()))
    }

    pub(crate) fn of(found: &std::fs::Metadata, now: SystemTime) -> Self {
        let modified = (found.mtime(), found.mtime_nsec());
        Self::new(found.ino(), found.size(), modified, (found.ctime(), found.ctime_nsec()), now)
    }

    /// Whether nothing has changed since `before`.
    pub(crate) fn is_same(self, before: Self) -> bool {
        self.0.is_some() && self == before
    }
}

/// Tells contents apart that no enemy has made: a child can only hide a change of its own from its own replica.
#[derive(Debug, Clone, Default)]
pub(crate) struct ContentHash(DefaultHasher);

impl ContentHash {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0.finish()
    }

    pub(crate) fn of(bytes: &[u8]) -> u64 {
        let mut hash = Self::default();
        hash.update(bytes);
        hash.finish()
    }
}

/// Digest of the end of a log.
pub(crate) fn edge_of(tail: &[u8]) -> Digest {
    Sha256::digest(tail).into()
}

/// The last bytes of the first `length` ones of a file; `None` if it is shorter.
pub(crate) fn tail(file: &std::fs::File, length: u64) -> io::Result<Option<Vec<u8>>> {
    let from = length.saturating_sub(EDGE_BYTES as u64);
    read_at(file, from, length - from)
}

/// The first bytes of the first `length` ones of a file; `None` if it is shorter.
pub(crate) fn head(file: &std::fs::File, length: u64) -> io::Result<Option<Vec<u8>>> {
    read_at(file, 0, length.min(EDGE_BYTES as u64))
}

fn read_at(file: &std::fs::File, from: u64, length: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0).min(EDGE_BYTES)];
    match file.read_exact_at(&mut bytes, from) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        read => read.map(|()| Some(bytes)),
    }
}
