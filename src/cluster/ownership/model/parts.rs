//! What a node of a run consists of.

use super::observer::Turn;
use super::world::{MS, SECOND};
use crate::cluster::ledger::{Fence, Head, LeaseId, Stored, Txn, UserHash};
use crate::cluster::ownership::{Action, CommitId, Limits, Moment, Ticket};

pub(super) const MARGIN: u64 = SECOND / 2;
/// Maximum time that the shim takes to kill its tree: within the margin, with the difference of the clocks.
pub(super) const MAX_KILL: u64 = 400 * MS;
pub(super) const LIMITS: Limits = Limits { users: 100, requests: 20 };

/// A request to the store.
#[derive(Debug, Clone)]
pub(super) enum Rpc {
    Txn(Txn),
    Grant,
    Renew(LeaseId),
    Revoke(LeaseId),
}

/// What a request to the store is about, for its answer.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Claim { user: UserHash, attempt: u64, lease: LeaseId },
    Commit { user: UserHash, fence: Fence, commit: CommitId, head: Head },
    Release { user: UserHash, fence: Fence },
    Renew { lease: LeaseId, sent: u64 },
    Revoke,
    Grant { sent: u64 },
    Join { lease: LeaseId, sent: u64 },
}

#[derive(Debug, Clone)]
pub(super) enum Timer {
    Renew,
    Timeout(u64),
    Tick,
    Again(Action),
    Join,
    Restored { user: UserHash, fence: Fence, stored: Stored },
    TurnDone { ticket: Ticket },
    Closed { user: UserHash, fence: Fence },
    Stopped { user: UserHash, fence: Fence },
    WaitOver { ticket: Ticket },
}

/// Counts at a speed of its own, and has jumped forward.
#[derive(Debug)]
pub(super) struct Clock {
    pub(super) rate: f64,
    pub(super) offset: u64,
    pub(super) jump: u64,
}

impl Clock {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "short"
    )]
    pub(super) fn at(&self, now: u64) -> Moment {
        Moment { nanos: self.offset + self.jump + (now as f64 * self.rate) as u64 }
    }
}

#[derive(Debug)]
pub(super) struct Child {
    /// True time at which it has ended, if it is being ended.
    pub(super) ends: Option<u64>,
    /// The deadline that its shim knows, in the time of the node, and the time that the kill takes.
    pub(super) deadline: u64,
    pub(super) kill: u64,
}

pub(super) struct Work {
    pub(super) user: UserHash,
    pub(super) turn: Turn,
    pub(super) hops: u8,
    pub(super) granted: Option<Fence>,
    /// Without the guard: before it is stored.
    pub(super) acknowledged: bool,
}
