//! A user's files on this node, from the objects of another one. Blocking.
//!
//! Everything is written beside the files of the data directory first. A note ([`place`]) then says that it is whole, and
//! each piece moves into its place. A crash before the note leaves the old files; after it, the next start moves the rest.
//! A crash of the machine may lose both: a node that boots takes a user over again before it uses anything of the user.

mod aside;
mod place;
mod record;
#[cfg(test)]
mod tests;
mod write;

use std::io;
use std::path::PathBuf;

use super::delta::{Change, Decoded};
use super::key::UserHash;
use super::places::UserPlaces;
use super::state::{ChainSize, UserState};
use place::Stage;
use write::Target;

use crate::model::ids::UserId;

pub(crate) use aside::set_aside;
pub(crate) use place::recover;

/// Why objects are not applied. What they are about stays as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// An object changes what is not there: the chain is not the one that was written.
    #[error("an object does not fit the ones before it")]
    Unfit,
    /// They hold more than a user may have.
    #[error("the objects hold more than a node takes over")]
    TooMuch,
    /// The data directory cannot be written.
    #[error("the data directory: {0}")]
    Io(#[from] io::Error),
}

/// Files of a user that are being written. Dropped unfinished, nothing of them stays.
#[derive(Debug)]
pub(crate) struct Apply {
    places: UserPlaces,
    stage: Stage,
    target: Target,
    state: UserState,
    size: ChainSize,
}

impl Apply {
    /// Begins with nothing. Finishes what a crash has left of the user first.
    ///
    /// # Errors
    /// The data directory cannot be written.
    pub(crate) fn begin(places: UserPlaces) -> io::Result<Self> {
        place::recover_user(&places)?;
        let stage = Stage::create(places.data_dir())?;
        let target = Target::open(&stage)?;
        Ok(Self { places, stage, target, state: UserState::default(), size: ChainSize::default() })
    }

    /// A snapshot follows: what was applied so far does not count.
    ///
    /// # Errors
    /// As [`Apply::begin`].
    pub(crate) fn reset(&mut self) -> io::Result<()> {
        if self.size.entries > 0 {
            self.size = ChainSize::default();
            self.stage = Stage::create(self.places.data_dir())?;
            self.target = Target::open(&self.stage)?;
            self.state = UserState::default();
        }
        Ok(())
    }

    /// Applies the entries of an object, or of a part of one.
    ///
    /// # Errors
    /// [`ApplyError`]; the rest of the chain is of no use then.
    pub(crate) fn object(&mut self, object: &Decoded) -> Result<(), ApplyError> {
        self.size = self.size.with(object.len() as u64, 0);
        for entry in object.entries() {
            self.size = self.size.with(0, 1);
            if !self.size.fits() {
                return Err(ApplyError::TooMuch);
            }
            self.target.entry(&entry, &mut self.state)?;
            if let (Change::Removed, Some(session)) = (entry.change, write::whole_session(&entry)) {
                self.target.remove_session(session)?;
            }
        }
        Ok(())
    }

    /// Leaves everything as it was.
    ///
    /// # Errors
    /// The next start removes what is left.
    pub(crate) fn discard(self) -> io::Result<()> {
        self.stage.discard()
    }

    /// The user, as a record names it, if it is the one that the places are for.
    ///
    /// # Errors
    /// The stage cannot be read.
    pub(crate) fn user(&self) -> io::Result<Option<UserId>> {
        for session in self.stage.recorded()? {
            let key = record::key_in(&self.stage.record(&session));
            if let Some(key) = key.filter(|key| UserHash::of(key.user()) == self.places.hash()) {
                return Ok(Some(key.user().clone()));
            }
        }
        Ok(None)
    }

    /// Sets the places of the user, who is known now.
    pub(crate) fn place_at(&mut self, places: UserPlaces) {
        self.places = places;
    }

    /// Leaves out what is named by the whole digest of the user, which is not known. Whether there was any.
    ///
    /// # Errors
    /// The stage cannot be changed.
    pub(crate) fn leave_out_unnamed(&self) -> io::Result<bool> {
        let mut found = false;
        for name in ["conversations", "responses"] {
            let path = self.stage.records.join(place::OTHERS).join(name);
            found |= path.exists();
            crate::workspace::remove_any(&path)?;
        }
        Ok(found)
    }

    /// Moves everything into its place; what this node had of the user before is removed.
    ///
    /// # Errors
    /// The data directory cannot be written. The next start, or the next taking over, continues.
    pub(crate) fn finish(self) -> io::Result<UserState> {
        let Self { places, stage, target, state, size } = self;
        drop(target);
        let state = record::settle(&places, &stage, state)?.with_size(size);
        place::note(&places, &stage)?;
        // From here on the note decides, also if a step fails.
        let stage = stage.keep();
        place::finish(&places, &stage)?;
        Ok(state)
    }
}

/// The two directories in which files wait for their place.
fn stage_paths(data_dir: &std::path::Path, id: &str) -> (PathBuf, PathBuf) {
    let name = format!("{}{id}", place::STAGE);
    (crate::workspace::records_dir(data_dir).join(&name), crate::workspace::sessions_dir(data_dir).join(name))
}

/// A step that a crash may follow. Tests crash there.
#[cfg(not(test))]
fn passed() {}
#[cfg(test)]
use tests::passed;
