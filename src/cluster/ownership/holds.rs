//! From the ownership to its end: commits, eviction and drain, loss.

use super::user::{Pending, State, User};
use super::{Action, CommitEnd, CommitId, Drain, Lease, Ownership, Refusal};
use crate::cluster::ledger::{Commit, Fence, Head, LedgerError, NodeId, Revision, Stored, UserHash};

impl Ownership {
    pub(super) fn commit_wanted(&mut self, hash: UserHash, fence: Fence, commit: CommitId, head: Head) {
        let held = self.users.get_mut(&hash).and_then(|user| user.state.served());
        let end = match held.filter(|held| held.fence == fence) {
            None => CommitEnd::Fenced,
            Some(held) if held.commit.is_some() => CommitEnd::Busy,
            Some(held) if head.fence != fence || !head.follows(held.stored.head.as_ref()) => {
                CommitEnd::Behind(held.stored.clone())
            }
            Some(held) => {
                let expected = held.stored.revision;
                held.commit = Some(Pending { id: commit, head: head.clone(), attempt: 0 });
                self.out.push(Action::Commit { user: hash, fence, commit, expected, head, attempt: 0 });
                return;
            }
        };
        self.out.push(Action::CommitEnded { commit, end });
    }

    pub(super) fn committed(
        &mut self,
        hash: UserHash,
        fence: Fence,
        id: CommitId,
        result: Result<Commit, LedgerError>,
    ) {
        let held = self.users.get_mut(&hash).and_then(|user| user.state.served());
        let Some(held) = held.filter(|held| held.fence == fence) else { return };
        let Some(mut pending) = held.commit.take_if(|pending| pending.id == id) else { return };
        let (end, is_lost) = match result {
            Ok(Commit::Done(revision)) => {
                held.stored = Stored { head: Some(pending.head), revision };
                (CommitEnd::Done, false)
            }
            Ok(Commit::DoneThenFenced) => (CommitEnd::Done, true),
            Ok(Commit::Fenced) => (CommitEnd::Fenced, true),
            Ok(Commit::Conflict(found)) => {
                held.stored = found.clone();
                (CommitEnd::Behind(found), false)
            }
            // Never sent.
            Err(LedgerError::TooLarge(_)) => (CommitEnd::TooLarge, false),
            // Unknown: the same head again, until the answer is known or the ownership is lost.
            Err(_) => {
                pending.attempt = pending.attempt.saturating_add(1);
                let (expected, head, attempt) = (held.stored.revision, pending.head.clone(), pending.attempt);
                held.commit = Some(pending);
                self.out.push(Action::Commit { user: hash, fence, commit: id, expected, head, attempt });
                return;
            }
        };
        self.out.push(Action::CommitEnded { commit: id, end });
        if is_lost {
            self.lose(hash);
        } else {
            self.close_if_idle(hash);
        }
    }

    pub(super) fn evict(&mut self, hash: UserHash) {
        if let Some(State::Owned(held)) = self.users.get_mut(&hash).map(|user| &mut user.state) {
            held.leaving = true;
            self.close_if_idle(hash);
        }
    }

    pub(super) fn drain(&mut self, draining: Drain) {
        self.draining = draining;
        let mut users: Vec<_> = self.users.keys().copied().collect();
        users.sort_unstable();
        for user in users {
            self.close_if_idle(user);
        }
    }

    /// A user that is to leave closes as soon as nothing of it runs.
    pub(super) fn close_if_idle(&mut self, hash: UserHash) {
        let draining = self.is_draining();
        let Some(user) = self.users.get_mut(&hash) else { return };
        if let State::Owned(held) = &user.state
            && (draining || held.leaving)
            && held.rests()
        {
            let fence = held.fence;
            user.state = State::Closing(held.clone());
            self.out.push(Action::Close { user: hash, fence });
        }
    }

    pub(super) fn closed(&mut self, hash: UserHash, fence: Fence) {
        let Some(user) = self.users.get_mut(&hash) else { return };
        let State::Closing(held) = &mut user.state else { return };
        if held.fence != fence {
            return;
        }
        if let Some(pending) = held.commit.take() {
            self.out.push(Action::CommitEnded { commit: pending.id, end: CommitEnd::Unknown });
        }
        self.release(hash, fence);
    }

    pub(super) fn close_failed(&mut self, hash: UserHash, fence: Fence) {
        let state = self.users.get(&hash).map(|user| &user.state);
        if matches!(state, Some(State::Closing(held)) if held.fence == fence) {
            self.lose(hash);
        }
    }

    /// The children have ended: the key can go. Its requests keep waiting.
    pub(super) fn release(&mut self, hash: UserHash, fence: Fence) {
        let user = self.users.entry(hash).or_insert_with(User::idle);
        user.state = State::Releasing { fence, attempt: 0 };
        self.out.push(Action::Release { user: hash, fence, attempt: 0 });
    }

    pub(super) fn released(&mut self, hash: UserHash, of: Fence, result: Result<(), LedgerError>) {
        let Some(user) = self.users.get_mut(&hash) else { return };
        let State::Releasing { fence, attempt } = &mut user.state else { return };
        if *fence != of {
            return;
        }
        match result {
            Ok(()) => self.end(hash),
            Err(_) => {
                *attempt = attempt.saturating_add(1);
                let attempt = *attempt;
                self.out.push(Action::Release { user: hash, fence: of, attempt });
            }
        }
    }

    pub(super) fn stopped(&mut self, hash: UserHash, of: Fence) {
        let state = self.users.get(&hash).map(|user| &user.state);
        if !matches!(state, Some(State::Stopping { fence }) if *fence == of) {
            return;
        }
        // The key may be there still, on this lease: its fence must not be taken for that of a new ownership.
        if matches!(self.lease, Lease::Held { .. }) {
            self.release(hash, of);
        } else {
            self.end(hash);
        }
    }

    /// The watch has seen the owner of a user, as of a revision.
    pub(super) fn seen(&mut self, hash: UserHash, owner: Option<(NodeId, Fence)>, revision: Revision) {
        let own = owner.filter(|(node, _)| *node == self.node).map(|(_, fence)| fence);
        match self.users.get(&hash).map(|user| &user.state) {
            // An attempt to claim, given up before, took effect.
            None => {
                if let Some(fence) = own
                    && matches!(self.lease, Lease::Held { .. })
                {
                    self.release(hash, fence);
                }
            }
            Some(state) => {
                if let Some(held) = state.held()
                    && revision > held.fence.0
                    && own != Some(held.fence)
                {
                    self.lose(hash);
                }
            }
        }
    }

    /// The ownership is over, with the lease or without it: the children must end at once.
    pub(super) fn lose(&mut self, hash: UserHash) {
        let is_held = matches!(self.lease, Lease::Held { .. });
        let Some(user) = self.users.get_mut(&hash) else { return };
        match &mut user.state {
            State::Restoring(held) | State::Owned(held) | State::Closing(held) => {
                let fence = held.fence;
                if let Some(pending) = held.commit.take() {
                    self.out.push(Action::CommitEnded { commit: pending.id, end: CommitEnd::Unknown });
                }
                user.state = State::Stopping { fence };
                self.out.push(Action::Stop { user: hash, fence });
                if !is_held {
                    let waiting = std::mem::take(&mut user.waiting);
                    self.refuse(waiting, Refusal::Unavailable);
                }
            }
            State::Claiming { .. } | State::Releasing { .. } => {
                let waiting = self.forget(hash);
                self.refuse(waiting, Refusal::Unavailable);
            }
            State::Stopping { .. } => {}
        }
    }
}
