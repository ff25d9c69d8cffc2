//! The data of one user as a directory, for the user.
//!
//! Credentials are left out, and links: what one leads to may be another user's.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::Serialize;

use super::{AtRestError, at, existing, new_directory};
use crate::model::ids::{SessionHash, UserId};
use crate::session::Record;
use crate::support::atomic_file::{self, Durability, is_temporary_name};
use crate::workspace::beneath::Beneath;
use crate::workspace::{Copied, Links, TreeCopy, UserFiles, Workspace, records_dir};

/// Form of `export.json` and of the directories beside it.
const VERSION: u32 = 1;
/// Files with OAuth tokens.
const SERVERS_CREDENTIALS: &[u8] = b"credentials.json";
const CLIS_CREDENTIALS: &[u8] = b".credentials.json";

/// `export.json`.
#[derive(Serialize)]
struct Manifest {
    kind: &'static str,
    version: u32,
    sessions: Vec<SessionEntry>,
}

#[derive(Serialize)]
struct SessionEntry {
    /// Name of its directory below `sessions`.
    directory: String,
    /// `None` if its record cannot be read.
    conversation: Option<String>,
}

/// Copies everything of a user to `to`, a new or empty directory, also while a server runs.
///
/// # Errors
/// [`AtRestError`]; without `export.json` what is there is incomplete.
pub fn export_user(data_dir: &Path, user: &UserId, to: &Path) -> Result<Copied, AtRestError> {
    let data_dir = existing(data_dir)?;
    let files = UserFiles::of(&data_dir, user);
    let sessions = files.sessions().map_err(at(&data_dir))?;
    if sessions.is_empty() && !files.usage_file().exists() && !files.responses().exists() {
        return Err(AtRestError::NoUser);
    }
    new_directory(to, &data_dir)?;
    copy(&data_dir, &files, &sessions, to).map_err(at(to))
}

fn copy(data_dir: &Path, files: &UserFiles, sessions: &[SessionHash], to: &Path) -> io::Result<Copied> {
    let mut copy = TreeCopy::new(Links::LeftOut);
    let root = to.join("sessions");
    DirBuilder::new().mode(0o700).create(&root)?;
    let (records, files_of_all) = (open(&records_dir(data_dir))?, open(&data_dir.join("sessions"))?);
    let mut entries = Vec::new();
    for session in sessions {
        let target = root.join(session.as_str());
        DirBuilder::new().mode(0o700).create(&target)?;
        let target = open(&target)?;
        let is_whole = |name: &[u8]| !std::str::from_utf8(name).is_ok_and(is_temporary_name);
        let of_server = |name: &[u8]| name != SERVERS_CREDENTIALS && is_whole(name);
        copy.tree_as((&records, session.as_str()), (&target, "record"), of_server)?;
        if let Some(workspace) = Workspace::known(data_dir, session) {
            let directory = workspace.name().as_str();
            copy.tree_as((&files_of_all, directory), (&target, "files"), |name| name != CLIS_CREDENTIALS)?;
        }
        let conversation = Record::read(data_dir, session).map(|(key, _)| key.conversation().to_owned());
        entries.push(SessionEntry { directory: session.as_str().to_owned(), conversation });
        copy.copied.sessions += 1;
    }
    let usage = files.usage_file();
    if usage.exists() {
        fs::copy(&usage, to.join("usage.json"))?;
    }
    let responses = files.responses();
    if let (Some(parent), Some(name)) = (responses.parent(), responses.file_name().and_then(|it| it.to_str()))
        && responses.is_dir()
    {
        let is_whole = |name: &[u8]| !std::str::from_utf8(name).is_ok_and(is_temporary_name);
        copy.tree_as((&open(parent)?, name), (&open(to)?, "responses"), is_whole)?;
    }
    let manifest = Manifest { kind: "pilotlight export of a user", version: VERSION, sessions: entries };
    let text = serde_json::to_vec_pretty(&manifest)?;
    atomic_file::replace(&to.join("export.json"), &text, Durability::Disk)?;
    Ok(copy.copied)
}

fn open(directory: &Path) -> io::Result<Beneath> {
    Beneath::open(directory, Path::new(""))
}
