//! Decisions on the users of one node: pure, without a clock, a network or a task.
//!
//! [`Ownership::handle`] takes an event at a time and returns what to do. Every requested action is answered by an event.
//!
//! | state of a user | leaves it by |
//! |---|---|
//! | unknown (no entry) | a request: claiming; an own key without a state: releasing |
//! | claiming | won: restoring; lost: its requests go to the owner |
//! | restoring | restored: owned; failed: releasing |
//! | owned | eviction or drain, without a running turn: closing; another owner, the lease or the deadline lost: stopping |
//! | closing | children ended in order and files stored: releasing |
//! | releasing | the key is removed: unknown, or claiming if requests wait |
//! | stopping | children ended at once: releasing, or unknown without a lease |
//!
//! Rules that keep a user from having two owners:
//! * A key is removed only after the children have ended, and so is the lease.
//! * After the deadline of the lease nothing is granted, whatever arrives.
//! * A user is claimed only if nothing of an earlier ownership is open. An unknown release is repeated until it is known.

mod claims;
mod event;
mod holds;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod user;

use std::collections::HashMap;

pub(crate) use event::{Action, CommitEnd, CommitId, Drain, Event, Moment, Refusal, Ticket};
use user::{State, User};

use super::ledger::{Fence, LeaseId, NodeId, Stored, UserHash};

/// Limits of the decisions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Maximum number of users of this node, in any state.
    pub(crate) users: usize,
    /// Maximum number of requests of a user, those that wait and those that work.
    pub(crate) requests: usize,
}

/// The lease of this node, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lease {
    /// None yet, or the last one is lost. Its keys may still exist if it is to be revoked; at `gone` they do not.
    Ended { revoke: Option<LeaseId>, gone: Moment, rejoining: bool },
    /// Held until the deadline at least, and gone for certain at the second moment.
    Held { id: LeaseId, deadline: Moment, gone: Moment },
}

/// State of all users of a node.
#[derive(Debug)]
pub(crate) struct Ownership {
    node: NodeId,
    limits: Limits,
    users: HashMap<UserHash, User>,
    lease: Lease,
    draining: Drain,
    attempts: u64,
    out: Vec<Action>,
}

impl Ownership {
    pub(crate) fn new(node: NodeId, limits: Limits) -> Self {
        let lease = Lease::Ended { revoke: None, gone: Moment::default(), rejoining: true };
        Self {
            node,
            limits,
            users: HashMap::new(),
            lease,
            draining: Drain::Off,
            attempts: 0,
            out: Vec::new(),
        }
    }

    /// The decisions that an event brings about at a moment.
    pub(crate) fn handle(&mut self, now: Moment, event: Event) -> Vec<Action> {
        // A stored head is stored, whatever the time. Everything else counts only before the deadline.
        if let Event::Committed { user, fence, commit, result: Ok(result) } = event {
            self.committed(user, fence, commit, Ok(result));
            self.pass(now);
        } else {
            self.pass(now);
            self.on(event);
        }
        self.rejoin(now);
        std::mem::take(&mut self.out)
    }

    /// The fence of a user that this node owns, for work that needs no claim.
    pub(crate) fn fence(&self, now: Moment, user: UserHash) -> Option<Fence> {
        match (&self.lease, self.users.get(&user).map(|user| &user.state)) {
            (Lease::Held { deadline, .. }, Some(State::Owned(held))) if now < *deadline => Some(held.fence),
            _ => None,
        }
    }

    /// The moment up to which children may live; `None` without a lease.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        match self.lease {
            Lease::Held { deadline, .. } => Some(deadline),
            Lease::Ended { .. } => None,
        }
    }

    /// The user is in some state.
    pub(crate) fn is_known(&self, user: UserHash) -> bool {
        self.users.contains_key(&user)
    }

    /// As [`Self::stored`], of this ownership.
    pub(crate) fn stored_of(&self, user: UserHash, fence: Fence) -> Option<&Stored> {
        let held = self.users.get(&user).and_then(|user| user.state.held());
        held.filter(|held| held.fence == fence).map(|held| &held.stored)
    }

    /// The head of a user that this node holds, as it was last stored.
    pub(crate) fn stored(&self, user: UserHash) -> Option<&Stored> {
        self.users.get(&user).and_then(|user| user.state.held()).map(|held| &held.stored)
    }

    /// Number of users in any state.
    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }

    /// Number of users that are owned and served.
    pub(crate) fn owned(&self) -> usize {
        self.users.values().filter(|user| matches!(user.state, State::Owned(_))).count()
    }

    /// The users that are held, in any order.
    pub(crate) fn held(&self) -> impl Iterator<Item = (UserHash, Fence)> {
        self.users.iter().filter_map(|(hash, user)| user.state.held().map(|held| (*hash, held.fence)))
    }

    /// The users that are owned and are not to leave yet, in any order, and whether nothing of them runs.
    pub(crate) fn served(&self) -> impl Iterator<Item = (UserHash, bool)> {
        self.users.iter().filter_map(|(hash, user)| match &user.state {
            State::Owned(held) if !held.leaving => Some((*hash, held.rests())),
            _ => None,
        })
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining != Drain::Off
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Wanted { user, ticket } => self.wanted(user, ticket),
            Event::WantedAgain { user, ticket } => self.wanted_again(user, ticket),
            Event::Finished { user, ticket } => self.finished(user, ticket),
            Event::Claimed { user, attempt, result } => self.claimed(user, attempt, result),
            Event::Restored { user, fence, ok } => self.restored(user, fence, ok),
            Event::CommitWanted { user, fence, commit, head } => {
                self.commit_wanted(user, fence, commit, head)
            }
            Event::Committed { user, fence, commit, result } => self.committed(user, fence, commit, result),
            Event::Evict { user } => self.evict(user),
            Event::Closed { user, fence } => self.closed(user, fence),
            Event::CloseFailed { user, fence } => self.close_failed(user, fence),
            Event::Released { user, fence, result } => self.released(user, fence, result),
            Event::Stopped { user, fence } => self.stopped(user, fence),
            Event::Drain(draining) => self.drain(draining),
            Event::Seen { user, owner, revision } => self.seen(user, owner, revision),
            Event::Renewed { lease, deadline, gone } => self.renewed(lease, deadline, gone),
            Event::LeaseLost { lease } => self.lease_lost(lease),
            Event::Joined { lease, deadline, gone } => self.lease = Lease::Held { id: lease, deadline, gone },
            Event::Tick => {}
        }
    }

    /// The deadline of the lease may have passed.
    fn pass(&mut self, now: Moment) {
        if let Lease::Held { id, deadline, gone } = self.lease
            && now >= deadline
        {
            self.end_lease(Some(id), gone);
        }
    }

    fn renewed(&mut self, lease: LeaseId, at: Moment, gone_at: Moment) {
        if let Lease::Held { id, deadline, gone } = &mut self.lease
            && *id == lease
        {
            *deadline = at.max(*deadline);
            *gone = gone_at.max(*gone);
        }
    }

    fn lease_lost(&mut self, lease: LeaseId) {
        match self.lease {
            Lease::Held { id, gone, .. } if id == lease => self.end_lease(None, gone),
            // It had passed its deadline before; now its keys are gone for certain.
            Lease::Ended { revoke: Some(id), gone, rejoining: false } if id == lease => {
                self.lease = Lease::Ended { revoke: None, gone, rejoining: false };
            }
            _ => {}
        }
    }

    /// Every user is lost at once.
    fn end_lease(&mut self, revoke: Option<LeaseId>, gone: Moment) {
        self.lease = Lease::Ended { revoke, gone, rejoining: false };
        let mut users: Vec<_> = self.users.keys().copied().collect();
        // An order of its own makes a run repeatable.
        users.sort_unstable();
        for user in users {
            self.lose(user);
        }
    }

    /// A new lease is due when nothing of the last one is left: its children have ended, or its keys are gone anyway. Not
    /// before, also if the lease is lost: its deadline would be taken for that of the children that are being ended.
    fn rejoin(&mut self, now: Moment) {
        let Lease::Ended { revoke, gone, rejoining: false } = self.lease else { return };
        if now >= gone || self.users.is_empty() {
            self.lease = Lease::Ended { revoke, gone, rejoining: true };
            self.out.push(Action::Rejoin { revoke });
        }
    }
}
