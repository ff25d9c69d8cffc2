//! Files of a user that are about to be replaced, and that no store has. Blocking.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::places::UserPlaces;
use super::place::{create, recover_user};
use crate::workspace::RecordDir;

/// Directory of what was set aside, in the data directory.
const ASIDE: &str = "replaced";

/// Moves the files of a user to a directory of their own, if the user has a conversation here. Returns the directory.
///
/// # Errors
/// A file cannot be moved; a repetition continues.
pub(crate) fn set_aside(places: &UserPlaces, number: u64) -> io::Result<Option<PathBuf>> {
    recover_user(places)?;
    let sessions = places.sessions()?;
    let data_dir = places.data_dir();
    let mut has_begun = false;
    for session in &sessions {
        let record = RecordDir::of(data_dir, session);
        // Also where its record is broken, or a try before has moved it.
        has_begun |= record.session_file().try_exists()?
            || record.broken_file().try_exists()?
            || !places.record(session).try_exists()?;
    }
    if !has_begun {
        return Ok(None);
    }
    let aside = data_dir.join(ASIDE).join(format!("{}-{number}", places.hash()));
    for session in &sessions {
        if let Some(directory) = places.session(session) {
            move_into(&directory, &aside.join("sessions"))?;
        }
        move_into(&places.record(session), &aside.join("records"))?;
    }
    // The list is the last of them: a repetition finds the rest by it.
    for (name, path) in places.others() {
        move_into(&path, &aside.join(name))?;
    }
    Ok(Some(aside))
}

fn move_into(from: &Path, directory: &Path) -> io::Result<()> {
    let Some(name) = from.file_name() else { return Ok(()) };
    match from.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    create(directory)?;
    fs::rename(from, directory.join(name))
}
