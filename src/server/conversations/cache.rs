//! The conversations of one user that were begun for clients that name none. Pure: no file, no clock, no chance.
//!
//! Each has a place, which is also its place in the user's file; every change notes the place, so that it can be
//! written. A conversation that is claimed, or whose child may know more than any client tells, has no digest here:
//! nothing can be matched with it, now or after a crash.

use super::digest::{Digest, Told};

/// Places beyond the kept ones: for conversations that are about to be deleted, and for turns at the same time.
pub(super) const SPARE_PLACES: usize = 64;

/// What is known of one conversation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conversation {
    pub(super) name: String,
    pub(super) system: Digest,
    /// When it was used last, in milliseconds since 1970.
    pub(super) used: u64,
    pub(super) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum State {
    /// Its child knows exactly this history.
    Free(Digest),
    /// A request has it.
    Claimed,
    /// Nobody knows what its child knows.
    Spent,
    /// To be deleted; `queued`: somebody has been told to.
    Doomed { queued: bool },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shelf {
    keep: usize,
    places: Vec<Option<Conversation>>,
    changed: Vec<usize>,
}

/// A conversation that a request has got.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub(super) number: usize,
    pub(super) name: String,
    /// What its child knows as long as it has not heard of the request.
    pub(super) former: Digest,
}

impl Shelf {
    /// At most `keep` conversations are kept. Places beyond all that there can be are not looked at.
    pub(super) fn new(keep: usize, mut places: Vec<Option<Conversation>>) -> Self {
        places.truncate(keep + SPARE_PLACES);
        let mut shelf = Self { keep, places, changed: Vec::new() };
        shelf.make_room(keep);
        shelf
    }

    /// The conversation that has this history, or one that knows nothing yet: `new_name`, unless there is one that was
    /// begun and never used. `None`: there is no place.
    pub(super) fn claim(&mut self, told: &Told, new_name: String, now: u64) -> Option<Place> {
        if let Some(place) = [told.before, Digest::NOTHING].iter().find_map(|it| self.free(*it, told.system))
        {
            return Some(place);
        }
        self.make_room(self.keep.saturating_sub(1));
        let number = match self.places.iter().position(Option::is_none) {
            Some(number) => number,
            None if self.places.len() < self.keep + SPARE_PLACES => {
                self.places.push(None);
                self.places.len() - 1
            }
            None => return None,
        };
        let (name, system) = (new_name, told.system);
        let place = self.places.get_mut(number)?;
        *place = Some(Conversation { name: name.clone(), system, used: now, state: State::Claimed });
        self.changed.push(number);
        Some(Place { number, name, former: Digest::NOTHING })
    }

    /// Claims a conversation that knows exactly this; among equals one with the same system prompt, and the one that
    /// was used last, for its child is the most likely to be warm.
    fn free(&mut self, knows: Digest, system: Digest) -> Option<Place> {
        let is_free = |it: &&mut Conversation| it.state == State::Free(knows);
        let places = self.places.iter_mut().enumerate();
        let matching = places.filter_map(|(number, place)| Some((number, place.as_mut().filter(is_free)?)));
        let (number, found) = matching.max_by_key(|(_, it)| (it.system == system, it.used))?;
        found.state = State::Claimed;
        self.changed.push(number);
        Some(Place { number, name: found.name.clone(), former: knows })
    }

    /// The request is done with it. `knows` is what its child knows now, if anybody can tell.
    pub(super) fn give_back(
        &mut self,
        place: &Place,
        knows: Option<Digest>,
        system: Option<Digest>,
        now: u64,
    ) {
        let slot = self.places.get_mut(place.number).and_then(Option::as_mut);
        // It may have been taken off the shelf meanwhile, and another one stand in its place.
        let Some(it) = slot.filter(|it| it.name == place.name && it.state == State::Claimed) else { return };
        it.state = knows.map_or(State::Spent, State::Free);
        it.system = system.unwrap_or(it.system);
        it.used = it.used.max(now);
        self.changed.push(place.number);
        self.make_room(self.keep);
    }

    /// It is nobody's business here any more: somebody uses it by its name, or has deleted it.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let is_it = |place: &Option<Conversation>| place.as_ref().is_some_and(|it| it.name == name);
        let Some(number) = self.places.iter().position(is_it) else { return false };
        if let Some(place) = self.places.get_mut(number) {
            *place = None;
        }
        self.changed.push(number);
        true
    }

    /// Names to be deleted of which nobody has been told yet.
    pub(super) fn doomed(&mut self) -> Vec<String> {
        let waiting = self.places.iter_mut().flatten().filter_map(|it| match &mut it.state {
            State::Doomed { queued } if !*queued => {
                *queued = true;
                Some(it.name.clone())
            }
            _ => None,
        });
        waiting.collect()
    }

    /// It could not be deleted; it will be tried again.
    pub(super) fn still_there(&mut self, name: &str) {
        let found = self.places.iter_mut().flatten().find(|it| it.name == name);
        if let Some(it) = found.filter(|it| matches!(it.state, State::Doomed { .. })) {
            it.state = State::Doomed { queued: false };
        }
    }

    /// Whether this is still to be deleted.
    pub(super) fn is_doomed(&self, name: &str) -> bool {
        let mut doomed = self.places.iter().flatten().filter(|it| matches!(it.state, State::Doomed { .. }));
        doomed.any(|it| it.name == name)
    }

    pub(super) fn places(&self) -> &[Option<Conversation>] {
        &self.places
    }

    /// The places that have changed since this was asked last.
    pub(super) fn take_changed(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.changed)
    }

    /// Dooms those that nobody can go on with, then those that were used least recently, until at most `kept` are left.
    /// One that is claimed stays.
    fn make_room(&mut self, kept: usize) {
        let is_doomed = |it: &Conversation| matches!(it.state, State::Doomed { .. });
        let mut count = self.places.iter().flatten().filter(|it| !is_doomed(it)).count();
        while count > kept {
            let places = self.places.iter_mut().enumerate();
            let idle = places.filter_map(|(number, place)| {
                let it = place.as_mut()?;
                let is_free = match it.state {
                    State::Spent => false,
                    State::Free(_) => true,
                    State::Claimed | State::Doomed { .. } => return None,
                };
                Some((is_free, it.used, number, it))
            });
            let Some((_, _, number, victim)) = idle.min_by_key(|(is_free, used, ..)| (*is_free, *used))
            else {
                return;
            };
            victim.state = State::Doomed { queued: false };
            self.changed.push(number);
            count -= 1;
        }
    }
}
