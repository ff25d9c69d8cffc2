//! Why the ledger gave no answer, or not the one asked for.

/// An error of the ledger. Holds no key, value, address or credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LedgerError {
    /// No endpoint answered in time. A transaction may have taken effect, or may do so later.
    #[error("no endpoint of the ledger answered in time: {0}")]
    Unavailable(&'static str),
    /// The user name or password is wrong, or has no permission.
    #[error("the ledger denies access: {0}")]
    Denied(&'static str),
    /// The lease is gone, and so are its keys.
    #[error("the lease is gone")]
    LeaseGone,
    /// The revision was removed by a compaction: only a new range tells the state.
    #[error("the revision was compacted")]
    Compacted,
    /// The revision is lower than one that was seen before: a copy of the ledger was restored.
    #[error("the ledger has gone back to an earlier revision")]
    WentBack,
    /// The watch had nothing for its maximum time. It may be dead.
    #[error("the watch was silent")]
    Silent,
    /// The database of the ledger is full, or its operator has set an alarm.
    #[error("the ledger has no space")]
    NoSpace,
    /// The ledger refused the request, with the number of a gRPC status.
    #[error("the ledger refused the request with status {0}")]
    Refused(i64),
    /// The answer has not the form that the interface defines.
    #[error("the answer of the ledger is wrong: {0}")]
    BadAnswer(&'static str),
    /// The request or its answer is over a limit.
    #[error("over a limit of the ledger: {0}")]
    TooLarge(&'static str),
}

impl LedgerError {
    /// A later attempt may succeed, and nothing is known about a transaction.
    pub(crate) fn is_unavailable(self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Silent)
    }
}
