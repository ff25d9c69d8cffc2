//! The record of a session that is not in memory: read, begun, or begun again after a damage. Blocking.
//!
//! A record that cannot be understood is moved aside. Its conversation goes on, for the journal names it; the settings of
//! earlier turns are lost. Without a readable journal a new conversation begins in the same directory, and the loss is an
//! event, a metric and the first thing in the next turn.

use std::io;

use super::shelf::{Reserved, SpareKind};
use super::store::{Record, Unreadable};
use super::{known, sessions::Sessions};
use crate::config::JournalMode;
use crate::model::ids::SessionKey;
use crate::support::atomic_file::Durability;
use crate::telemetry::metrics::ContextLost;
use crate::workspace::{RecordDir, Workspace, forget_spare, remove_any};

/// The session's record, if there is such a session.
pub(crate) fn known(sessions: &Sessions, key: &SessionKey) -> io::Result<Option<Record>> {
    // One at a time: a session is begun, and a broken record moved aside, once.
    sessions.records.with(&key.hash(), || read(sessions, key))
}

fn read(sessions: &Sessions, key: &SessionKey) -> io::Result<Option<Record>> {
    match Record::load(&sessions.env.config.data_dir, key) {
        Ok(record) => Ok(record),
        Err(Unreadable::System(error)) => Err(error),
        Err(Unreadable::Broken(problem)) => begin_again(sessions, key, &problem).map(Some),
    }
}

/// A record, and the spare in whose directory its session has just begun.
pub(crate) type Begun = (Record, Option<Reserved>);

/// The session's record; a session that does not exist begins, and is on disk before anything of it is. `None`: its user
/// has as many sessions as one may have. The caller holds the user's place in `beginnings`: sessions of one user are counted
/// one after the other. `wish`: the child that the session is about to want, if it is.
pub(crate) fn known_or_begun(
    sessions: &Sessions,
    key: &SessionKey,
    wish: Option<&SpareKind>,
) -> io::Result<Option<Begun>> {
    sessions.records.with(&key.hash(), || {
        if let Some(record) = read(sessions, key)? {
            return Ok(Some((record, None)));
        }
        known::has_room(&sessions.env.current(), key)?.then(|| begin(sessions, key, wish)).transpose()
    })
}

fn begin(sessions: &Sessions, key: &SessionKey, wish: Option<&SpareKind>) -> io::Result<Begun> {
    let data_dir = &sessions.env.config.data_dir;
    let is_fresh = Workspace::begun(data_dir, &key.hash()).is_none();
    // First: a deletion of the user finds all of it.
    known::note(data_dir, key)?;
    let spare = wish.filter(|_| is_fresh).and_then(|wish| sessions.shelf.reserve(sessions, key, wish));
    let workspace = match &spare {
        Some(spare) => Workspace::of(data_dir, &key.hash(), &spare.place.directory),
        None => Workspace::begin(data_dir, &key.hash()),
    };
    let begun = begin_in(sessions, key, &workspace, spare.as_ref());
    if let (Some(spare), Ok(_)) = (&spare, &begun)
        && let Err(error) = forget_spare(data_dir, &spare.place.directory)
    {
        // The next start finds that a record names the directory.
        tracing::debug!(%error, "the mark of a spare stays");
    }
    if begun.is_err() {
        // Not counted. If this fails as well, a later attempt begins the session.
        known::forget(data_dir, key).ok();
    }
    begun.map(|record| (record, spare))
}

/// Begins a session in this workspace.
pub(super) fn begin_in(
    sessions: &Sessions,
    key: &SessionKey,
    workspace: &Workspace,
    spare: Option<&Reserved>,
) -> io::Result<Record> {
    let mut record = Record::new(key, workspace);
    if let Some(spare) = spare {
        record.cli_session_id.clone_from(&spare.place.conversation);
    }
    // Also if this program was killed after it had moved a broken record aside.
    let is_broken = workspace.record().broken_file().symlink_metadata().is_ok();
    if is_broken && !record.take_from_journal(workspace.record()) {
        record.unreported_context_loss = Some(ContextLost::Conversation);
    }
    // A client without a name for its conversation sends the whole history again.
    if sessions.expired.take(&key.hash()) && !known::is_unnamed(key) {
        record.unreported_context_loss = Some(ContextLost::Conversation);
    }
    workspace.record().create()?;
    workspace.record().write_directory(workspace.name())?;
    if let Some(template) = &sessions.env.config.workspace.template {
        workspace.fill(template)?;
    }
    // Turns that are shown once they are on the disk need a record there. Otherwise the first save after the start is early
    // enough.
    let is_synced = sessions.env.config.session.journal == JournalMode::Synced;
    record.save(workspace, if is_synced { Durability::Disk } else { Durability::Kernel })?;
    Ok(record)
}

fn begin_again(sessions: &Sessions, key: &SessionKey, problem: &str) -> io::Result<Record> {
    let hash = key.hash();
    tracing::error!(
        session = %hash, problem,
        "the record of a session is broken and is moved aside, with the settings of its turns"
    );
    sessions.env.telemetry.metrics.records_broken.increment(1);
    let files = RecordDir::of(&sessions.env.config.data_dir, &hash);
    // Of broken records the last one is kept.
    remove_any(&files.broken_file())?;
    std::fs::rename(files.session_file(), files.broken_file())?;
    let data_dir = &sessions.env.config.data_dir;
    known::note(data_dir, key)?;
    let record = begin_in(sessions, key, &Workspace::begin(data_dir, &hash), None)?;
    if let Some(loss) = record.unreported_context_loss {
        // What is left is about the lost conversation.
        remove_any(&files.progress_file())?;
        remove_any(&files.journal_file())?;
        sessions.env.telemetry.context_lost(key, loss);
    }
    Ok(record)
}

/// Whether there is a session with this key, also if its record cannot be read. Under the session's lock in `records`.
pub(super) fn is_there(sessions: &Sessions, key: &SessionKey) -> io::Result<bool> {
    match Record::load(&sessions.env.config.data_dir, key) {
        Ok(record) => Ok(record.is_some()),
        Err(Unreadable::System(error)) => Err(error),
        Err(Unreadable::Broken(_)) => Ok(true),
    }
}

/// The files of a session that is on disk, also if its record cannot be read. Under the session's lock in `records`.
pub(crate) fn workspace(sessions: &Sessions, key: &SessionKey) -> io::Result<Option<Workspace>> {
    let (data_dir, hash) = (&sessions.env.config.data_dir, key.hash());
    Ok(match Record::load(data_dir, key) {
        Ok(record) => record.map(|record| record.workspace(data_dir, &hash)),
        Err(_) => Some(Workspace::begin(data_dir, &hash)),
    })
}
