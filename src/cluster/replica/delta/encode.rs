//! Writes an object. Pure.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Area, Change, Digest, Entry, FORMAT, Header, MAGIC, Meta};
use crate::support::hex;

/// Kinds of an entry. 0 ends the entries.
pub(super) const WHOLE: u8 = 1;
pub(super) const APPEND: u8 = 2;
pub(super) const PATCH: u8 = 3;
pub(super) const DIRECTORY: u8 = 4;
pub(super) const LINK: u8 = 5;
pub(super) const MODE: u8 = 6;
pub(super) const REMOVED: u8 = 7;
/// Areas of an entry.
pub(super) const USER: u8 = 0;
pub(super) const RECORD: u8 = 1;
pub(super) const WORK: u8 = 2;

/// An object in pieces: they are sent one after the other, without a copy.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    pub(crate) pieces: [Bytes; 3],
    /// The checksum at its end.
    pub(crate) digest: Digest,
    pub(crate) entries: u32,
}

impl Encoded {
    pub(crate) fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

/// Entries of an object to be.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    body: Vec<u8>,
    entries: u32,
}

impl Writer {
    /// Bytes of the entries so far.
    pub(crate) fn len(&self) -> usize {
        self.body.len()
    }

    /// Adds an entry. Its path and content must be within their limits: one that is not makes the object unreadable.
    pub(crate) fn push(&mut self, entry: &Entry<'_>) {
        self.entries = self.entries.saturating_add(1);
        let kind = match entry.change {
            Change::Whole { .. } => WHOLE,
            Change::Append { .. } => APPEND,
            Change::Patch { .. } => PATCH,
            Change::Directory { .. } => DIRECTORY,
            Change::Link { .. } => LINK,
            Change::Mode(_) => MODE,
            Change::Removed => REMOVED,
        };
        self.body.push(kind);
        match &entry.area {
            Area::User => self.body.push(USER),
            Area::Record(session) => self.session(RECORD, session.as_str()),
            Area::Work(session) => self.session(WORK, session.as_str()),
        }
        self.short(entry.path);
        match entry.change {
            Change::Whole { meta, content } => {
                self.meta(meta);
                self.content(content);
            }
            Change::Append { base, edge, meta, content } => {
                self.body.extend(base.to_le_bytes());
                self.body.extend(edge);
                self.meta(meta);
                self.content(content);
            }
            Change::Patch { at, content } => {
                self.body.extend(at.to_le_bytes());
                self.content(content);
            }
            Change::Directory { mode } => self.body.extend(mode.to_le_bytes()),
            Change::Link { target } => self.short(target),
            Change::Mode(meta) => self.meta(meta),
            Change::Removed => {}
        }
    }

    fn session(&mut self, area: u8, session: &str) {
        self.body.push(area);
        self.body.extend(hex::decode(session).unwrap_or_default());
    }

    fn short(&mut self, bytes: &[u8]) {
        self.body.extend(u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes());
        self.body.extend_from_slice(bytes);
    }

    fn content(&mut self, bytes: &[u8]) {
        self.body.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.body.extend_from_slice(bytes);
    }

    fn meta(&mut self, meta: Meta) {
        self.body.extend(meta.mode.to_le_bytes());
        self.body.extend(meta.seconds.to_le_bytes());
        self.body.extend(meta.nanos.to_le_bytes());
    }

    /// The object with this header.
    pub(crate) fn finish(self, header: &Header) -> Encoded {
        let mut head = Vec::with_capacity(44 + 32 * header.parts.len());
        head.extend(MAGIC);
        head.extend(FORMAT.to_le_bytes());
        head.extend([header.kind as u8, 0]);
        head.extend(header.user.as_bytes());
        head.extend(header.id.fence.to_le_bytes());
        head.extend(header.id.seq.to_le_bytes());
        head.extend(u32::try_from(header.parts.len()).unwrap_or(u32::MAX).to_le_bytes());
        head.extend(header.parts.iter().flatten());
        let mut end = vec![0];
        end.extend(self.entries.to_le_bytes());
        let mut digest = Sha256::new();
        for piece in [&head, &self.body, &end] {
            digest.update(piece);
        }
        let digest: Digest = digest.finalize().into();
        end.extend(digest);
        Encoded { pieces: [head.into(), self.body.into(), end.into()], digest, entries: self.entries }
    }
}
