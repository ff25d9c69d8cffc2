//! The transactions of the cluster, and what their replies mean.
//!
//! Each may be sent again after an unknown result: a reply tells whether an earlier attempt took effect.

use super::error::LedgerError;
use super::keys::Keys;
use super::kv::{Compare, KeyValue, LeaseId, Operation, Reply, Revision, Txn, TxnReply};
use super::records::{Fence, Head, NodeId, NodeInfo, Owner, RecordError, Stored, UserHash, encode};

/// An ownership that was won.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Won {
    pub(crate) fence: Fence,
    pub(crate) stored: Stored,
}

/// The result of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    Won(Won),
    /// The user is owned, but its head cannot be read: the owner can only release it.
    Unreadable(Fence, RecordError),
    /// Another node owns the user, or an earlier lease of this one.
    Owned(NodeId, Fence),
}

/// The result of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Commit {
    /// The head is stored, with this revision.
    Done(Revision),
    /// The head is stored, but the user has another owner since.
    DoneThenFenced,
    /// The user has another owner or none, and the head is not stored.
    Fenced,
    /// The head in the store is another one than the caller took it for.
    Conflict(Stored),
}

/// The result of joining the cluster, or of updating the record of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Join {
    Done,
    /// Another live process has this name.
    Taken,
}

/// The result of an update of a node's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeUpdate {
    Done,
    /// The key is gone, or belongs to another lease.
    Gone,
}

/// The result of the removal of a dead node's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forget {
    Done,
    /// The key has changed since it was read.
    Changed,
}

/// Makes a node the owner of a user that has none.
pub(crate) fn claim(keys: &Keys, user: UserHash, node: &NodeId, lease: LeaseId) -> Result<Txn, RecordError> {
    let (owner, head) = (keys.owner(user), keys.head(user));
    let value = encode(&Owner::new(node.clone()))?;
    Ok(Txn {
        compare: vec![Compare::Created(owner.clone(), 0)],
        success: vec![
            Operation::Put { key: owner.clone(), value, lease },
            Operation::Get { key: head.clone() },
        ],
        failure: vec![Operation::Get { key: owner }, Operation::Get { key: head }],
    })
}

impl Claim {
    /// The result that a reply means for the claim of this node with this lease.
    pub(crate) fn of(reply: TxnReply, node: &NodeId, lease: LeaseId) -> Result<Self, LedgerError> {
        let revision = reply.revision;
        if reply.succeeded {
            let [Reply::Put, Reply::Got(head)] = sized(reply.replies)? else { return Err(UNEXPECTED) };
            return Ok(Self::won(Fence(revision), head));
        }
        let [Reply::Got(Some(owner)), Reply::Got(head)] = sized(reply.replies)? else {
            return Err(UNEXPECTED);
        };
        let fence = Fence(owner.created);
        match Owner::decode(&owner.value) {
            // An earlier attempt, whose answer was lost, took effect.
            Ok(record) if record.node == *node && owner.lease == lease => Ok(Self::won(fence, head)),
            Ok(record) => Ok(Self::Owned(record.node, fence)),
            Err(_) => Err(LedgerError::BadAnswer("the record of an owner")),
        }
    }

    fn won(fence: Fence, head: Option<KeyValue>) -> Self {
        match stored(head) {
            Ok(stored) => Self::Won(Won { fence, stored }),
            Err(error) => Self::Unreadable(fence, error),
        }
    }
}

/// Stores a head, if the ownership still holds and the head before is the expected one.
pub(crate) fn commit(
    keys: &Keys,
    user: UserHash,
    fence: Fence,
    expected: Revision,
    head: &Head,
) -> Result<Txn, RecordError> {
    let (owner, key) = (keys.owner(user), keys.head(user));
    Ok(Txn {
        compare: vec![Compare::Created(owner.clone(), fence.0), Compare::Modified(key.clone(), expected)],
        success: vec![Operation::Put { key: key.clone(), value: encode(head)?, lease: LeaseId(0) }],
        failure: vec![Operation::Get { key: owner }, Operation::Get { key }],
    })
}

impl Commit {
    /// The result that a reply means for the commit of this head.
    pub(crate) fn of(reply: TxnReply, head: &Head) -> Result<Self, LedgerError> {
        if reply.succeeded {
            return Ok(Self::Done(reply.revision));
        }
        let (is_owned, found) = refused(reply, head.fence)?;
        Ok(match (is_owned, found) {
            (true, Ok(found)) if found.head.as_ref().is_some_and(|now| is_same(now, head)) => {
                Self::Done(found.revision)
            }
            (true, Ok(found)) => Self::Conflict(found),
            (true, Err(_)) => return Err(LedgerError::BadAnswer("the record of a head")),
            (false, Ok(found)) if has(&found, head) => Self::DoneThenFenced,
            (false, _) => Self::Fenced,
        })
    }
}

/// Ends an ownership.
pub(crate) fn release(keys: &Keys, user: UserHash, fence: Fence) -> Txn {
    let owner = keys.owner(user);
    Txn {
        compare: vec![Compare::Created(owner.clone(), fence.0)],
        success: vec![Operation::Delete { key: owner.clone() }],
        failure: vec![Operation::Get { key: owner }],
    }
}

/// Whether a reply says that the user has no owner after the release of this ownership, or another one.
pub(crate) fn released(reply: TxnReply, fence: Fence) -> Result<(), LedgerError> {
    if reply.succeeded {
        return Ok(());
    }
    match sized(reply.replies)? {
        [Reply::Got(owner)] if owner.as_ref().is_none_or(|owner| owner.created != fence.0) => Ok(()),
        _ => Err(UNEXPECTED),
    }
}

/// Publishes a node under a name that no live node has.
pub(crate) fn join(keys: &Keys, id: &NodeId, info: &NodeInfo, lease: LeaseId) -> Result<Txn, RecordError> {
    let key = keys.node(id);
    Ok(Txn {
        compare: vec![Compare::Created(key.clone(), 0)],
        success: vec![Operation::Put { key: key.clone(), value: encode(info)?, lease }],
        failure: vec![Operation::Get { key }],
    })
}

impl Join {
    /// The result that a reply means for the node with this lease.
    pub(crate) fn of(reply: TxnReply, lease: LeaseId) -> Result<Self, LedgerError> {
        if reply.succeeded {
            return Ok(Self::Done);
        }
        let [Reply::Got(Some(node))] = sized(reply.replies)? else { return Err(UNEXPECTED) };
        Ok(if node.lease == lease { Self::Done } else { Self::Taken })
    }
}

/// Changes the record of a node, if the key is still that of its lease.
pub(crate) fn node_update(
    keys: &Keys,
    id: &NodeId,
    info: &NodeInfo,
    lease: LeaseId,
) -> Result<Txn, RecordError> {
    let key = keys.node(id);
    Ok(Txn {
        compare: vec![Compare::Lease(key.clone(), lease)],
        success: vec![Operation::Put { key, value: encode(info)?, lease }],
        failure: vec![],
    })
}

impl NodeUpdate {
    pub(crate) fn of(reply: &TxnReply) -> Self {
        if reply.succeeded { Self::Done } else { Self::Gone }
    }
}

/// Removes a key that has not changed since it was read.
pub(crate) fn forget(kv: &KeyValue) -> Txn {
    Txn {
        compare: vec![Compare::Modified(kv.key.clone(), kv.modified)],
        success: vec![Operation::Delete { key: kv.key.clone() }],
        failure: vec![],
    }
}

impl Forget {
    pub(crate) fn of(reply: &TxnReply) -> Self {
        if reply.succeeded { Self::Done } else { Self::Changed }
    }
}

const UNEXPECTED: LedgerError = LedgerError::BadAnswer("the replies of a transaction");

fn sized<const N: usize>(replies: Vec<Reply>) -> Result<[Reply; N], LedgerError> {
    replies.try_into().map_err(|_| UNEXPECTED)
}

/// From the reply of a transaction that was refused: whether the ownership holds, and the head.
type Refused = (bool, Result<Stored, RecordError>);

fn refused(reply: TxnReply, fence: Fence) -> Result<Refused, LedgerError> {
    let [Reply::Got(owner), Reply::Got(head)] = sized(reply.replies)? else { return Err(UNEXPECTED) };
    Ok((owner.is_some_and(|owner| owner.created == fence.0), stored(head)))
}

fn stored(head: Option<KeyValue>) -> Result<Stored, RecordError> {
    let Some(kv) = head else { return Ok(Stored::default()) };
    Ok(Stored { head: Some(Head::decode(&kv.value)?), revision: kv.modified })
}

/// The same object is the last one: an earlier attempt to store this head took effect.
fn is_same(now: &Head, head: &Head) -> bool {
    now.fence == head.fence && now.seq == head.seq
}

fn has(found: &Stored, head: &Head) -> bool {
    found.head.as_ref().is_some_and(|now| now.contains(head.fence, head.seq))
}

#[cfg(test)]
mod tests;
