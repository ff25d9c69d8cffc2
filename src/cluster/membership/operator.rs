//! What an operator does to other nodes: removing what a dead one has left.

use super::Membership;
use crate::cluster::ledger::{self, Forget, Key, KeyValue, LeaseId, LedgerError, NodeId, Owner};

/// Why a node is not removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForgetError {
    /// Its lease lives, for this number of seconds at least.
    #[error("the node is alive: its lease has {0} s left")]
    Alive(u64),
    /// There is nothing of it.
    #[error("there is no such node")]
    Unknown,
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// What was removed of a dead node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Forgotten {
    pub(crate) node: bool,
    pub(crate) owners: usize,
}

impl Membership {
    /// Removes the keys of a dead node. Keys end with their lease by themselves; those without one, of a restored copy of
    /// the ledger for example, do not. A key whose lease lives is never removed.
    pub(crate) async fn forget(&self, node: &NodeId) -> Result<Forgotten, ForgetError> {
        let (start, end) = self.0.keys.watched();
        let (_, keys) = self.0.read_range(start, end).await?;
        let is_its = |kv: &KeyValue| match self.0.keys.parse(&kv.key) {
            Some(Key::Node(id)) => id == *node,
            Some(Key::Owner(_)) => Owner::decode(&kv.value).is_ok_and(|owner| owner.node == *node),
            _ => false,
        };
        let keys: Vec<_> = keys.into_iter().filter(is_its).collect();
        if keys.is_empty() {
            return Err(ForgetError::Unknown);
        }
        let mut leases: Vec<_> =
            keys.iter().map(|kv| kv.lease).filter(|lease| *lease != LeaseId(0)).collect();
        leases.sort_unstable();
        leases.dedup();
        for lease in leases {
            if let Some(seconds) = self.0.ledger.remaining(lease).await? {
                return Err(ForgetError::Alive(seconds));
            }
        }
        let mut forgotten = Forgotten::default();
        for kv in keys {
            let reply = self.0.txn(Ok(ledger::forget(&kv))).await?;
            if Forget::of(&reply) == Forget::Done {
                match self.0.keys.parse(&kv.key) {
                    Some(Key::Node(_)) => forgotten.node = true,
                    _ => forgotten.owners += 1,
                }
            }
        }
        Ok(forgotten)
    }
}
