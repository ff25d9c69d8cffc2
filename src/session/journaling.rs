//! The journal of a session's next child: the one before goes on, or a new one begins with the conversation so far.
//! Blocking, except for the notes of a running child.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::lifecycle::Plan;
use crate::adapter;
use crate::child::TurnEnd;
#[cfg(feature = "cluster")]
use crate::cluster::Cluster;
use crate::config::JournalMode;
#[cfg(feature = "cluster")]
use crate::error::TurnError;
use crate::journal::{self, Journal, Mark, Noted};
use crate::support::atomic_file::Durability;
use crate::support::lock::MutexExt as _;
use crate::telemetry::metrics::JournalError;
use crate::turn::wake;
use crate::workspace::beneath::read_up_to;
use crate::workspace::{open_own, open_to_read, remove_any};

/// Longest transcript that is read as a whole. The CLI needs some gigabytes for such a one.
pub(super) const MOST_TRANSCRIPT: u64 = 256 << 20;

/// End of a transcript in which the last turn is looked for. More has only who sent images that were never answered.
const MOST_UNANSWERED: u64 = 8 << 20;

/// Maximum time that the end of a turn waits for the disk (`journal = "synced"`). A disk that takes longer is broken.
const SYNC_WITHIN: Duration = Duration::from_secs(10);

/// Where the conversation of the next child stands.
pub(super) struct Begin<'a> {
    pub(super) turns: u64,
    pub(super) conversation: &'a str,
    /// The last message that was answered, unless it is lost.
    pub(super) checkpoint: Option<String>,
    /// The last one since then, if it is there.
    pub(super) unanswered: Option<String>,
    /// The transcript was written again, from this text.
    pub(super) written: Option<&'a [u8]>,
    /// The transcript that the CLI has left.
    pub(super) transcript: Option<&'a File>,
}

/// The journal of the next child.
///
/// # Errors
/// If there can be none.
pub(super) fn open(plan: &Plan, begin: &Begin<'_>) -> io::Result<Arc<Journal>> {
    let config = &plan.env().config.session;
    let files = plan.workspace.record();
    let path = files.journal_file();
    let mark = Mark {
        turns: begin.turns,
        checkpoint: begin.checkpoint.clone(),
        unanswered: begin.unanswered.clone(),
        conversation: begin.conversation.to_owned(),
        is_whole: true,
    };
    let is_on = config.journal != JournalMode::Off;
    let mut slot = plan.entry.journal.lock_unpoisoned();
    if is_on && begin.written.is_none() {
        // Frames that could not be written stay with the journal that has them.
        let open = slot.as_ref().filter(|it| it.goes_on(&mark)).cloned();
        let open = open.or_else(|| going_on(plan, &mark).map(Arc::new));
        if let Some((open, since)) = open.zip(said_since(begin)?) {
            if !since.is_empty() || !open.is_written() {
                count(plan, open.add(&since));
            }
            return Ok(slot.insert(open).clone());
        }
    }
    *slot = None;
    let records = if is_on { records(begin, config.journal_bytes)? } else { Some(Vec::new()) };
    if records.is_none() {
        given_up(plan);
    }
    let is_on = is_on && records.is_some();
    let durability =
        if config.journal == JournalMode::Synced { Durability::Disk } else { Durability::Kernel };
    let mark = Mark { is_whole: is_on, ..mark };
    remove_any_but_file(&path)?;
    let (records, waiting) = (records.unwrap_or_default(), &plan.sessions.waiting);
    let written = journal::write(&path, &mark, &records, durability);
    let journal = match written {
        Ok(()) => Journal::open(open_own(&path)?, mark, is_on, config.journal_bytes, waiting)?,
        Err(error) if is_on => {
            tracing::warn!(%error, "the journal of a session cannot be begun; it begins when there is room");
            let file = open_own(&path)?;
            let journal = Journal::open_later(file, mark, &records, config.journal_bytes, waiting)?;
            count(plan, journal.add(&[]));
            journal
        }
        Err(error) => {
            // The number of turns is kept in place, if there was a journal.
            tracing::warn!(%error, "the number of turns of a session cannot be written");
            Journal::open(open_own(&path)?, mark, false, config.journal_bytes, waiting)?
        }
    };
    // The journal has all that it had.
    if let Err(error) = remove_any(&files.progress_file()) {
        tracing::warn!(%error, "an old note of a session's last turn cannot be removed");
    }
    Ok(slot.insert(Arc::new(journal)).clone())
}

/// The journal on disk, if it ends where the conversation does and has room for more than it holds. Damage in the middle
/// is found here, while the transcript has what it cost.
fn going_on(plan: &Plan, mark: &Mark) -> Option<Journal> {
    let path = plan.workspace.record().journal_file();
    let found = open_to_read(&path).ok()?;
    let (last, is_at_end) = journal::load(&found).ok()??;
    let limit = plan.env().config.session.journal_bytes;
    let has_room = found.metadata().ok()?.len() <= limit / 2;
    if !is_at_end || !has_room || last != *mark {
        return None;
    }
    if !journal::is_intact(&found).ok()? {
        plan.env().telemetry.metrics.journal_errors.increment(JournalError::Broken);
        tracing::warn!(session = %plan.entry.key.hash(), "the journal of a session is damaged and begins again");
        return None;
    }
    Journal::open(open_own(&path).ok()?, last, true, limit, &plan.sessions.waiting).ok()
}

/// What the transcript holds after the last turn: a message whose turn has not ended, on which later ones hang. `None`: it
/// does not hold that turn, or too much after it.
fn said_since(begin: &Begin<'_>) -> io::Result<Option<Vec<u8>>> {
    let Some(mut file) = begin.transcript else { return Ok(Some(Vec::new())) };
    let length = file.metadata()?.len();
    io::Seek::seek(&mut file, io::SeekFrom::Start(length.saturating_sub(MOST_UNANSWERED)))?;
    let mut tail = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MOST_UNANSWERED), &mut tail)?;
    let last = begin.unanswered.as_ref().or(begin.checkpoint.as_ref());
    let entries = adapter::entries_after(&tail, last.map(String::as_str));
    let is_all = last.is_some() || length <= MOST_UNANSWERED;
    Ok(entries.filter(|_| is_all).map(|entries| journal::entries(&entries)))
}

/// What the journal begins with; `None`: it would be too long.
fn records(begin: &Begin<'_>, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let read = match (begin.written, begin.transcript) {
        (Some(_), _) | (None, None) => Vec::new(),
        (None, Some(file)) => {
            let mut file = file.try_clone()?;
            io::Seek::rewind(&mut file)?;
            match read_up_to(&file, MOST_TRANSCRIPT) {
                Ok(content) => content,
                Err(refused) if refused.is_shortage() => return Err(refused.into()),
                Err(_) => return Ok(None),
            }
        }
    };
    let text = begin.written.unwrap_or(&read);
    // Half of the limit is for the turns to come.
    let entries = adapter::snapshot(text, usize::try_from(limit / 2).unwrap_or(usize::MAX));
    Ok(entries.map(|entries| journal::entries(&entries)))
}

/// Replacing a file does not replace a directory in its place.
fn remove_any_but_file(path: &std::path::Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|found| found.is_dir()) { remove_any(path) } else { Ok(()) }
}

fn given_up(plan: &Plan) {
    plan.env().telemetry.metrics.journal_errors.increment(JournalError::Full);
    tracing::warn!(
        session = %plan.entry.hash,
        "the journal of a session is full (session.journal_bytes): the CLI's transcript alone holds what follows"
    );
}

/// The child has ended: what it has noted is on disk, or waits for the next child.
pub(super) fn close(plan: &Plan) {
    let mut slot = plan.entry.journal.lock_unpoisoned();
    slot.take_if(|journal| journal.is_written());
}

/// Counts and logs what became of a write.
pub(super) fn count(plan: &Plan, noted: Noted) {
    let session = &plan.entry.hash;
    match noted {
        Noted::Written => {}
        Noted::WrittenAgain => tracing::warn!(%session, "the journal of a session is written again"),
        Noted::GivenUp => given_up(plan),
        Noted::Crowded => {
            plan.env().telemetry.metrics.journal_errors.increment(JournalError::Memory);
            tracing::warn!(
                %session,
                "too much waits for the disk: the CLI's transcript alone holds what follows, until the next child"
            );
        }
        Noted::Failed { is_first } => {
            plan.env().telemetry.metrics.journal_errors.increment(JournalError::Write);
            if is_first {
                tracing::warn!(%session, "the journal of a session cannot be written; it waits in memory");
            }
        }
    }
}

/// Sends the end of a turn once other nodes of the cluster can go on after it, if that is waited for. `is_written`: the journal
/// has the turn; without it there is nothing to be copied.
#[cfg(feature = "cluster")]
pub(super) fn send_replicated(
    plan: &Plan,
    cluster: Arc<Cluster>,
    is_written: bool,
    last: Option<Box<TurnEnd>>,
) -> Option<Box<TurnEnd>> {
    let user = plan.entry.key.user().clone();
    let (waiting, sent) = if cluster.waits(&user) { (last, None) } else { (None, last) };
    let session = plan.entry.hash.clone();
    cluster.touch(&user, &session);
    plan.env().tasks.spawn(async move {
        let committed = if is_written { cluster.commit(&user).await } else { Err(cluster.not_replicated()) };
        if let Err(error) = &committed {
            tracing::warn!(%session, %error, "a turn was not stored for other nodes of the cluster");
        }
        let Some(last) = waiting else { return };
        wake(match committed {
            Ok(()) => last.send(),
            // It was answered: who repeats it would do the work twice.
            Err(TurnError::Moved) => last.fail(TurnError::NodeFenced { in_turn: true }),
            Err(error) => last.fail(error),
        });
    });
    sent
}

/// Sends the end of a turn once its journal is on the disk.
pub(super) fn send_synced(plan: &Plan, journal: &Journal, last: Box<TurnEnd>) {
    let synced = plan.sessions.syncer.sync(journal.file());
    let metrics = plan.env().telemetry.metrics.clone();
    let session = plan.entry.hash.clone();
    plan.env().tasks.spawn(async move {
        if !matches!(timeout(SYNC_WITHIN, synced).await, Ok(Ok(true))) {
            metrics.journal_errors.increment(JournalError::Sync);
            tracing::warn!(%session, "the journal of a session was not brought to the disk");
        }
        wake(last.send());
    });
}
