//! What happens to the users of a node, and what is done about it.

use std::time::Duration;

use crate::cluster::ledger::{
    Claim, Commit, Fence, Head, LeaseId, LedgerError, NodeId, Revision, Stored, UserHash,
};

/// A moment of the boot clock of this machine, which counts on while the machine is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Moment {
    pub(crate) nanos: u64,
}

impl Moment {
    pub(crate) fn after(self, time: Duration) -> Self {
        Self { nanos: self.nanos.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)) }
    }

    /// The time until a later moment; zero if that has passed.
    pub(crate) fn until(self, later: Self) -> Duration {
        Duration::from_nanos(later.nanos.saturating_sub(self.nanos))
    }
}

/// Number of a request that wants a user.
pub(crate) type Ticket = u64;
/// Number of a commit.
pub(crate) type CommitId = u64;

/// Whether a node lets its users go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drain {
    Off,
    /// No further users. Those with running work get more of it, until nothing of them runs.
    WhenIdle,
    /// As before, but new work of a user waits for the end of the running one, and then goes to another node. Otherwise
    /// work that overlaps could keep a user for ever.
    Now,
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The ledger does not answer, or the lease of this node is lost.
    #[error("the cluster's ledger is not available")]
    Unavailable,
    /// The request has waited long enough; the user may still come.
    #[error("the user did not come to its node in time")]
    Late,
    /// The node takes no further users. Another one may.
    #[error("the node is draining")]
    Draining,
    /// The node has its maximum number of users.
    #[error("the node has its maximum number of users")]
    Full,
    /// The user has its maximum number of requests.
    #[error("the user has too many requests")]
    Busy,
    /// The files of the user could not be brought here.
    #[error("the user's files could not be restored")]
    NotRestored,
    /// A newer version has written the head.
    #[error("the user's head cannot be read")]
    Unreadable,
}

/// How a commit ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CommitEnd {
    /// Stored.
    Done,
    /// Not stored: the ownership is over.
    Fenced,
    /// The ownership is over, and it may be stored or not.
    Unknown,
    /// Not stored: another commit of the user runs.
    Busy,
    /// Not stored: the head does not follow the stored one.
    Behind(Stored),
    /// Not stored: the head is larger than the ledger takes.
    TooLarge,
}

/// What happens.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A request wants a user. It is answered by a grant, a forward or a refusal.
    Wanted {
        user: UserHash,
        ticket: Ticket,
    },
    /// As `Wanted`, of a request that may have a grant already.
    WantedAgain {
        user: UserHash,
        ticket: Ticket,
    },
    /// A request has ended, or waits no longer.
    Finished {
        user: UserHash,
        ticket: Ticket,
    },
    Claimed {
        user: UserHash,
        attempt: u64,
        result: Result<Claim, LedgerError>,
    },
    Restored {
        user: UserHash,
        fence: Fence,
        ok: bool,
    },
    /// The next head of a user is to be stored.
    CommitWanted {
        user: UserHash,
        fence: Fence,
        commit: CommitId,
        head: Head,
    },
    Committed {
        user: UserHash,
        fence: Fence,
        commit: CommitId,
        result: Result<Commit, LedgerError>,
    },
    /// The user is to leave this node when nothing of it runs. The next request of it keeps it.
    Evict {
        user: UserHash,
    },
    /// The children have ended, and what was open is stored.
    Closed {
        user: UserHash,
        fence: Fence,
    },
    /// The children may live still.
    CloseFailed {
        user: UserHash,
        fence: Fence,
    },
    Released {
        user: UserHash,
        fence: Fence,
        result: Result<(), LedgerError>,
    },
    Stopped {
        user: UserHash,
        fence: Fence,
    },
    /// The node takes no further users and lets its users go, or no longer so.
    Drain(Drain),
    /// The watch saw the owner's key, as of a revision.
    Seen {
        user: UserHash,
        owner: Option<(NodeId, Fence)>,
        revision: Revision,
    },
    Renewed {
        lease: LeaseId,
        deadline: Moment,
        gone: Moment,
    },
    LeaseLost {
        lease: LeaseId,
    },
    Joined {
        lease: LeaseId,
        deadline: Moment,
        gone: Moment,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Answer: [`Event::Claimed`].
    Claim {
        user: UserHash,
        attempt: u64,
        lease: LeaseId,
    },
    /// Brings the files of the user to its head. Answer: [`Event::Restored`].
    Restore {
        user: UserHash,
        fence: Fence,
        stored: Stored,
    },
    /// The request may work, until [`Action::Stop`] of this fence.
    Grant {
        ticket: Ticket,
        user: UserHash,
        fence: Fence,
    },
    /// The request belongs to another node.
    Forward {
        ticket: Ticket,
        node: NodeId,
    },
    Refuse {
        ticket: Ticket,
        why: Refusal,
    },
    /// Answer: [`Event::Committed`]. Later attempts wait before.
    Commit {
        user: UserHash,
        fence: Fence,
        commit: CommitId,
        expected: Revision,
        head: Head,
        attempt: u32,
    },
    CommitEnded {
        commit: CommitId,
        end: CommitEnd,
    },
    /// Ends the children in order and stores what is not stored yet. Answer: [`Event::Closed`].
    Close {
        user: UserHash,
        fence: Fence,
    },
    /// Answer: [`Event::Released`]. Later attempts wait before.
    Release {
        user: UserHash,
        fence: Fence,
        attempt: u32,
    },
    /// Ends the children and the work of the user at once, a restore or close included. Answer: [`Event::Stopped`].
    Stop {
        user: UserHash,
        fence: Fence,
    },
    /// Ends the last lease and takes a new one. Answer: [`Event::Joined`].
    Rejoin {
        revoke: Option<LeaseId>,
    },
}
