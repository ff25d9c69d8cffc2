//! A conversation whose transcript is damaged or missing, restored from what is left of it and from the journal.
//! Blocking.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::env::Env;
use super::journaling::MOST_TRANSCRIPT;
use super::lifecycle::Plan;
use super::opening::CLEARED_AGAIN;
use crate::adapter::{self, Import};
use crate::journal::{self, Journal};
use crate::support::lock::MutexExt as _;
use crate::telemetry::metrics::RecoverySource;
use crate::workspace::beneath::read_up_to;
use crate::workspace::{Workspace, open_to_read};

/// A conversation to be restored.
pub(super) struct Lost<'a> {
    pub(super) conversation: &'a str,
    /// Last messages with one of which it is whole, the best first. `None`: any.
    pub(super) wanted: &'a [Option<&'a str>],
    /// What is left of the transcript.
    pub(super) left: Option<&'a File>,
}

/// Writes the transcript of a conversation again, if nothing of it is missing then. Gives its text, and which of the
/// messages that are wanted it has.
///
/// # Errors
/// If the host lacks something, such as room on the disk: nothing is lost, and the next start tries it again.
pub(super) fn restore(plan: &Plan, lost: &Lost<'_>) -> io::Result<Option<(usize, Import)>> {
    let journal = plan.entry.journal.lock_unpoisoned().clone();
    let kept = kept(plan.env(), &plan.workspace, journal.as_deref())?;
    let Some((place, source, import)) = merged(&plan.workspace, &kept, lost)? else { return Ok(None) };
    let cli = &plan.env().config.cli;
    let path = adapter::transcript_path(plan.workspace.dirs(), cli, lost.conversation);
    make_way(plan, &path)?;
    plan.workspace.write_cli_file(cli, &path, &import.transcript)?;
    plan.env().telemetry.recovered(&plan.entry.key, source);
    Ok(Some((place, import)))
}

/// The transcript of a conversation, out of what a journal has `kept` and of what is left of it.
pub(super) fn merged(
    workspace: &Workspace,
    kept: &[u8],
    lost: &Lost<'_>,
) -> io::Result<Option<(usize, RecoverySource, Import)>> {
    if kept.is_empty() {
        return Ok(None);
    }
    let left = left(lost.left)?;
    let records = journal::records(kept);
    let restored = |file: &[u8], last: Option<&str>| {
        let (id, dirs) = (lost.conversation, workspace.dirs());
        adapter::restore(file, &records, last, id, dirs, SystemTime::now())
    };
    Ok(lost.wanted.iter().enumerate().find_map(|(place, last)| {
        let merged = if left.is_empty() { None } else { restored(&left, *last) };
        let merged = merged.map(|import| (RecoverySource::Merged, import));
        let (source, import) = merged.or_else(|| Some((RecoverySource::Journal, restored(&[], *last)?)))?;
        Some((place, source, import))
    }))
}

/// The journal on disk, and what of it waits in memory.
pub(super) fn kept(env: &Env, workspace: &Workspace, open: Option<&Journal>) -> io::Result<Vec<u8>> {
    // More than the limit is not written.
    let limit = env.config.session.journal_bytes;
    let path = workspace.record().journal_file();
    let read = open_to_read(&path).and_then(|file| read_up_to(&file, limit));
    let mut kept = match read {
        Ok(kept) => kept,
        Err(refused) if refused.is_shortage() => return Err(refused.into()),
        // A broken journal is no journal.
        Err(_) => Vec::new(),
    };
    kept.extend(open.map(Journal::unwritten).unwrap_or_default());
    Ok(kept)
}

fn left(file: Option<&File>) -> io::Result<Vec<u8>> {
    let Some(file) = file else { return Ok(Vec::new()) };
    let mut file = file.try_clone()?;
    io::Seek::rewind(&mut file)?;
    match read_up_to(&file, MOST_TRANSCRIPT) {
        Ok(left) => Ok(left),
        Err(refused) if refused.is_shortage() => Err(refused.into()),
        Err(_) => Ok(Vec::new()),
    }
}

/// Removes what is no file from the place of the transcript: only the child can have put it there.
fn make_way(plan: &Plan, transcript: &Path) -> io::Result<()> {
    let is_dir = transcript.symlink_metadata().is_ok_and(|found| found.is_dir());
    if is_dir {
        plan.workspace.clear_cli_file(&plan.env().config.cli, transcript, CLEARED_AGAIN)
    } else {
        Ok(())
    }
}
