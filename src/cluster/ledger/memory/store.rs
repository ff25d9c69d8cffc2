//! Keys, revisions, leases and transactions, as etcd has them. Time passes by calls only.

use std::collections::BTreeMap;

use crate::cluster::ledger::error::LedgerError;
use crate::cluster::ledger::kv::{
    Change, Compare, KeyValue, LeaseId, Operation, Page, Reply, Revision, Txn, TxnReply,
};

/// Keys of a page.
const PAGE: usize = 100;
const SECOND: u64 = 1_000_000_000;

/// The state of the store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    now: u64,
    revision: Revision,
    keys: BTreeMap<Vec<u8>, KeyValue>,
    /// Seconds, and when it ends.
    leases: BTreeMap<LeaseId, (u64, u64)>,
    last_lease: i64,
    history: Vec<Change>,
    compacted: Revision,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            now: 0,
            revision: 1,
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
            history: Vec::new(),
            compacted: 0,
        }
    }
}

impl Store {
    /// The time is now this number of nanoseconds: leases that have ended are removed.
    pub(crate) fn pass(&mut self, now: u64) {
        self.now = self.now.max(now);
        let ended: Vec<_> =
            self.leases.iter().filter(|(_, (_, end))| *end <= self.now).map(|(id, _)| *id).collect();
        for lease in ended {
            self.revoke(lease);
        }
    }

    /// When the next lease ends.
    pub(crate) fn next_end(&self) -> Option<u64> {
        self.leases.values().map(|(_, end)| *end).min()
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    pub(crate) fn grant(&mut self, seconds: u64) -> LeaseId {
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        self.leases.insert(id, (seconds, self.now + seconds * SECOND));
        id
    }

    pub(crate) fn renew(&mut self, lease: LeaseId) -> Result<u64, LedgerError> {
        let (seconds, end) = self.leases.get_mut(&lease).ok_or(LedgerError::LeaseGone)?;
        *end = self.now + *seconds * SECOND;
        Ok(*seconds)
    }

    pub(crate) fn revoke(&mut self, lease: LeaseId) {
        if self.leases.remove(&lease).is_none() {
            return;
        }
        let keys: Vec<_> =
            self.keys.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect();
        if !keys.is_empty() {
            self.revision += 1;
        }
        for key in keys {
            self.delete(&key);
        }
    }

    /// When a lease ends, in nanoseconds.
    pub(crate) fn end(&self, lease: LeaseId) -> Option<u64> {
        self.leases.get(&lease).map(|(_, end)| *end)
    }

    pub(crate) fn remaining(&self, lease: LeaseId) -> Option<u64> {
        self.leases.get(&lease).map(|(_, end)| (end - self.now) / SECOND)
    }

    pub(crate) fn range(&self, start: &[u8], end: &[u8], at: Revision) -> Result<Page, LedgerError> {
        // Old states are not kept: a page of one is refused as if it were compacted.
        if at != 0 && at != self.revision {
            return Err(LedgerError::Compacted);
        }
        let mut keys: Vec<_> =
            self.keys.range(start.to_vec()..end.to_vec()).take(PAGE + 1).map(|(_, kv)| kv.clone()).collect();
        let more = keys.len() > PAGE;
        keys.truncate(PAGE);
        Ok(Page { revision: self.revision, keys, more })
    }

    pub(crate) fn txn(&mut self, txn: &Txn) -> Result<TxnReply, LedgerError> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let steps = if succeeded { &txn.success } else { &txn.failure };
        let dead = |step: &Operation| match step {
            Operation::Put { lease, .. } => *lease != LeaseId(0) && !self.leases.contains_key(lease),
            _ => false,
        };
        if steps.iter().any(dead) {
            return Err(LedgerError::LeaseGone);
        }
        let writes = |step: &Operation| match step {
            Operation::Put { .. } => true,
            Operation::Delete { key } => self.keys.contains_key(key),
            Operation::Get { .. } => false,
        };
        if steps.iter().any(writes) {
            self.revision += 1;
        }
        let replies = steps.iter().map(|step| self.step(step)).collect();
        Ok(TxnReply { succeeded, revision: self.revision, replies })
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Created(key, revision) => self.keys.get(key).map_or(0, |kv| kv.created) == *revision,
            Compare::Modified(key, revision) => self.keys.get(key).map_or(0, |kv| kv.modified) == *revision,
            Compare::Lease(key, lease) => self.keys.get(key).map_or(LeaseId(0), |kv| kv.lease) == *lease,
        }
    }

    fn step(&mut self, step: &Operation) -> Reply {
        match step {
            Operation::Put { key, value, lease } => {
                let created = self.keys.get(key).map_or(self.revision, |kv| kv.created);
                let (key, value) = (key.clone(), value.clone());
                let kv =
                    KeyValue { key: key.clone(), value, created, modified: self.revision, lease: *lease };
                self.history.push(Change::Put(kv.clone()));
                self.keys.insert(key, kv);
                Reply::Put
            }
            Operation::Delete { key } => {
                self.delete(key);
                Reply::Deleted
            }
            Operation::Get { key } => Reply::Got(self.keys.get(key).cloned()),
        }
    }

    fn delete(&mut self, key: &[u8]) {
        if self.keys.remove(key).is_some() {
            self.history.push(Change::Deleted { key: key.to_vec(), revision: self.revision });
        }
    }

    /// The changes from a revision on.
    pub(crate) fn since(&self, from: Revision) -> Result<Vec<Change>, LedgerError> {
        if from <= self.compacted {
            return Err(LedgerError::Compacted);
        }
        let begin = self.history.partition_point(|change| change.revision() < from);
        Ok(self.history.get(begin..).unwrap_or_default().to_vec())
    }

    /// Whether there is a change of a range from a revision on. Changes that are forgotten count.
    pub(crate) fn has_change(&self, from: Revision, start: &[u8], end: &[u8]) -> bool {
        let begin = self.history.partition_point(|change| change.revision() < from);
        let changes = self.history.get(begin..).unwrap_or_default();
        from <= self.compacted || changes.iter().any(|change| change.key() >= start && change.key() < end)
    }

    /// Forgets the changes up to now.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }
}
