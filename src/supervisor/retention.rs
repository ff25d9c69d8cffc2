//! The retention sweep: walks all sessions on disk at intervals, counts them, and deletes those that the configuration
//! lets go of.
//!
//! A round holds the facts of one user at a time and takes its time: pauses follow what the disk did. What it decides is
//! in `choice`; a session that is used meanwhile stays. What users without sessions have left goes last (`rest`).

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, ReadDir};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

mod choice;
mod rest;

use self::choice::{Fact, choose};
use crate::model::ids::{SessionHash, SessionKey};
use crate::session::expiry::{self, Verdict};
use crate::session::{Record, known, sessions::Sessions};
use crate::support::blocking::{blocking, blocking_long};
use crate::telemetry::metrics::RetentionReason;
use crate::workspace::{RemovalLimit, Usage, users_dir};

/// Pause before the first round, at most: a start has better things to do.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// Sessions looked at in a minute: 100,000 of them take a quarter of an hour, and a look costs some file operations.
const LOOKED_PER_MINUTE: u32 = 6000;
/// Sessions deleted in a minute: each is some ten removals in several directories.
const DELETED_PER_MINUTE: u32 = 600;
/// Bytes freed in a minute: file systems take long to free large files.
const FREED_PER_MINUTE: u64 = 16 << 30;
/// Least pause as a multiple of the work before it: the sweep keeps a disk queue busy for a tenth of the time.
const REST: u32 = 9;
/// What is removed of one session: more is removed before its next start.
const TIDIED: RemovalLimit = RemovalLimit { entries: 100_000, time: Duration::from_secs(1) };
/// Sessions looked at between two pauses.
const PART: usize = 100;
/// Sessions of one user that a round looks at, 100 bytes each. A later round sees the others, once some are gone.
const MOST_OF_USER: usize = 100_000;

/// A session of the user whose turn it is.
struct Candidate {
    key: SessionKey,
    fact: Fact,
    files: u64,
}

/// Sweeps at intervals, until the task is dropped.
pub(crate) async fn watch(sessions: Arc<Sessions>) {
    let (metrics, interval) = (&sessions.env.telemetry.metrics, sessions.env.config.retention.sweep_interval);
    metrics.retention_last_round.set(unix_time());
    sleep(interval.min(FIRST_PAUSE)).await;
    // What children of a former instance left when it was killed; those of this one are tidied when they end.
    let mut is_untidy = true;
    loop {
        match round(&sessions, is_untidy).await {
            Ok(()) => metrics.retention_last_round.set(unix_time()),
            Err(error) => {
                metrics.retention_failures.increment(1);
                tracing::warn!(%error, "the sessions on disk could not be swept");
            }
        }
        is_untidy = false;
        sleep(interval).await;
    }
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// One round over the sessions of all users. `is_untidy`: files of ended children may lie about.
async fn round(sessions: &Arc<Sessions>, is_untidy: bool) -> io::Result<()> {
    let mut users = open(users_dir(&sessions.env.config.data_dir)).await?;
    let (mut count, mut total) = (0, Usage::default());
    while let (begun, Some(names)) = (Instant::now(), next_part(&mut users).await?) {
        pause(begun, Duration::ZERO).await;
        for name in names {
            let directory = users_dir(&sessions.env.config.data_dir).join(name);
            // One list that cannot be read does not keep the others.
            let kept = user(sessions, &directory, is_untidy).await.unwrap_or_else(|error| {
                sessions.env.telemetry.metrics.retention_failures.increment(1);
                tracing::warn!(%error, "the sessions of a user could not be swept");
                Vec::new()
            });
            count += kept.len();
            for candidate in kept {
                total.bytes = total.bytes.saturating_add(candidate.fact.bytes);
                total.files = total.files.saturating_add(candidate.files);
            }
        }
    }
    let metrics = &sessions.env.telemetry.metrics;
    metrics.sessions_on_disk.set(count as f64);
    metrics.sessions_on_disk_bytes.set(total.bytes as f64);
    metrics.sessions_on_disk_files.set(total.files as f64);
    rest::expire(sessions).await
}

/// Looks at the sessions of one user and deletes those that are due. Returns the others.
async fn user(sessions: &Arc<Sessions>, directory: &Path, is_untidy: bool) -> io::Result<Vec<Candidate>> {
    let mut begun = Instant::now();
    let mut list = open(directory.to_owned()).await?;
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut is_complete = false;
    while !is_complete && candidates.len() < MOST_OF_USER {
        let names = next_part(&mut list).await?.unwrap_or_default();
        let (count, looking, list) = (names.len(), sessions.clone(), directory.to_owned());
        is_complete = count < PART;
        let look_all =
            move || names.iter().filter_map(|name| look(&looking, &list, name, is_untidy)).collect();
        // Children decide how many files there are.
        candidates.extend(blocking_long(move || Ok::<Vec<_>, _>(look_all())).await?);
        // An empty list costs as much as a session.
        pause(begun, looked(count.max(1))).await;
        begun = Instant::now();
    }
    let facts: Vec<Fact> = candidates.iter().map(|candidate| candidate.fact).collect();
    let chosen = choose(&facts, &sessions.env.config.retention, SystemTime::now());
    let mut gone = HashSet::new();
    for (at, reason) in chosen {
        let Some(candidate) = candidates.get(at) else { continue };
        let begun = Instant::now();
        if delete(sessions, candidate, reason).await {
            gone.insert(at);
            pause(begun, freed(candidate.fact.bytes)).await;
        }
    }
    let mut at = 0..;
    candidates.retain(|_| at.next().is_none_or(|at| !gone.contains(&at)));
    Ok(candidates)
}

/// What is known of a session; `None` if it is gone, or its record cannot be read. Its record is read once, because most
/// of what a round asks of the disk is that. Blocks.
fn look(sessions: &Sessions, list: &Path, name: &OsStr, is_untidy: bool) -> Option<Candidate> {
    let data_dir = &sessions.env.config.data_dir;
    let hash = name.to_str().and_then(SessionHash::parse)?;
    // No child of the session lives or starts meanwhile.
    let at_rest = if is_untidy { sessions.slots.try_acquire(&hash) } else { None };
    let Some((key, record)) = Record::read(data_dir, &hash) else {
        // A session that begins is listed, and has a directory, under this lock.
        let forgotten = sessions.records.with(&hash, || known::forget_gone(data_dir, list, &hash));
        if let Err(error) = forgotten {
            tracing::debug!(session = %hash, %error, "a session that is gone is still in a list");
        }
        return None;
    };
    let workspace = record.workspace(data_dir, &hash);
    if at_rest.is_some()
        && sessions.registry.get(&key).is_none()
        && let Err(error) = workspace.tidy(&sessions.env.config.cli, TIDIED)
    {
        tracing::debug!(session = %hash, %error, "a session at rest is not tidied");
    }
    drop(at_rest);
    // A file that cannot be looked at counts as none.
    let usage = workspace.usage().unwrap_or_default();
    let in_use = sessions.registry.get(&key).is_some();
    let last_used = if in_use { SystemTime::now() } else { record.last_used };
    let fact = Fact { last_used, bytes: usage.bytes, in_use, is_named: known::is_counted(&key) };
    Some(Candidate { key, fact, files: usage.files })
}

/// Whether the session is gone.
async fn delete(sessions: &Arc<Sessions>, candidate: &Candidate, reason: RetentionReason) -> bool {
    let Fact { last_used, bytes, .. } = candidate.fact;
    let key = &candidate.key;
    match expiry::expire(sessions, key, Verdict { reason, last_used, bytes }).await {
        Ok(is_gone) => is_gone,
        Err(error) => {
            sessions.env.telemetry.metrics.retention_failures.increment(1);
            tracing::warn!(session = %key.hash(), %error, "a session could not be deleted");
            false
        }
    }
}

/// The entries of a directory, to be read in parts; `None` if there is none.
async fn open(directory: PathBuf) -> io::Result<Option<ReadDir>> {
    blocking(move || match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    })
    .await
}

/// The names of the next entries; `None` at the end.
async fn next_part(entries: &mut Option<ReadDir>) -> io::Result<Option<Vec<OsString>>> {
    let Some(mut reading) = entries.take() else { return Ok(None) };
    let (names, rest) = blocking(move || {
        let names = reading.by_ref().take(PART).map(|entry| entry.map(|entry| entry.file_name()));
        Ok((names.collect::<io::Result<Vec<_>>>()?, reading))
    })
    .await?;
    *entries = Some(rest);
    Ok(Some(names).filter(|names| !names.is_empty()))
}

fn looked(sessions: usize) -> Duration {
    Duration::from_secs(60) / LOOKED_PER_MINUTE * u32::try_from(sessions).unwrap_or(u32::MAX)
}

fn freed(bytes: u64) -> Duration {
    let by_size = Duration::from_secs_f64(60.0 * bytes as f64 / FREED_PER_MINUTE as f64);
    by_size.max(Duration::from_secs(60) / DELETED_PER_MINUTE)
}

/// Rests after work that began at `begun`, for at least what its cost allows.
async fn pause(begun: Instant, cost: Duration) {
    sleep(cost.max(begun.elapsed() * REST)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_keeps_its_budget_per_minute() {
        assert_eq!(looked(6000), Duration::from_secs(60));
        assert_eq!(freed(0) * 600, Duration::from_secs(60));
        assert_eq!(freed(16 << 30), Duration::from_secs(60));
        assert!(freed(u64::MAX) > Duration::from_secs(60) && looked(usize::MAX) > Duration::from_secs(60));
    }

    /// A directory of any size is read in parts, each name once.
    #[tokio::test]
    async fn directory_is_read_in_parts() {
        let place = tempfile::tempdir().unwrap();
        for number in 0..3 * PART + 1 {
            fs::write(place.path().join(number.to_string()), "").unwrap();
        }
        let mut entries = open(place.path().to_owned()).await.unwrap();
        let mut names = Vec::new();
        while let Some(part) = next_part(&mut entries).await.unwrap() {
            assert!(part.len() <= PART);
            names.extend(part);
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 3 * PART + 1);
        assert!(next_part(&mut open(place.path().join("none")).await.unwrap()).await.unwrap().is_none());
    }
}
