//! The values of the keys. Fields that a version does not know are ignored; a higher `format` is refused.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::kv::Revision;
use crate::model::ids::UserId;
use crate::workspace::user_digest;

/// The format that this version writes, and the highest that it reads.
const FORMAT: u32 = 1;
/// Maximum length of the name of a node.
const MAX_NODE_ID: usize = 64;
/// Maximum size of a value. etcd's own limit for a request is 1.5 MiB.
const MAX_RECORD_BYTES: usize = 256 << 10;
/// Maximum length of an address: a host name and a port.
const MAX_ADDRESS: usize = 300;
/// Maximum number of spans of a chain: one more owner without a snapshot is one more span.
pub(crate) const MAX_CHAIN: usize = 1024;

/// Why a record is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// A newer version wrote it in a format unknown to this one.
    #[error("a newer version wrote the record in format {0}")]
    Newer(u32),
    /// It is no such record.
    #[error("the record is malformed: {0}")]
    Malformed(&'static str),
}

/// Name of a node: 1 to 64 letters, digits, dots, hyphens or underscores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct NodeId(Arc<str>);

impl NodeId {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = RecordError;

    fn from_str(text: &str) -> Result<Self, RecordError> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let fits = (1..=MAX_NODE_ID).contains(&text.len()) && text.bytes().all(is_name);
        if fits { Ok(Self(text.into())) } else { Err(RecordError::Malformed("the name of a node")) }
    }
}

impl TryFrom<String> for NodeId {
    type Error = RecordError;

    fn try_from(text: String) -> Result<Self, RecordError> {
        text.parse()
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Digest of a user: 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct UserHash([u8; 16]);

impl UserHash {
    /// The digest that names the user's files as well.
    pub(crate) fn of(user: &UserId) -> Self {
        // It always has 32 digits.
        user_digest(user).parse().unwrap_or(Self([0; 16]))
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for UserHash {
    type Err = RecordError;

    fn from_str(text: &str) -> Result<Self, RecordError> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let bits = u128::from_str_radix(text, 16).ok();
        let bits = bits.filter(|_| text.len() == 32 && text.bytes().all(is_digit));
        bits.map(|bits| Self(bits.to_be_bytes())).ok_or(RecordError::Malformed("the digest of a user"))
    }
}

impl fmt::Display for UserHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// The first digits only: enough to follow a user through a log, too few to look it up.
impl fmt::Debug for UserHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, ..] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}…")
    }
}

/// Number of an ownership: the revision that created the owner's key. A later owner has a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Fence(pub(crate) u64);

/// What a node publishes about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeInfo {
    #[serde(default = "format")]
    format: u32,
    /// Where other nodes reach it: `host:port`.
    pub(crate) address: String,
    /// Number of further users it has room for.
    #[serde(default)]
    pub(crate) room: u32,
    /// It takes no further users.
    #[serde(default)]
    pub(crate) draining: bool,
    /// Version of its program.
    #[serde(default)]
    pub(crate) version: String,
}

fn format() -> u32 {
    FORMAT
}

impl NodeInfo {
    pub(crate) fn new(address: String, room: u32, version: String) -> Self {
        Self { format: FORMAT, address, room, draining: false, version }
    }

    /// The record of a key's value.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, RecordError> {
        let info: Self = decode(value, "a node")?;
        let fits = !info.address.is_empty()
            && info.address.len() <= MAX_ADDRESS
            && info.version.len() <= MAX_NODE_ID;
        if fits { Ok(info) } else { Err(RecordError::Malformed("a node")) }
    }
}

/// Who owns a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    #[serde(default = "format")]
    format: u32,
    pub(crate) node: NodeId,
}

impl Owner {
    pub(crate) fn new(node: NodeId) -> Self {
        Self { format: FORMAT, node }
    }

    /// The record of a key's value.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, RecordError> {
        decode(value, "an owner")
    }
}

/// Consecutive objects of one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) fence: Fence,
    pub(crate) from: u64,
    /// Included.
    pub(crate) to: u64,
}

/// What is durable of a user: which objects, from the last snapshot on, make up its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    #[serde(default = "format")]
    format: u32,
    /// The ownership that wrote it.
    pub(crate) fence: Fence,
    /// Number of the last object; counts up by one over all owners.
    pub(crate) seq: u64,
    /// The objects since the last snapshot, which is the first of them.
    pub(crate) chain: Vec<Span>,
    /// Size of the snapshot that the chain begins with.
    #[serde(default)]
    pub(crate) snapshot_bytes: u64,
    /// Size of all objects behind it.
    #[serde(default)]
    pub(crate) delta_bytes: u64,
    /// Ends of turns are sent before their objects are stored (`cluster.replication = "async"`).
    #[serde(default)]
    pub(crate) early: bool,
    /// The user has left its node in order: nothing is missing behind the last object.
    #[serde(default)]
    pub(crate) released: bool,
}

/// A head with the revision of its key, which the next head must name; 0 if there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Stored {
    pub(crate) head: Option<Head>,
    pub(crate) revision: Revision,
}

impl Stored {
    /// Number of the last object; 0 if there is none.
    pub(crate) fn seq(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.seq)
    }
}

impl Head {
    /// Whether ends of turns may have been sent that no object has.
    pub(crate) fn announces_loss(&self) -> bool {
        self.early && !self.released
    }

    /// The head with one more object, a snapshot, which replaces all before.
    pub(crate) fn snapshot(before: Option<&Self>, fence: Fence, bytes: u64) -> Self {
        let seq = before.map_or(0, |head| head.seq).saturating_add(1);
        let chain = vec![Span { fence, from: seq, to: seq }];
        Self {
            format: FORMAT,
            fence,
            seq,
            chain,
            snapshot_bytes: bytes,
            delta_bytes: 0,
            early: false,
            released: false,
        }
    }

    /// Whether the chain has no room for an object of this ownership: the next one is a snapshot.
    pub(crate) fn is_full(&self, fence: Fence) -> bool {
        self.chain.len() >= MAX_CHAIN && self.chain.last().is_none_or(|span| span.fence != fence)
    }

    /// The head with one more object, a delta to those before. `None` if the chain [is full](Self::is_full).
    pub(crate) fn delta(&self, fence: Fence, bytes: u64) -> Option<Self> {
        let mut next = self.clone();
        next.format = FORMAT;
        next.fence = fence;
        next.seq = self.seq.checked_add(1)?;
        next.delta_bytes = self.delta_bytes.saturating_add(bytes);
        match next.chain.last_mut().filter(|span| span.fence == fence) {
            Some(span) => span.to = next.seq,
            None => next.chain.push(Span { fence, from: next.seq, to: next.seq }),
        }
        (next.chain.len() <= MAX_CHAIN).then_some(next)
    }

    /// An object of this owner with this number is part of it.
    pub(crate) fn contains(&self, fence: Fence, seq: u64) -> bool {
        self.chain.iter().any(|span| span.fence == fence && (span.from..=span.to).contains(&seq))
    }

    /// It is the head that comes directly after another one, or the first one.
    pub(crate) fn follows(&self, before: Option<&Self>) -> bool {
        let seq = before.map_or(0, |head| head.seq);
        let fence = before.map_or(Fence(0), |head| head.fence);
        Some(self.seq) == seq.checked_add(1) && self.fence >= fence && self.contains(self.fence, self.seq)
    }

    /// The record of a key's value.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, RecordError> {
        let head: Self = decode(value, "a head")?;
        head.check().map(|()| head)
    }

    /// The chain has no gap, its owners are in order, and it ends with the last object.
    fn check(&self) -> Result<(), RecordError> {
        let wrong = Err(RecordError::Malformed("the chain of a head"));
        if self.chain.len() > MAX_CHAIN {
            return wrong;
        }
        let Some(last) = self.chain.last() else { return wrong };
        let is_span = |span: &Span| span.from >= 1 && span.from <= span.to;
        let joins = self.chain.windows(2).all(|pair| match pair {
            [a, b] => a.to.checked_add(1) == Some(b.from) && a.fence < b.fence,
            _ => false,
        });
        let fits = self.chain.iter().all(is_span) && joins && last.to == self.seq && last.fence == self.fence;
        if fits { Ok(()) } else { wrong }
    }
}

trait Record: DeserializeOwned {
    fn format(&self) -> u32;
}

impl Record for NodeInfo {
    fn format(&self) -> u32 {
        self.format
    }
}

impl Record for Owner {
    fn format(&self) -> u32 {
        self.format
    }
}

impl Record for Head {
    fn format(&self) -> u32 {
        self.format
    }
}

/// The format alone.
#[derive(Deserialize)]
struct Format {
    #[serde(default = "format")]
    format: u32,
}

/// Errors hold nothing of the value.
fn decode<T: Record>(value: &[u8], what: &'static str) -> Result<T, RecordError> {
    let malformed = RecordError::Malformed(what);
    if value.len() > MAX_RECORD_BYTES {
        return Err(malformed);
    }
    let record = serde_json::from_slice::<T>(value);
    // The rest of a newer record may be of any form.
    let format = match &record {
        Ok(record) => record.format(),
        Err(_) => serde_json::from_slice::<Format>(value).map_err(|_| malformed)?.format,
    };
    if format > FORMAT { Err(RecordError::Newer(format)) } else { record.map_err(|_| malformed) }
}

/// The value of a record's key.
pub(super) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, RecordError> {
    let value = serde_json::to_vec(record).map_err(|_| RecordError::Malformed("the record to write"))?;
    if value.len() > MAX_RECORD_BYTES {
        Err(RecordError::Malformed("the record to write"))
    } else {
        Ok(value)
    }
}

#[cfg(test)]
mod tests;
