//! Reads an object. Pure; whatever the bytes are, it does not panic and allocates no more than they take.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::super::limits::{CHUNK_BYTES, MAX_OBJECT_BYTES, MAX_PARTS, MAX_PATH_BYTES};
use super::encode::{APPEND, DIRECTORY, LINK, MODE, PATCH, RECORD, REMOVED, USER, WHOLE, WORK};
use super::{Area, Change, Digest, Entry, FORMAT, Header, Kind, MAGIC, Meta, is_valid_path};
use crate::cluster::replica::key::{ObjectId, UserHash};
use crate::model::ids::SessionHash;
use crate::support::hex;

/// Size of the checksum at the end.
const DIGEST_BYTES: usize = 32;

/// Why bytes are no object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    /// They do not begin as an object does.
    #[error("it is no object of a replica")]
    Foreign,
    /// A later program wrote it.
    #[error("it has format {0}; this program reads {FORMAT}")]
    Format(u16),
    /// They are too many.
    #[error("it is longer than any object")]
    TooLong,
    /// Bytes are changed or missing.
    #[error("its checksum does not fit")]
    Checksum,
    /// The checksum fits, and the content does not.
    #[error("its content is not understood")]
    Content,
}

/// An object that was read and checked.
#[derive(Debug, Clone)]
pub(crate) struct Decoded {
    pub(crate) header: Header,
    pub(crate) digest: Digest,
    bytes: Bytes,
    /// Where the entries begin.
    body: usize,
}

impl Decoded {
    /// Checks all of an object.
    ///
    /// # Errors
    /// [`Damage`].
    pub(crate) fn parse(bytes: Bytes) -> Result<Self, Damage> {
        let mut head = Reader(&bytes);
        if head.array() != Some(MAGIC) {
            return Err(Damage::Foreign);
        }
        if bytes.len() > MAX_OBJECT_BYTES {
            return Err(Damage::TooLong);
        }
        let (content, digest) = bytes.split_last_chunk::<DIGEST_BYTES>().ok_or(Damage::Checksum)?;
        if Digest::from(Sha256::digest(content)) != *digest {
            return Err(Damage::Checksum);
        }
        let format = head.u16().ok_or(Damage::Content)?;
        if format != FORMAT {
            return Err(Damage::Format(format));
        }
        let mut rest = Reader(content.get(MAGIC.len() + 2..).unwrap_or_default());
        let header = rest.header().ok_or(Damage::Content)?;
        let body = content.len() - rest.0.len();
        let mut count = 0_u32;
        while rest.0.first().is_some_and(|kind| *kind != 0) {
            rest.entry().ok_or(Damage::Content)?;
            count = count.checked_add(1).ok_or(Damage::Content)?;
        }
        if rest.byte() != Some(0) || rest.u32() != Some(count) || !rest.0.is_empty() {
            return Err(Damage::Content);
        }
        let digest = *digest;
        Ok(Self { header, digest, bytes, body })
    }

    /// The changes, in their order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut rest = Reader(self.bytes.get(self.body..).unwrap_or_default());
        // The end of the entries is a kind that no entry has.
        std::iter::from_fn(move || rest.entry())
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    #[cfg(test)]
    pub(crate) fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// What is not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// What follows magic and format.
    fn header(&mut self) -> Option<Header> {
        let kind = match self.array()? {
            [1, 0] => Kind::Snapshot,
            [2, 0] => Kind::Delta,
            [3, 0] => Kind::Part,
            _ => return None,
        };
        let user = UserHash::from_bytes(self.array()?);
        let id = ObjectId { fence: self.u64()?, seq: self.u64()? };
        let count = usize::try_from(self.u32()?).ok()?;
        if count > MAX_PARTS || (kind == Kind::Part && count > 0) {
            return None;
        }
        let (parts, rest) = self.take(count.checked_mul(DIGEST_BYTES)?)?.as_chunks::<DIGEST_BYTES>();
        rest.is_empty().then(|| Header { kind, user, id, parts: parts.to_vec() })
    }

    fn entry(&mut self) -> Option<Entry<'a>> {
        let kind = self.byte()?;
        let area = match self.byte()? {
            USER => Area::User,
            RECORD => Area::Record(self.session()?),
            WORK => Area::Work(self.session()?),
            _ => return None,
        };
        let path = self.short()?;
        let change = match kind {
            WHOLE => Change::Whole { meta: self.meta()?, content: self.content()? },
            APPEND => Change::Append {
                base: self.u64()?,
                edge: self.array()?,
                meta: self.meta()?,
                content: self.content()?,
            },
            PATCH => Change::Patch { at: self.u64()?, content: self.content()? },
            DIRECTORY => Change::Directory { mode: self.u16()? },
            LINK => Change::Link { target: self.target()? },
            MODE => Change::Mode(self.meta()?),
            REMOVED => Change::Removed,
            _ => return None,
        };
        is_valid_path(&area, path, &change).then_some(Entry { area, path, change })
    }

    fn session(&mut self) -> Option<SessionHash> {
        SessionHash::parse(&hex::encode(&self.array::<16>()?))
    }

    fn short(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.u16()?);
        self.take(length).filter(|_| length <= MAX_PATH_BYTES)
    }

    fn target(&mut self) -> Option<&'a [u8]> {
        self.short().filter(|target| !target.is_empty() && !target.contains(&0))
    }

    fn content(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length).filter(|_| length <= CHUNK_BYTES)
    }

    fn meta(&mut self) -> Option<Meta> {
        let (mode, seconds, nanos) = (self.u16()?, self.u64()?.cast_signed(), self.u32()?);
        (mode <= 0o777 && nanos < 1_000_000_000).then_some(Meta { mode, seconds, nanos })
    }
}
