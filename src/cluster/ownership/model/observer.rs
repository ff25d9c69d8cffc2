//! What the observer of a run expects, counts and notices.

use crate::cluster::ledger::UserHash;

/// A guard that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    Nothing,
    UnguardedCommit,
    NoDeadline,
    DeadlineFromAnswer,
    SerializableClaim,
    AcknowledgeFirst,
    ReleaseFirst,
    RejoinFirst,
    OwnHeadForgotten,
    ReleaseOnce,
}

/// What the observer has noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(dead_code, reason = "the fields are for the reader of a failed run")]
pub(super) enum Violation {
    TwoChildren { at: u64, user: UserHash, nodes: (usize, usize) },
    History { at: u64, user: UserHash, before: Vec<Turn>, after: Vec<Turn> },
    Lost { user: UserHash, turn: Turn },
    EndedTwice { turn: Turn },
    NotEnded { turn: Turn },
    ObjectTwice { at: u64, user: UserHash },
    NotServed { user: UserHash },
    Unfit { at: u64, what: &'static str },
}

pub(super) type Turn = u64;

/// What occurred in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) acknowledged: u64,
    pub(super) failed: u64,
    pub(super) forwarded: u64,
    pub(super) fenced: u64,
    pub(super) lapsed: u64,
    pub(super) commits_repeated: u64,
    pub(super) own_heads: u64,
    pub(super) released: u64,
    pub(super) orphans: u64,
    pub(super) crashes: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.failed += other.failed;
        self.forwarded += other.forwarded;
        self.fenced += other.fenced;
        self.lapsed += other.lapsed;
        self.commits_repeated += other.commits_repeated;
        self.own_heads += other.own_heads;
        self.released += other.released;
        self.orphans += other.orphans;
        self.crashes += other.crashes;
    }

    /// What must occur now and then.
    pub(super) fn rare(&self) -> [(&'static str, u64); 8] {
        [
            ("forwarded", self.forwarded),
            ("fenced", self.fenced),
            ("lapsed", self.lapsed),
            ("commits repeated", self.commits_repeated),
            ("own heads", self.own_heads),
            ("released", self.released),
            ("orphans", self.orphans),
            ("crashes", self.crashes),
        ]
    }
}
