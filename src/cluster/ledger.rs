//! The ledger: a small consistent store that decides who owns a user.
//!
//! [`Ledger`] is the part of etcd that is used: ranges, transactions, leases, watches. The keys, records and transactions
//! themselves are pure values, the same for every implementation and for the simulation.

mod error;
pub(crate) mod etcd;
mod keys;
mod kv;
#[cfg(test)]
pub(crate) mod memory;
mod records;
mod requests;

use std::pin::Pin;

pub(crate) use error::LedgerError;
pub(crate) use etcd::{Credentials, Etcd, EtcdSettings, TlsFiles};
pub(crate) use keys::{Key, Keys};
pub(crate) use kv::{Change, KeyValue, LeaseId, Page, Revision, Txn, TxnReply};
#[cfg(test)]
pub(crate) use kv::{Compare, Operation};
pub(crate) use records::{
    Fence, Head, MAX_CHAIN, NodeId, NodeInfo, Owner, RecordError, Span, Stored, UserHash,
};
pub(crate) use requests::{
    Claim, Commit, Forget, Join, NodeUpdate, Won, claim, commit, forget, join, node_update, release, released,
};

/// The answer to a request, later. Boxed, so that the implementations are interchangeable.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, LedgerError>> + Send + 'a>>;

/// A consistent store with leases. Every read is linearizable, and every call ends within a bounded time.
///
/// A transaction that ends with [`LedgerError::Unavailable`] has an unknown result. It may take effect later.
pub(crate) trait Ledger: Send + Sync {
    /// Keys from `start` up to `end`, which is excluded, in order: at most one page of them. `at` is the revision of an
    /// earlier page, and 0 for the first one.
    fn range(&self, start: Vec<u8>, end: Vec<u8>, at: Revision) -> Answer<'_, Page>;

    /// Carries out a transaction.
    fn txn(&self, txn: Txn) -> Answer<'_, TxnReply>;

    /// Creates a lease of at least this number of seconds. Returns it with its seconds.
    fn grant(&self, seconds: u64) -> Answer<'_, (LeaseId, u64)>;

    /// Renews a lease. Returns its seconds; a lease that is gone is [`LedgerError::LeaseGone`].
    fn renew(&self, lease: LeaseId) -> Answer<'_, u64>;

    /// Ends a lease and removes its keys. Also succeeds if the lease is gone.
    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()>;

    /// The remaining seconds of a lease; `None` if it is gone.
    fn remaining(&self, lease: LeaseId) -> Answer<'_, Option<u64>>;

    /// Changes of a range of keys from a revision on, this one included.
    fn watch(&self, start: Vec<u8>, end: Vec<u8>, from: Revision) -> Answer<'_, Box<dyn Watch>>;
}

/// Changes of a range of keys, in order and without a gap.
pub(crate) trait Watch: Send {
    /// The changes of one or more further revisions. Waits a bounded time: [`LedgerError::Silent`] after it. The next
    /// revision to ask for is that of the last change plus one.
    fn next(&mut self) -> Answer<'_, Vec<Change>>;
}
