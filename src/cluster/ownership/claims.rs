//! From the request for a user to the ownership.

use super::user::{Held, State, User};
use super::{Action, Drain, Lease, Ownership, Refusal, Ticket};
use crate::cluster::ledger::{Claim, Fence, LedgerError, UserHash, Won};

impl Ownership {
    pub(super) fn wanted(&mut self, hash: UserHash, ticket: Ticket) {
        let limits = self.limits;
        let is_new = !self.users.contains_key(&hash);
        let (draining, later) = (self.is_draining(), self.draining == Drain::Now);
        let refuse = |why| Action::Refuse { ticket, why };
        if is_new {
            let refusal = match self.lease {
                Lease::Ended { .. } => Some(Refusal::Unavailable),
                Lease::Held { .. } if draining => Some(Refusal::Draining),
                Lease::Held { .. } if self.users.len() >= limits.users => Some(Refusal::Full),
                Lease::Held { .. } => None,
            };
            match refusal {
                Some(why) => self.out.push(refuse(why)),
                None => self.claim(hash, vec![ticket]),
            }
            return;
        }
        let Some(user) = self.users.get_mut(&hash) else { return };
        let is_full = user.requests() >= limits.requests;
        match &mut user.state {
            _ if is_full => self.out.push(refuse(Refusal::Busy)),
            State::Owned(held) if !later => {
                held.leaving = false;
                held.running.push(ticket);
                self.out.push(Action::Grant { ticket, user: hash, fence: held.fence });
            }
            _ => user.waiting.push(ticket),
        }
    }

    /// While something of a user runs, the request may be part of it: to wait for its end would be to wait for itself.
    pub(super) fn wanted_again(&mut self, hash: UserHash, ticket: Ticket) {
        let limit = self.limits.requests;
        let user = self.users.get_mut(&hash).filter(|user| user.requests() < limit);
        match user.map(|user| &mut user.state) {
            Some(State::Owned(held)) if !held.running.is_empty() => {
                held.running.push(ticket);
                self.out.push(Action::Grant { ticket, user: hash, fence: held.fence });
            }
            _ => self.wanted(hash, ticket),
        }
    }

    pub(super) fn claim(&mut self, hash: UserHash, waiting: Vec<Ticket>) {
        let Lease::Held { id: lease, .. } = self.lease else {
            return self.refuse(waiting, Refusal::Unavailable);
        };
        if self.is_draining() {
            return self.refuse(waiting, Refusal::Draining);
        }
        self.attempts = self.attempts.wrapping_add(1);
        let attempt = self.attempts;
        self.users.insert(hash, User { waiting, state: State::Claiming { attempt } });
        self.out.push(Action::Claim { user: hash, attempt, lease });
    }

    pub(super) fn refuse(&mut self, tickets: Vec<Ticket>, why: Refusal) {
        self.out.extend(tickets.into_iter().map(|ticket| Action::Refuse { ticket, why }));
    }

    /// A request has ended, or waits no longer.
    pub(super) fn finished(&mut self, hash: UserHash, ticket: Ticket) {
        let Some(user) = self.users.get_mut(&hash) else { return };
        user.waiting.retain(|waiting| *waiting != ticket);
        if let State::Owned(held) = &mut user.state {
            held.running.retain(|running| *running != ticket);
            self.close_if_idle(hash);
        }
    }

    pub(super) fn claimed(&mut self, hash: UserHash, attempt: u64, result: Result<Claim, LedgerError>) {
        let draining = self.is_draining();
        let Some(user) = self.users.get_mut(&hash) else { return };
        if !matches!(user.state, State::Claiming { attempt: current } if current == attempt) {
            return;
        }
        match result {
            Ok(Claim::Won(Won { fence, stored })) if !draining && !user.waiting.is_empty() => {
                user.state = State::Restoring(Held::new(fence, stored.clone()));
                self.out.push(Action::Restore { user: hash, fence, stored });
            }
            Ok(Claim::Won(Won { fence, .. })) => self.release(hash, fence),
            Ok(Claim::Unreadable(fence, _)) => {
                let waiting = std::mem::take(&mut user.waiting);
                self.refuse(waiting, Refusal::Unreadable);
                self.release(hash, fence);
            }
            Ok(Claim::Owned(node, _)) => {
                let waiting = self.forget(hash);
                if node == self.node {
                    // The key of an earlier lease, which ends soon.
                    return self.refuse(waiting, Refusal::Unavailable);
                }
                let forward = |ticket| Action::Forward { ticket, node: node.clone() };
                self.out.extend(waiting.into_iter().map(forward));
            }
            Err(LedgerError::LeaseGone) => {
                let waiting = self.forget(hash);
                self.refuse(waiting, Refusal::Unavailable);
                if let Lease::Held { id, .. } = self.lease {
                    self.lease_lost(id);
                }
            }
            // An attempt that took effect all the same is seen by the watch, or by the next claim.
            Err(_) => {
                let waiting = self.forget(hash);
                self.refuse(waiting, Refusal::Unavailable);
            }
        }
    }

    pub(super) fn restored(&mut self, hash: UserHash, fence: Fence, ok: bool) {
        let draining = self.is_draining();
        let Some(user) = self.users.get_mut(&hash) else { return };
        let State::Restoring(held) = &mut user.state else { return };
        if held.fence != fence {
            return;
        }
        if !ok {
            let waiting = std::mem::take(&mut user.waiting);
            self.refuse(waiting, Refusal::NotRestored);
            return self.release(hash, fence);
        }
        let mut held = held.clone();
        if !draining {
            held.running = std::mem::take(&mut user.waiting);
            let grant = |ticket: &Ticket| Action::Grant { ticket: *ticket, user: hash, fence };
            self.out.extend(held.running.iter().map(grant));
        }
        user.state = State::Owned(held);
        self.close_if_idle(hash);
    }

    /// Nothing of the ownership is left. Requests that wait begin the next one.
    pub(super) fn end(&mut self, hash: UserHash) {
        let waiting = self.forget(hash);
        if !waiting.is_empty() {
            self.claim(hash, waiting);
        }
    }

    pub(super) fn forget(&mut self, hash: UserHash) -> Vec<Ticket> {
        self.users.remove(&hash).map(|user| user.waiting).unwrap_or_default()
    }
}
