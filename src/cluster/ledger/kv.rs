//! Keys, values and transactions, as etcd has them.

use std::fmt;

/// Number of a change; counts up over the whole store.
pub(crate) type Revision = u64;

/// A lease; 0 stands for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct LeaseId(pub(crate) i64);

/// A key with its value.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct KeyValue {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// Revision that created the key, after its last removal.
    pub(crate) created: Revision,
    /// Revision of its last change.
    pub(crate) modified: Revision,
    pub(crate) lease: LeaseId,
}

/// Without the content.
impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue")
            .field("created", &self.created)
            .field("modified", &self.modified)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// A condition on a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Compare {
    /// The revision that created the key; 0 if there is no such key.
    Created(Vec<u8>, Revision),
    /// The revision of the last change; 0 if there is no such key.
    Modified(Vec<u8>, Revision),
    /// The lease of an existing key.
    Lease(Vec<u8>, LeaseId),
}

/// A step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    Put { key: Vec<u8>, value: Vec<u8>, lease: LeaseId },
    Delete { key: Vec<u8> },
    Get { key: Vec<u8> },
}

/// If every condition holds, one list of steps takes effect at once, otherwise the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Txn {
    pub(crate) compare: Vec<Compare>,
    pub(crate) success: Vec<Operation>,
    pub(crate) failure: Vec<Operation>,
}

/// The result of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Put,
    Deleted,
    Got(Option<KeyValue>),
}

/// The result of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TxnReply {
    pub(crate) succeeded: bool,
    /// Revision of the store after the transaction: that of its own changes if it made any.
    pub(crate) revision: Revision,
    pub(crate) replies: Vec<Reply>,
}

/// Some keys of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) revision: Revision,
    pub(crate) keys: Vec<KeyValue>,
    /// There are more behind the last one.
    pub(crate) more: bool,
}

/// A change of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Put(KeyValue),
    Deleted { key: Vec<u8>, revision: Revision },
}

impl Change {
    pub(crate) fn revision(&self) -> Revision {
        match self {
            Self::Put(kv) => kv.modified,
            Self::Deleted { revision, .. } => *revision,
        }
    }

    #[cfg(test)]
    pub(crate) fn key(&self) -> &[u8] {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Deleted { key, .. } => key,
        }
    }
}
