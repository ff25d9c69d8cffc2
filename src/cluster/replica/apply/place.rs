//! From the stage to the place: each step can be repeated after a crash. Blocking.
//!
//! `records/.taking/<digest of the user>` exists from when the stage is whole until all is in its place. It names the
//! stage, and what the user has not. A session that is still on the stage has not been moved yet.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::super::places::{UserPlaces, names};
use super::{passed, stage_paths};
use crate::model::ids::SessionHash;
use crate::support::atomic_file::{self, Durability};
use crate::workspace::{DirectoryName, read_own, records_dir, remove_any, sessions_dir};

/// Beginning of the name of a stage, in `records/` and in `sessions/`.
pub(super) const STAGE: &str = ".taken-";
/// Directory of the notes, in `records/`.
const NOTES: &str = ".taking";
/// Longest note.
const MAX_NOTE: u64 = 4096;
/// Longest file with the name of a directory.
const MAX_DIRECTORY_BYTES: u64 = 64;
/// What a user has on the stage in `records/`.
pub(super) const OTHERS: &str = "user";
pub(super) const RECORDS: &str = "records";

/// A note.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    stage: String,
    /// Places beside the sessions that the user does not have.
    absent: Vec<String>,
}

/// Directories in which files wait. Removed when dropped.
#[derive(Debug)]
pub(super) struct Stage {
    id: String,
    pub(super) records: PathBuf,
    pub(super) sessions: PathBuf,
    is_kept: bool,
}

impl Stage {
    pub(super) fn create(data_dir: &Path) -> io::Result<Self> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let (records, sessions) = stage_paths(data_dir, &id);
        let stage = Self { id, records, sessions, is_kept: false };
        for directory in [&stage.records.join(OTHERS), &stage.records.join(RECORDS), &stage.sessions] {
            create(directory)?;
        }
        passed();
        Ok(stage)
    }

    fn of(data_dir: &Path, id: &str) -> Self {
        let (records, sessions) = stage_paths(data_dir, id);
        Self { id: id.to_owned(), records, sessions, is_kept: true }
    }

    /// A note refers to it from now on.
    pub(super) fn keep(mut self) -> Self {
        self.is_kept = true;
        self
    }

    pub(super) fn record(&self, session: &SessionHash) -> PathBuf {
        self.records.join(RECORDS).join(session.as_str())
    }

    pub(super) fn session(&self, session: &SessionHash) -> PathBuf {
        self.sessions.join(session.as_str())
    }

    /// Sessions whose record is on the stage.
    pub(super) fn recorded(&self) -> io::Result<Vec<SessionHash>> {
        let names = names(&self.records.join(RECORDS))?;
        Ok(names.iter().filter_map(|name| SessionHash::parse(name)).collect())
    }

    /// Sessions in the user's list on the stage; `None` once it has been moved.
    pub(super) fn listed(&self) -> io::Result<Option<Vec<SessionHash>>> {
        let list = self.records.join(OTHERS).join("list");
        if !list.is_dir() {
            return Ok(None);
        }
        Ok(Some(names(&list)?.iter().filter_map(|name| SessionHash::parse(name)).collect()))
    }

    /// Removes it at once.
    pub(super) fn discard(mut self) -> io::Result<()> {
        self.is_kept = true;
        self.remove()
    }

    fn remove(&self) -> io::Result<()> {
        remove_any(&self.records).and(remove_any(&self.sessions))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let stage = Self {
            id: String::new(),
            records: self.records.clone(),
            sessions: self.sessions.clone(),
            is_kept: true,
        };
        let remove = move || {
            if let Err(error) = stage.remove() {
                tracing::warn!(%error, "files that were not taken over cannot be removed; the next start tries again");
            }
        };
        // They may be many: a caller that is gone drops this on a thread of the runtime.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Notes that the stage is whole.
pub(super) fn note(places: &UserPlaces, stage: &Stage) -> io::Result<()> {
    let others = places.others();
    let is_absent = |name: &&str| !stage.records.join(OTHERS).join(name).exists();
    let absent = others.iter().map(|(name, _)| *name).filter(is_absent).map(str::to_owned).collect();
    let note = serde_json::to_vec(&Note { stage: stage.id.clone(), absent })?;
    let file = note_file(places);
    create(file.parent().unwrap_or(Path::new("/")))?;
    passed();
    atomic_file::replace(&file, &note, Durability::Kernel)?;
    passed();
    Ok(())
}

/// Moves what is still on the stage.
pub(super) fn finish(places: &UserPlaces, stage: &Stage) -> io::Result<()> {
    let file = note_file(places);
    let note = read_own(&file, MAX_NOTE).map_err(io::Error::from)?;
    let Note { absent, .. } = serde_json::from_slice(&note)?;
    if let Some(listed) = stage.listed()? {
        for session in places.sessions()? {
            if !listed.contains(&session) {
                remove_session(places, &session)?;
                passed();
            }
        }
    }
    for session in stage.recorded()? {
        move_session(places, stage, &session)?;
    }
    for (name, path) in places.others() {
        if absent.iter().any(|it| it == name) {
            remove_any(&path)?;
        } else if name != "list" {
            move_to(&stage.records.join(OTHERS).join(name), &path)?;
        }
    }
    // Last: it says which sessions are to stay.
    move_to(&stage.records.join(OTHERS).join("list"), places.list())?;
    // A user without sessions has no list.
    fs::remove_dir(places.list()).ok();
    remove_any(&file)?;
    passed();
    stage.remove()
}

fn move_session(places: &UserPlaces, stage: &Stage, session: &SessionHash) -> io::Result<()> {
    let (record, files) = (stage.record(session), stage.session(session));
    // A stage is made of sessions that have a name.
    let name = directory_in(&record).ok_or(io::ErrorKind::InvalidData)?;
    if files.is_dir() {
        if let Some(former) = places.session(session) {
            remove_any(&former)?;
            passed();
        }
        move_to(&files, &sessions_dir(places.data_dir()).join(name.as_str()))?;
    }
    move_to(&record, &places.record(session))
}

/// Replaces what is at `to`. Does nothing if it was moved before.
fn move_to(from: &Path, to: &Path) -> io::Result<()> {
    if from.symlink_metadata().is_err() {
        return Ok(());
    }
    create(to.parent().unwrap_or(Path::new("/")))?;
    remove_any(to)?;
    passed();
    fs::rename(from, to)?;
    passed();
    Ok(())
}

/// Name of the session directory that a record directory holds.
pub(super) fn directory_in(record: &Path) -> Option<DirectoryName> {
    let name = read_own(&record.join("directory"), MAX_DIRECTORY_BYTES).ok()?;
    String::from_utf8(name).ok()?.try_into().ok()
}

fn remove_session(places: &UserPlaces, session: &SessionHash) -> io::Result<()> {
    if let Some(directory) = places.session(session) {
        remove_any(&directory)?;
    }
    remove_any(&places.record(session))
}

/// Finishes what a crash has left of this user.
pub(super) fn recover_user(places: &UserPlaces) -> io::Result<()> {
    match read_own(&note_file(places), MAX_NOTE) {
        Err(error) if error.is_absent() => Ok(()),
        Err(error) => Err(error.into()),
        Ok(note) => {
            let Note { stage, .. } = serde_json::from_slice(&note)?;
            finish(places, &Stage::of(places.data_dir(), &stage))
        }
    }
}

/// Finishes or removes what a crash has left of all users. Before anything reads their files.
///
/// # Errors
/// The data directory cannot be read. What cannot be finished is logged, and finished when its user is taken over.
pub(crate) fn recover(data_dir: &Path) -> io::Result<()> {
    let mut waiting = Vec::new();
    for digest in names(&records_dir(data_dir).join(NOTES))? {
        let Some(places) = UserPlaces::of_digest(data_dir, &digest) else { continue };
        if let Err(error) = recover_user(&places) {
            tracing::warn!(%error, "files of a user that were taken over cannot be moved into their place");
            let note = read_own(&note_file(&places), MAX_NOTE).unwrap_or_default();
            waiting
                .extend(serde_json::from_slice::<Note>(&note).map(|note| format!("{STAGE}{}", note.stage)));
        }
    }
    for directory in [records_dir(data_dir), sessions_dir(data_dir)] {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_left = |name: &str| name.starts_with(STAGE) && !waiting.iter().any(|it| it == name);
            if name.to_str().is_some_and(is_left) {
                remove_any(&directory.join(name))?;
            }
        }
    }
    Ok(())
}

fn note_file(places: &UserPlaces) -> PathBuf {
    records_dir(places.data_dir()).join(NOTES).join(places.digest())
}

pub(super) fn create(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}
