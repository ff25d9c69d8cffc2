//! A new session with the conversation of another one, up to one of its messages. Blocking.
//!
//! Its workspace begins as that of any new session: files of the other one are not copied, nor are its credentials.

use std::io;

use super::spoken::{self, Known};
use super::store::{SettingsRecord, new_cli_session_id};
use super::{known, sessions::Sessions, take_up};
use crate::adapter::{self, Cut};
use crate::model::ids::SessionKey;
use crate::support::atomic_file::Durability;
use crate::workspace::Workspace;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Forked {
    Begun,
    /// There is a session of this name.
    Exists,
    /// The user has as many sessions as one may have.
    NoRoom,
    /// The conversation does not have the message.
    NoSuchMessage,
}

/// Begins the session `key` with the conversation of `from` up to the message `at`, or with all of it. The caller holds the
/// user's place in `beginnings` and the arrival of the new session.
pub(crate) fn fork(
    sessions: &Sessions,
    from: &Known,
    key: &SessionKey,
    at: Option<&str>,
) -> io::Result<Forked> {
    sessions.records.with(&key.hash(), || {
        if take_up::is_there(sessions, key)? {
            return Ok(Forked::Exists);
        }
        if !known::has_room(&sessions.env.current(), key)? {
            return Ok(Forked::NoRoom);
        }
        let workspace = Workspace::begin(&sessions.env.config.data_dir, &key.hash());
        let id = new_cli_session_id();
        let cut = match spoken::transcript(&sessions.env, from)? {
            Some(mut transcript) => adapter::cut(&mut transcript, at, &id, workspace.dirs())?,
            None => None,
        };
        if cut.is_none() && at.is_some() {
            return Ok(Forked::NoSuchMessage);
        }
        let begun = begin(sessions, from, key, &workspace, cut.map(|cut| (id, cut)));
        if begun.is_err() {
            // Half a session is none. What stays is found by the next start of the server.
            let deleted = workspace.delete();
            let forgotten = known::forget(&sessions.env.config.data_dir, key);
            if let Err(error) = deleted.and(forgotten) {
                tracing::warn!(%error, "what is left of a fork cannot be removed");
            }
        }
        begun.map(|()| Forked::Begun)
    })
}

fn begin(
    sessions: &Sessions,
    from: &Known,
    key: &SessionKey,
    workspace: &Workspace,
    cut: Option<(String, Cut)>,
) -> io::Result<()> {
    known::note(&sessions.env.config.data_dir, key)?;
    let mut record = take_up::begin_in(sessions, key, workspace, None)?;
    workspace.create()?;
    record.settings = SettingsRecord { own_credentials: false, ..from.record.settings.clone() };
    record.unreported_context_loss = None;
    if let Some((id, Cut { import, turns, known_gap })) = cut {
        let cli = &sessions.env.config.cli;
        let path = adapter::transcript_path(workspace.dirs(), cli, &id);
        workspace.write_cli_file(cli, &path, &import.transcript)?;
        record.cli_session_id = id;
        (record.checkpoint, record.known_gap) = (Some(import.last), known_gap);
        record.context_turns = turns;
        record.answered = from.record.answered;
        record.context_answered = from.record.context_answered;
        record.chosen_model.clone_from(&from.record.chosen_model);
    }
    record.save(workspace, Durability::Disk)
}
