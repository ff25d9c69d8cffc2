//! Directories of children that have no session yet. Each is marked among the server's own files, before it exists and
//! until a record names it: what a crash leaves of them is removed at the next start. Blocking.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::data_dir::{records_dir, sessions_dir};
use super::remove::remove_tree;
use super::{DirectoryName, Workspace, open_own};

fn marks_dir(data_dir: &Path) -> PathBuf {
    records_dir(data_dir).join(".spares")
}

impl Workspace {
    /// Creates a directory for a child that has no session yet, with a copy of `template` to work in.
    pub(crate) fn for_spare(data_dir: &Path, template: Option<&Path>) -> io::Result<Self> {
        let name = DirectoryName::random();
        let marks = marks_dir(data_dir);
        DirBuilder::new().recursive(true).mode(0o700).create(&marks)?;
        open_own(&marks.join(name.as_str()))?;
        // The record that it names is never made: the session that gets the directory has one of its own.
        let workspace = Self::of(data_dir, name.as_hash(), &name);
        if let Some(template) = template {
            workspace.fill(template)?;
        }
        workspace.create_dirs()?;
        Ok(workspace)
    }
}

/// A record names the directory from now on.
pub(crate) fn forget_spare(data_dir: &Path, directory: &DirectoryName) -> io::Result<()> {
    match fs::remove_file(marks_dir(data_dir).join(directory.as_str())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory that no session got.
pub(crate) fn remove_spare(data_dir: &Path, directory: &DirectoryName) -> io::Result<()> {
    remove_tree(&sessions_dir(data_dir), OsStr::new(directory.as_str()))?;
    forget_spare(data_dir, directory)
}

/// Removes the directories that a former server has left, unless they are among `named`, which is asked for only if there
/// is one. No process of that server may be left.
pub(crate) fn sweep_spares(data_dir: &Path, named: impl FnOnce() -> HashSet<DirectoryName>) {
    let entries = fs::read_dir(marks_dir(data_dir)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let marked: Vec<DirectoryName> = names.filter_map(|name| name.try_into().ok()).collect();
    if marked.is_empty() {
        return;
    }
    let named = named();
    for directory in &marked {
        let is_named = named.contains(directory);
        let done =
            if is_named { forget_spare(data_dir, directory) } else { remove_spare(data_dir, directory) };
        if let Err(error) = done {
            tracing::warn!(%error, "cannot remove the directory of a spare");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::data_dir::create_layout;
    use super::*;

    #[test]
    fn sweep_keeps_what_a_record_names() {
        let (data, template) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        create_layout(data.path()).unwrap();
        fs::write(template.path().join("file"), "x").unwrap();
        sweep_spares(data.path(), || panic!("nothing is marked"));
        let spare = || Workspace::for_spare(data.path(), Some(template.path())).unwrap();
        let (named, claimed, left) = (spare(), spare(), spare());
        assert!(left.dirs().work.join("file").exists() && left.dirs().home.exists());
        forget_spare(data.path(), claimed.name()).unwrap();
        forget_spare(data.path(), claimed.name()).unwrap();
        sweep_spares(data.path(), || HashSet::from([named.name().clone()]));
        let exists = [&named, &claimed, &left].map(|it| it.dirs().work.exists());
        assert_eq!(exists, [true, true, false]);
        assert_eq!(fs::read_dir(marks_dir(data.path())).unwrap().count(), 0);
        assert!(!left.record().session_file().parent().unwrap().exists(), "a spare has no record");
    }
}
