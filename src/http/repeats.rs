//! Requests that came before: one whose id its caller gives twice is run once.
//!
//! A turn is not idempotent, and between a caller and us there may be somebody who sends a request again because its
//! answer was slow or was lost. Only requests that a session has taken are remembered: one that was refused before
//! may come again under the same id. Ids that callers did not give are never repeated. Holds digests, no names.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

/// So many are remembered: at a hundred turns per second, more than the minute within which anybody tries again.
const REMEMBERED: usize = 8192;

/// Enough of a digest that two requests never share one.
type Name = [u8; 16];

/// All that were taken.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    names: HashSet<Name>,
    order: VecDeque<Name>,
}

/// A request on its way to its session: forgotten if it is refused there.
#[derive(Debug)]
pub(super) struct Claim {
    repeats: Arc<Repeats>,
    name: Name,
    kept: bool,
}

impl Repeats {
    /// Takes the request of this id for this user; `None` if it came before.
    pub(super) fn claim(self: &Arc<Self>, user: &[u8], id: &str) -> Option<Claim> {
        // Of a fixed length, so that no id and name together look like another pair.
        let user = Sha256::digest(user);
        let digest = Sha256::new().chain_update(user).chain_update(id).finalize();
        let mut name = Name::default();
        name.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        let mut taken = self.lock();
        if !taken.names.insert(name) {
            return None;
        }
        taken.order.push_back(name);
        if taken.order.len() > REMEMBERED
            && let Some(oldest) = taken.order.pop_front()
        {
            taken.names.remove(&oldest);
        }
        Some(Claim { repeats: self.clone(), name, kept: false })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// The session has it: whoever sends it again is told so.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    /// It has not after all.
    pub(super) fn release(&mut self) {
        self.kept = false;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            let mut taken = self.repeats.lock();
            taken.names.remove(&self.name);
            taken.order.retain(|name| *name != self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_of_a_user_is_taken_once_unless_it_was_refused() {
        let repeats = Arc::new(Repeats::default());
        let first = repeats.claim(b"alice", "1").unwrap();
        assert!(repeats.claim(b"alice", "1").is_none(), "still on its way");
        drop(first);
        let mut again = repeats.claim(b"alice", "1").unwrap();
        again.keep();
        drop(again);
        assert!(repeats.claim(b"alice", "1").is_none());
        for (user, id) in [(&b"alice"[..], "2"), (b"bob", "1"), (b"alice1", "")] {
            let mut claim = repeats.claim(user, id).unwrap();
            claim.keep();
        }
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let repeats = Arc::new(Repeats::default());
        for number in 0..=REMEMBERED {
            let mut claim = repeats.claim(b"alice", &number.to_string()).unwrap();
            claim.keep();
        }
        assert!(repeats.claim(b"alice", "1").is_none());
        drop(repeats.claim(b"alice", "0").unwrap());
        let taken = repeats.lock();
        assert!(taken.names.len() <= REMEMBERED && taken.names.len() == taken.order.len());
    }
}
