//! Cache of one user's unnamed conversations. Pure: no file, no clock, no randomness.
//!
//! Each conversation has a slot, which is also its position in the user's file. Every change records its slot for the
//! next write. Only free conversations have a digest; claimed and stale ones match nothing, also after a crash.

use super::digest::{Digest, HistoryDigest};

/// Slots beyond the kept conversations: for pending deletions and concurrent turns.
pub(super) const SPARE_SLOTS: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conversation {
    pub(super) name: String,
    pub(super) system: Digest,
    /// Last use, in milliseconds since 1970.
    pub(super) used: u64,
    pub(super) state: SlotState,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum SlotState {
    /// Available: its child has exactly this history.
    Free(Digest),
    Claimed,
    /// The history of its child is unknown.
    Stale,
    /// To be deleted; `queued` once handed to the deletion worker.
    Deleting {
        queued: bool,
    },
}

/// A slot by its number, and what is in it.
pub(super) type Changed = (usize, Option<Conversation>);

/// The conversations of one user, by slot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ConversationCache {
    keep: usize,
    slots: Vec<Option<Conversation>>,
    changed: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slot {
    pub(super) number: usize,
    pub(super) name: String,
    /// History of the child before the request.
    pub(super) former: Digest,
}

impl ConversationCache {
    /// Keeps at most `keep` conversations. Slots beyond the maximum are dropped.
    pub(super) fn new(keep: usize, mut slots: Vec<Option<Conversation>>) -> Self {
        slots.truncate(keep + SPARE_SLOTS);
        let mut cache = Self { keep, slots, changed: Vec::new() };
        cache.evict_to(keep);
        cache
    }

    /// Claims the conversation with this history, else an unused one, else a new one named `new_name`. `None` if no slot
    /// is free.
    pub(super) fn claim(&mut self, digest: &HistoryDigest, new_name: String, now: u64) -> Option<Slot> {
        match self.free(digest.before, digest.system) {
            Some(slot) => Some(slot),
            None => self.claim_new(digest, new_name, now),
        }
    }

    /// Claims this conversation if it has exactly this history.
    pub(super) fn claim_named(&mut self, name: &str, digest: &HistoryDigest) -> Option<Slot> {
        let knows = digest.before;
        let is_it = |it: &Conversation| it.name == name && it.state == SlotState::Free(knows);
        let number = self.slots.iter().position(|slot| slot.as_ref().is_some_and(is_it))?;
        let found = self.slots.get_mut(number)?.as_mut()?;
        found.state = SlotState::Claimed;
        self.changed.push(number);
        Some(Slot { number, name: found.name.clone(), former: knows })
    }

    /// Claims an unused conversation, else a new one named `new_name`. `None` if no slot is free.
    pub(super) fn claim_new(&mut self, digest: &HistoryDigest, new_name: String, now: u64) -> Option<Slot> {
        if let Some(slot) = self.free(Digest::EMPTY, digest.system) {
            return Some(slot);
        }
        self.evict_to(self.keep.saturating_sub(1));
        let number = match self.slots.iter().position(Option::is_none) {
            Some(number) => number,
            None if self.slots.len() < self.keep + SPARE_SLOTS => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return None,
        };
        let (name, system) = (new_name, digest.system);
        let slot = self.slots.get_mut(number)?;
        *slot = Some(Conversation { name: name.clone(), system, used: now, state: SlotState::Claimed });
        self.changed.push(number);
        Some(Slot { number, name, former: Digest::EMPTY })
    }

    /// Claims a conversation with exactly this history. Prefers the same system prompt, then the most recent use, because
    /// its child is most likely warm.
    fn free(&mut self, knows: Digest, system: Digest) -> Option<Slot> {
        let is_free = |it: &&mut Conversation| it.state == SlotState::Free(knows);
        let slots = self.slots.iter_mut().enumerate();
        let matching = slots.filter_map(|(number, slot)| Some((number, slot.as_mut().filter(is_free)?)));
        let (number, found) = matching.max_by_key(|(_, it)| (it.system == system, it.used))?;
        found.state = SlotState::Claimed;
        self.changed.push(number);
        Some(Slot { number, name: found.name.clone(), former: knows })
    }

    /// Releases a claim. `knows` is the history of the child, if known.
    pub(super) fn release(&mut self, claim: &Slot, knows: Option<Digest>, system: Option<Digest>, now: u64) {
        let slot = self.slots.get_mut(claim.number).and_then(Option::as_mut);
        // The conversation may have been removed meanwhile, and its slot reused.
        let Some(it) = slot.filter(|it| it.name == claim.name && it.state == SlotState::Claimed) else {
            return;
        };
        it.state = knows.map_or(SlotState::Stale, SlotState::Free);
        it.system = system.unwrap_or(it.system);
        it.used = it.used.max(now);
        self.changed.push(claim.number);
        self.evict_to(self.keep);
    }

    /// Removes a conversation, because it is used by name or has been deleted.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let is_it = |slot: &Option<Conversation>| slot.as_ref().is_some_and(|it| it.name == name);
        let Some(number) = self.slots.iter().position(is_it) else { return false };
        if let Some(slot) = self.slots.get_mut(number) {
            *slot = None;
        }
        self.changed.push(number);
        true
    }

    /// Deletions that are not queued yet; marks them as queued.
    pub(super) fn take_deletions(&mut self) -> Vec<String> {
        let waiting = self.slots.iter_mut().flatten().filter_map(|it| match &mut it.state {
            SlotState::Deleting { queued } if !*queued => {
                *queued = true;
                Some(it.name.clone())
            }
            _ => None,
        });
        waiting.collect()
    }

    /// Marks a failed deletion for another attempt.
    pub(super) fn retry_deletion(&mut self, name: &str) {
        let found = self.slots.iter_mut().flatten().find(|it| it.name == name);
        if let Some(it) = found.filter(|it| matches!(it.state, SlotState::Deleting { .. })) {
            it.state = SlotState::Deleting { queued: false };
        }
    }

    /// Whether this conversation is to be deleted.
    pub(super) fn is_deleting(&self, name: &str) -> bool {
        let mut deleting =
            self.slots.iter().flatten().filter(|it| matches!(it.state, SlotState::Deleting { .. }));
        deleting.any(|it| it.name == name)
    }

    #[cfg(test)]
    pub(super) fn slots(&self) -> &[Option<Conversation>] {
        &self.slots
    }

    /// Slots changed since the last call, as they are now.
    pub(super) fn take_changed(&mut self) -> Vec<Changed> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|number| (number, self.slots.get(number).cloned().flatten())).collect()
    }

    /// Marks conversations for deletion, stale ones first, then by last use, until at most `kept` are left. Claimed ones
    /// stay.
    fn evict_to(&mut self, kept: usize) {
        let is_deleting = |it: &Conversation| matches!(it.state, SlotState::Deleting { .. });
        let mut count = self.slots.iter().flatten().filter(|it| !is_deleting(it)).count();
        while count > kept {
            let slots = self.slots.iter_mut().enumerate();
            let idle = slots.filter_map(|(number, slot)| {
                let it = slot.as_mut()?;
                let is_free = match it.state {
                    SlotState::Stale => false,
                    SlotState::Free(_) => true,
                    SlotState::Claimed | SlotState::Deleting { .. } => return None,
                };
                Some((is_free, it.used, number, it))
            });
            let Some((_, _, number, victim)) = idle.min_by_key(|(is_free, used, ..)| (*is_free, *used))
            else {
                return;
            };
            victim.state = SlotState::Deleting { queued: false };
            self.changed.push(number);
            count -= 1;
        }
    }
}
