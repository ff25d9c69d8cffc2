//! A file that is being sent, piece by piece. Blocking.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use super::super::delta::{Area, Change, Meta};
use super::super::limits::{CHUNK_BYTES, EDGE_BYTES};
use super::super::places::Place;
use super::super::state::{ContentHash, Known, Stamp, edge_of};
use super::Collector;

/// How a file is compared with the replica next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    File,
    Log,
}

#[derive(Debug)]
pub(super) struct Reading {
    place: Place,
    file: File,
    /// Bytes that the replica has or that were sent.
    at: u64,
    /// The first and the last of them: the file may have others by now.
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Length of the file when it was opened. What it grows by meanwhile goes later.
    length: u64,
    stamp: Stamp,
    meta: Meta,
    form: Form,
    hash: ContentHash,
}

impl Reading {
    pub(super) fn whole(place: Place, file: File, length: u64, stamp: Stamp, meta: Meta, form: Form) -> Self {
        let (head, tail) = (Vec::new(), Vec::new());
        Self { place, file, at: 0, head, tail, length, stamp, meta, form, hash: ContentHash::default() }
    }

    /// A log of which the replica has the first `at` bytes, with this beginning and end.
    pub(super) fn appended(
        place: Place,
        file: File,
        at: u64,
        (head, tail): (Vec<u8>, Vec<u8>),
        length: u64,
        stamp: Stamp,
    ) -> Self {
        let (meta, form, hash) = (Meta::default(), Form::Log, ContentHash::default());
        Self { place, file, at, head, tail, length, stamp, meta, form, hash }
    }

    /// Hash of the first bytes of a file.
    pub(super) fn hash(file: &File, length: u64) -> io::Result<u64> {
        let (mut hash, mut at) = (ContentHash::default(), 0);
        let mut buffer = vec![0; CHUNK_BYTES.min(usize::try_from(length).unwrap_or(CHUNK_BYTES)).max(1)];
        while at < length {
            let read = read_at(file, &mut buffer, at, length)?;
            if read.is_empty() {
                break;
            }
            hash.update(read);
            at += read.len() as u64;
        }
        Ok(hash.finish())
    }
}

/// The next bytes of a file, up to `end`; none at its end.
fn read_at<'a>(file: &File, buffer: &'a mut [u8], at: u64, end: u64) -> io::Result<&'a [u8]> {
    super::accessed()?;
    let most = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..most).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(buffer.get(..filled).unwrap_or_default())
}

impl Collector {
    /// Adds the next piece of the file, and goes on with it unless that was the last.
    pub(super) fn read_on(&mut self, mut reading: Reading) -> io::Result<()> {
        let left = usize::try_from(reading.length - reading.at).unwrap_or(usize::MAX);
        let mut buffer = vec![0; left.min(CHUNK_BYTES)];
        let content = match read_at(&reading.file, &mut buffer, reading.at, reading.length) {
            Ok(content) => content,
            // What was sent so far is not taken as known, so that all of it goes next time.
            Err(error) if matches!(reading.place.area, Area::Work(_)) => return self.unread(error),
            Err(error) => return Err(error),
        };
        let meta = reading.meta;
        self.push(
            &reading.place,
            match reading.at {
                0 => Change::Whole { meta, content },
                base => Change::Append { base, edge: edge_of(&reading.tail), meta, content },
            },
        );
        reading.sent(content);
        reading.at += content.len() as u64;
        self.summary.bytes += content.len() as u64;
        if reading.at < reading.length && !content.is_empty() {
            self.reading = Some(reading);
            return Ok(());
        }
        self.summary.files += 1;
        let known = reading.known()?;
        self.changes.push((reading.place, Some(known)));
        Ok(())
    }
}

impl Reading {
    fn sent(&mut self, content: &[u8]) {
        self.hash.update(content);
        let missing = EDGE_BYTES.saturating_sub(self.head.len()).min(content.len());
        self.head.extend_from_slice(content.get(..missing).unwrap_or_default());
        self.tail
            .extend_from_slice(content.get(content.len().saturating_sub(EDGE_BYTES)..).unwrap_or_default());
        self.tail.drain(..self.tail.len().saturating_sub(EDGE_BYTES));
    }

    /// What the replica has then.
    fn known(&self) -> io::Result<Known> {
        let now = SystemTime::now();
        let after = Stamp::of(&self.file.metadata()?, now);
        // Changed while it was read: the next object compares it again.
        let stamp = if after.is_same(self.stamp) { after } else { Stamp::default() };
        let length = self.at;
        Ok(match self.form {
            Form::Log => {
                Known::Log { stamp, length, head: ContentHash::of(&self.head), edge: edge_of(&self.tail) }
            }
            Form::File => Known::File { stamp, length, digest: self.hash.finish(), mode: self.meta.mode },
        })
    }
}
