//! One object of a replica: changes of a user's files. Pure.
//!
//! ```text
//!  object: magic "PLR1" │ format (2) │ kind (1) │ 0 │ user (16) │ fence (8) │ seq (8) │ number of parts (4)
//!          │ digest of each part (32) │ entries │ 0 │ number of entries (4) │ SHA-256 of all before (32)
//!  entry:  kind (1) │ area (1) │ session (16, unless the area is the user) │ length (2) │ path │ change
//! ```
//!
//! All numbers are little-endian. The parts come first, in their order, then the entries of the object itself. A part has
//! user, fence and number of its object, and no parts. The checksum tells damage, not a forger: a program that may write to the
//! store is trusted as the data directory's owner is. Every length is checked against what is there, and nothing is
//! allocated by it.

mod decode;
mod encode;
mod path;
#[cfg(test)]
mod tests;

pub(crate) use decode::{Damage, Decoded};
pub(crate) use encode::{Encoded, Writer};
pub(crate) use path::is_valid_path;

use super::key::{ObjectId, UserHash};
use crate::model::ids::SessionHash;

/// Raised when an older program could misread an object.
pub(crate) const FORMAT: u16 = 1;
const MAGIC: [u8; 4] = *b"PLR1";

/// Reads bytes as they are, and as the content of an object whose checksum fits. Whatever is read has one form only.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(bytes: &[u8]) -> usize {
    use sha2::{Digest as _, Sha256};
    let content = [&MAGIC, bytes].concat();
    let sealed = [&content[..], &Sha256::digest(&content)].concat();
    let mut count = 0;
    for bytes in [bytes.to_vec(), sealed] {
        let Ok(object) = Decoded::parse(bytes.clone().into()) else { continue };
        let mut writer = Writer::default();
        for entry in object.entries() {
            assert!(is_valid_path(&entry.area, entry.path, &entry.change));
            writer.push(&entry);
            count += 1;
        }
        assert_eq!(writer.finish(&object.header).pieces.concat(), bytes);
    }
    count
}

/// A SHA-256.
pub(crate) type Digest = [u8; 32];

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Everything of the user: a chain begins with it.
    Snapshot = 1,
    /// What has changed since the object before.
    Delta = 2,
    /// The beginning of a snapshot or delta that is too large for one object.
    Part = 3,
}

/// What an object says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) user: UserHash,
    pub(crate) id: ObjectId,
    /// Digests of the parts that come before.
    pub(crate) parts: Vec<Digest>,
}

/// What a path is relative to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Area {
    /// Files of the user that belong to no session: `usage`, `conversations`, `responses/…`, `list/…`.
    User,
    /// The record directory of a session. With an empty path: all of the session.
    Record(SessionHash),
    /// The working directory of a session.
    Work(SessionHash),
}

/// Mode bits and time of the last change; both 0 for the server's own files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mode: u16,
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// What happens to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    /// A file with this content, whatever was there.
    Whole { meta: Meta, content: &'a [u8] },
    /// Further bytes of a file with `base` bytes, whose last ones ([`EDGE_BYTES`](super::limits::EDGE_BYTES) at most) have
    /// the digest `edge`.
    Append { base: u64, edge: Digest, meta: Meta, content: &'a [u8] },
    /// Bytes within a file.
    Patch { at: u64, content: &'a [u8] },
    /// A directory.
    Directory { mode: u16 },
    /// A symbolic link.
    Link { target: &'a [u8] },
    /// Other mode bits of a file.
    Mode(Meta),
    /// Nothing, also if it was a directory with content.
    Removed,
}

/// A change of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) area: Area,
    pub(crate) path: &'a [u8],
    pub(crate) change: Change<'a>,
}
