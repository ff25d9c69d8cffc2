//! The CLI's own files of a session, reached without following links. Blocking.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::Workspace;
use super::beneath::Beneath;
use super::remove::{RemovalLimit, remove_where};
use super::sweep;
use crate::adapter;
use crate::config::CliConfig;
use crate::support::atomic_file::Durability;

impl Workspace {
    /// A file of the CLI: an open base directory, and the path below it. `[cli.env]` may move the CLI's files out of the
    /// session directory; that base directory is trusted, its content is not.
    pub(crate) fn cli_file(&self, cli: &CliConfig, file: &Path) -> io::Result<(Beneath, PathBuf)> {
        if let Some(inner) = self.below_session(file) {
            return Ok((self.beneath()?, inner.to_owned()));
        }
        let base = adapter::config_dir(&self.dirs, cli);
        // The CLI creates it too.
        DirBuilder::new().recursive(true).mode(0o700).create(&base)?;
        let inner = file.strip_prefix(&base).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok((Beneath::open(&base, Path::new(""))?, inner.to_owned()))
    }

    /// Removes a file of the CLI.
    pub(crate) fn remove_cli_file(&self, cli: &CliConfig, file: &Path) -> io::Result<()> {
        let (own, path) = self.cli_file(cli, file)?;
        own.unlink(&path)
    }

    /// Replaces a file that the CLI reads at its start.
    pub(crate) fn write_cli_file(&self, cli: &CliConfig, file: &Path, content: &[u8]) -> io::Result<()> {
        let (own, path) = self.cli_file(cli, file)?;
        replace(&own, &path, content, Durability::Kernel)
    }

    /// Removes whatever lies in the place of a file of the CLI, also a directory.
    pub(crate) fn clear_cli_file(&self, cli: &CliConfig, file: &Path, limit: RemovalLimit) -> io::Result<()> {
        let (own, path) = self.cli_file(cli, file)?;
        let directory = own.make_dir(path.parent().unwrap_or(Path::new("")))?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        remove_where(&directory, &mut limit.budget(), |found| found == name)
    }

    /// Removes temporary files that a killed process left.
    pub(crate) fn remove_abandoned_files(&self, cli: &CliConfig) {
        let credentials = adapter::credentials_file(&self.dirs, cli);
        let in_home = self.cli_file(cli, &credentials);
        let in_home = in_home.and_then(|(own, path)| own.dir(path.parent().unwrap_or(Path::new(""))));
        let in_record = Beneath::open(self.record.path(), Path::new(""));
        // A missing directory has no files.
        for directory in [in_home, in_record].into_iter().flatten() {
            sweep::remove_abandoned(&directory);
        }
    }

    /// The path of `file` below the session directory, if it lies there.
    pub(crate) fn below_session<'a>(&self, file: &'a Path) -> Option<&'a Path> {
        file.strip_prefix(self.sessions.join(self.name.as_str())).ok()
    }
}

/// Replaces a file; creates its directory.
pub(super) fn replace(own: &Beneath, path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let directory = own.make_dir(path.parent().unwrap_or(Path::new("")))?;
    directory.replace(Path::new(path.file_name().unwrap_or_default()), content, durability)
}
