//! What was said in a conversation: read from its transcript, or from the journal where the transcript lacks it. Blocking.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::sync::Arc;

use super::env::Env;
use super::missing::{self, Missing};
use super::opening::found;
use super::recovery::{self, Lost};
use super::store::Record;
use crate::adapter;
use crate::journal::Journal;
use crate::workspace::Workspace;

/// A session, as far as its conversation is found by it.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) record: Box<Record>,
    pub(crate) workspace: Workspace,
    /// What of the journal may wait in memory.
    pub(crate) journal: Option<Arc<Journal>>,
}

pub(crate) trait ReadSeek: Read + Seek + Send {}

impl<T: Read + Seek + Send> ReadSeek for T {}

/// The transcript of the session's conversation; `None`: nothing was said.
///
/// # Errors
/// If the host lacks something.
pub(crate) fn transcript(env: &Env, known: &Known) -> io::Result<Option<Box<dyn ReadSeek>>> {
    let Known { record, workspace, journal } = known;
    let path = adapter::transcript_path(workspace.dirs(), &env.config.cli, &record.cli_session_id);
    let (file, is_usable) = match found(workspace, &env.config.cli, &path) {
        Ok(file) => (Some(file), true),
        Err(refused) if refused.is_shortage() => return Err(refused.into()),
        Err(refused) => (None, refused.is_absent()),
    };
    let gap = file.as_ref().map(|file| |message: &str| adapter::transcript_gap(file, message));
    let end = file.as_ref().map_or(Ok(None), adapter::transcript_end)?;
    let missing = Missing::from(record, gap, end.as_deref())?;
    if (missing.is_any() || !is_usable)
        && let Some(text) = restored(env, known, journal.as_deref(), file.as_ref(), &missing)?
    {
        return Ok(Some(Box::new(Cursor::new(text))));
    }
    Ok(file.map(|file| Box::new(file) as Box<dyn ReadSeek>))
}

fn restored(
    env: &Env,
    known: &Known,
    journal: Option<&Journal>,
    left: Option<&File>,
    missing: &Missing,
) -> io::Result<Option<Vec<u8>>> {
    let record = &known.record;
    let wanted = missing::wanted(record, missing.loss.is_some() || left.is_none());
    let lost = Lost { conversation: &record.cli_session_id, wanted: &wanted, left };
    let kept = recovery::kept(env, &known.workspace, journal)?;
    let merged = recovery::merged(&known.workspace, &kept, &lost)?;
    Ok(merged.map(|(_, _, import)| import.transcript))
}
