//! State of one user.

use super::{CommitId, Ticket};
use crate::cluster::ledger::{Fence, Head, Stored};

/// A user, with the requests that wait for its next state.
#[derive(Debug)]
pub(super) struct User {
    pub(super) waiting: Vec<Ticket>,
    pub(super) state: State,
}

impl User {
    /// Without a request, to be given a state.
    pub(super) fn idle() -> Self {
        Self { waiting: Vec::new(), state: State::Claiming { attempt: 0 } }
    }

    /// Number of its requests.
    pub(super) fn requests(&self) -> usize {
        self.waiting.len() + self.state.held().map_or(0, |held| held.running.len())
    }
}

#[derive(Debug)]
pub(super) enum State {
    Claiming { attempt: u64 },
    Restoring(Held),
    Owned(Held),
    Closing(Held),
    Releasing { fence: Fence, attempt: u32 },
    Stopping { fence: Fence },
}

/// An ownership that is held.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) fence: Fence,
    pub(super) stored: Stored,
    pub(super) running: Vec<Ticket>,
    /// To be closed when nothing runs.
    pub(super) leaving: bool,
    pub(super) commit: Option<Pending>,
}

/// A head that is being stored.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) id: CommitId,
    pub(super) head: Head,
    pub(super) attempt: u32,
}

impl Held {
    pub(super) fn new(fence: Fence, stored: Stored) -> Self {
        Self { fence, stored, running: Vec::new(), leaving: false, commit: None }
    }

    /// Nothing of the user runs.
    pub(super) fn rests(&self) -> bool {
        self.running.is_empty() && self.commit.is_none()
    }
}

impl State {
    pub(super) fn held(&self) -> Option<&Held> {
        match self {
            Self::Restoring(held) | Self::Owned(held) | Self::Closing(held) => Some(held),
            Self::Claiming { .. } | Self::Releasing { .. } | Self::Stopping { .. } => None,
        }
    }

    /// The ownership whose heads may be stored.
    pub(super) fn served(&mut self) -> Option<&mut Held> {
        match self {
            Self::Owned(held) | Self::Closing(held) => Some(held),
            _ => None,
        }
    }
}
