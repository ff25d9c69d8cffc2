//! A data directory from a backup.
//!
//! The file `format` is no number until all is there: a server refuses what an interrupted restore left.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::renameat;

use super::backup::{KIND, Manifest, VERSION, data_of, manifest_file};
use super::{AtRestError, at, new_directory};
use crate::adapter;
use crate::config::CliConfig;
use crate::model::ids::SessionHash;
use crate::support::atomic_file::{self, Durability};
use crate::workspace::beneath::Beneath;
use crate::workspace::{
    Copied, Links, TreeCopy, Workspace, format_file, is_left_out, lock, read_own, records_dir,
};

/// Longest `backup.json`.
const MAX_MANIFEST_BYTES: u64 = 64 << 10;
/// Content of the file `format` meanwhile.
const UNFINISHED: &[u8] = b"restore unfinished: remove this directory and restore again\n";

/// Copies a backup to `data_dir`, a new or empty directory. `cli`: where the CLI keeps its files.
///
/// # Errors
/// [`AtRestError`]; what is there is then refused by a server.
pub fn restore(backup: &Path, data_dir: &Path, cli: &CliConfig) -> Result<Copied, AtRestError> {
    let manifest = manifest(backup)?;
    let source = data_of(backup).canonicalize().map_err(at(backup))?;
    if data_dir.exists() {
        // Tells a directory in use from one that is only not empty.
        drop(lock(data_dir)?);
    }
    new_directory(data_dir, &source)?;
    let _lock = lock(data_dir)?;
    let data_dir = data_dir.canonicalize().map_err(at(data_dir))?;
    let restored = (|| {
        atomic_file::replace(&format_file(&data_dir), UNFINISHED, Durability::Disk)?;
        let copied = copy(&source, &data_dir, &manifest, cli)?;
        rustix::fs::syncfs(fs::File::open(&data_dir)?)?;
        let format = format!("{}\n", manifest.format);
        atomic_file::replace(&format_file(&data_dir), format.as_bytes(), Durability::Disk)?;
        Ok(copied)
    })();
    restored.map_err(at(&data_dir))
}

fn manifest(backup: &Path) -> Result<Manifest, AtRestError> {
    let no_backup = |problem: String| AtRestError::NoBackup { path: backup.to_owned(), problem };
    let text = read_own(&manifest_file(backup), MAX_MANIFEST_BYTES)
        .map_err(|error| no_backup(format!("backup.json: {error}")))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| no_backup(format!("backup.json: {error}")))?;
    if manifest.kind != KIND || manifest.version != VERSION {
        return Err(no_backup(format!("version {} of {:?}", manifest.version, manifest.kind)));
    }
    Ok(manifest)
}

fn copy(from: &Path, to: &Path, manifest: &Manifest, cli: &CliConfig) -> io::Result<Copied> {
    let mut copy = TreeCopy::new(Links::Copied);
    let (source, target) = (Beneath::open(from, Path::new(""))?, Beneath::open(to, Path::new(""))?);
    for name in ["sessions", "records"] {
        copy.tree(&source, name, &target, |_| true)?;
    }
    for entry in fs::read_dir(records_dir(to))? {
        let Some(session) = entry?.file_name().to_str().and_then(SessionHash::parse) else { continue };
        copy.copied.sessions += 1;
        let Some(workspace) = Workspace::known(to, &session) else { continue };
        match move_transcripts(&workspace, &manifest.data_dir, &session, cli) {
            // Without a transcript there is nothing to move.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // The child has put something else there.
            Err(error) if is_left_out(&error) => copy.copied.left_out += 1,
            moved => moved?,
        }
    }
    Ok(copy.copied)
}

/// The CLI names the folder of its transcripts after its working directory, which has another path now.
fn move_transcripts(
    workspace: &Workspace,
    former: &Path,
    session: &SessionHash,
    cli: &CliConfig,
) -> io::Result<()> {
    let transcript = |workspace: &Workspace| adapter::transcript_path(workspace.dirs(), cli, "any");
    let (old, new) = (transcript(&Workspace::of(former, session, workspace.name())), transcript(workspace));
    let folder = |path: &Path| path.parent().and_then(Path::file_name).unwrap_or_default().to_owned();
    let (old, new) = (folder(&old), folder(&new));
    let projects = transcript(workspace);
    let projects = projects.ancestors().nth(2).and_then(|path| workspace.below_session(path));
    // Elsewhere by configuration: not in the backup.
    let Some(projects) = projects.filter(|_| old != new) else { return Ok(()) };
    let projects = workspace.beneath()?.dir(projects)?;
    match renameat(&projects, &old, &projects, &new) {
        // A conversation that ran at the new path before.
        Err(rustix::io::Errno::EXIST | rustix::io::Errno::NOTEMPTY) => Ok(()),
        moved => Ok(moved?),
    }
}
