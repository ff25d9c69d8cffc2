//! A backup of a data directory, also of a running server, consistent for each session.
//!
//! The records of all sessions are copied first, and the files of each session a moment later: what a record says of a
//! conversation is in its transcript by then. A session that is deleted meanwhile is left out. `backup.json` is last: without
//! it a backup is incomplete.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{AtRestError, at, existing, new_directory};
use crate::model::ids::SessionHash;
use crate::support::atomic_file::{self, Durability, is_temporary_name};
use crate::workspace::beneath::Beneath;
use crate::workspace::{Copied, Links, RecordDir, TreeCopy, Workspace, format_of, records_dir, remove_any};

/// Form of `backup.json` and of the directories beside it.
pub(super) const VERSION: u32 = 1;
/// What `backup.json` says that it is.
pub(super) const KIND: &str = "pilotlight backup";
/// The CLI writes the end of a turn to its transcript some 100 ms after it has reported it.
const TRANSCRIPTS_WRITTEN: Duration = Duration::from_millis(500);
/// The user ids are copied last: no file of the copy may have an owner that is missing there.
const LAST: &str = "uids";

/// `backup.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) kind: String,
    pub(super) version: u32,
    /// Format of the data directory.
    pub(super) format: u32,
    /// Where it was: the CLI names its transcripts by it.
    pub(super) data_dir: PathBuf,
    /// Seconds since 1970.
    pub(super) created: u64,
}

pub(super) fn manifest_file(backup: &Path) -> PathBuf {
    backup.join("backup.json")
}

/// The copy of the data directory.
pub(super) fn data_of(backup: &Path) -> PathBuf {
    backup.join("data")
}

/// Copies a data directory to `to`, a new or empty directory.
///
/// # Errors
/// [`AtRestError`]; without `backup.json` what is there is incomplete.
pub fn backup(data_dir: &Path, to: &Path) -> Result<Copied, AtRestError> {
    let data_dir = existing(data_dir)?;
    let format = format_of(&data_dir)?.ok_or_else(|| AtRestError::NoData(data_dir.clone()))?;
    new_directory(to, &data_dir)?;
    let copied = copy(&data_dir, &data_of(to)).map_err(at(to))?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let manifest = Manifest { kind: KIND.to_owned(), version: VERSION, format, data_dir, created };
    let written = serde_json::to_vec_pretty(&manifest).map_err(io::Error::from).and_then(|text| {
        rustix::fs::syncfs(fs::File::open(to)?)?;
        atomic_file::replace(&manifest_file(to), &text, Durability::Disk)
    });
    written.map_err(at(to))?;
    Ok(copied)
}

fn copy(data_dir: &Path, to: &Path) -> io::Result<Copied> {
    let sessions = to.join("sessions");
    let records = records_dir(to);
    for directory in [to, &sessions, &records] {
        fs::DirBuilder::new().create(directory)?;
        fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    }
    let mut copy = TreeCopy::new(Links::Copied);
    let (from_records, to_records) = (open(&records_dir(data_dir))?, open(&records)?);
    let mut others = Vec::new();
    for entry in from_records.entries()? {
        let Ok(name) = entry?.file_name().to_owned().into_string() else { continue };
        if SessionHash::parse(&name).is_some() {
            copy.tree(&from_records, &name, &to_records, is_whole)?;
        } else if !name.starts_with('.') && name != LAST {
            others.push(name);
        }
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "nothing reports to another process that a transcript is written"
    )]
    thread::sleep(TRANSCRIPTS_WRITTEN);
    let (from_sessions, to_sessions) = (open(&data_dir.join("sessions"))?, open(&sessions)?);
    for entry in fs::read_dir(&records)? {
        let Some(session) = entry?.file_name().to_str().and_then(SessionHash::parse) else { continue };
        let workspace = Workspace::known(to, &session);
        if let Some(workspace) = &workspace {
            copy.tree(&from_sessions, workspace.name().as_str(), &to_sessions, |_| true)?;
        }
        if RecordDir::of(data_dir, &session).directory().is_none() {
            // It was deleted meanwhile.
            workspace.map_or_else(|| remove_any(&records.join(session.as_str())), |it| it.delete())?;
        } else {
            copy.copied.sessions += 1;
        }
    }
    others.push(LAST.to_owned());
    for name in &others {
        match from_records.dir(Path::new(name)) {
            Ok(_) => drop(copy.tree(&from_records, name, &to_records, is_whole)?),
            Err(_) => copy.file_named(&from_records, name.as_ref(), &to_records)?,
        }
    }
    forget_unknown(to)?;
    // The deletions above.
    remove_any(&records.join(".deleted"))?;
    Ok(copy.copied)
}

/// Removes marks of sessions that began after the records were copied.
fn forget_unknown(copy: &Path) -> io::Result<()> {
    let users = records_dir(copy).join("users");
    for user in fs::read_dir(users).into_iter().flatten() {
        for mark in fs::read_dir(user?.path())? {
            let mark = mark?;
            if !records_dir(copy).join(mark.file_name()).exists() {
                fs::remove_file(mark.path())?;
            }
        }
    }
    Ok(())
}

/// Whether a name is not that of a file that is being written.
fn is_whole(name: &[u8]) -> bool {
    !std::str::from_utf8(name).is_ok_and(is_temporary_name)
}

fn open(directory: &Path) -> io::Result<Beneath> {
    Beneath::open(directory, Path::new(""))
}
