//! The CLI's own files of a session: reached without following links, cleared before each start. Blocking.

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

    /// Removes the files in HOME that earlier children left and the next child would obey.
    ///
    /// # Errors
    /// Of kind [`io::ErrorKind::TimedOut`] if there are more than `limit` allows; the next call continues.
    pub(crate) fn clear_home(&self, cli: &CliConfig, limit: RemovalLimit) -> io::Result<()> {
        let Some(cleanup) = adapter::home_cleanup(cli) else { return Ok(()) };
        let mut budget = limit.budget();
        let home = self.beneath()?.dir(Path::new("home"))?;
        remove_where(&home, &mut budget, |name| name.starts_with(cleanup.removed_prefix.as_bytes()))?;
        let directory = Path::new(cleanup.cleared_directory);
        let own = match home.dir(directory) {
            // There is nothing to clear.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Replaces a link in its place.
            Err(_) => home.make_dir(directory)?,
            Ok(own) => own,
        };
        remove_where(&own, &mut budget, |name| !cleanup.kept.iter().any(|kept| kept.as_bytes() == name))
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::workspace;
    use super::*;

    /// A child may replace removed files by links to files outside of the session.
    #[test]
    fn home_cleanup_follows_no_link() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let (home, own) = (&workspace.dirs.home, workspace.dirs.home.join(".claude"));
        let elsewhere = tempfile::tempdir().unwrap();
        let theirs = elsewhere.path().join("remote-settings.json");
        fs::write(&theirs, "{}").unwrap();
        let link = |to: &Path, from: PathBuf| std::os::unix::fs::symlink(to, from).unwrap();
        link(elsewhere.path(), own.clone());
        link(&theirs, home.join(".claude.json"));
        let clear = || workspace.clear_home(&CliConfig::default(), RemovalLimit::TREE).unwrap();
        clear();
        assert!(theirs.exists());
        assert!(fs::symlink_metadata(&own).unwrap().is_dir());
        assert!(fs::symlink_metadata(home.join(".claude.json")).is_err());
        link(elsewhere.path(), own.join("plugins"));
        fs::create_dir_all(own.join("projects/p")).unwrap();
        fs::create_dir_all(own.join("skills/s")).unwrap();
        for file in [".credentials.json", "remote-settings.json", "projects/p/transcript.jsonl"] {
            fs::write(own.join(file), "{}").unwrap();
        }
        fs::create_dir(home.join(".claude.json")).unwrap();
        fs::write(home.join(".claude.json.backup"), "{}").unwrap();
        fs::write(home.join("notes"), "kept").unwrap();
        clear();
        assert!(theirs.exists());
        let names = |directory: &Path| {
            let entries = fs::read_dir(directory).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&own), [".credentials.json", "projects"]);
        assert_eq!(names(home), [".claude", "notes"]);
        assert!(own.join("projects/p/transcript.jsonl").exists());
    }

    /// A killed CLI leaves the beginning of its file; the next child must not read it.
    #[test]
    fn home_cleanup_removes_a_cut_off_file() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let file = workspace.dirs.home.join(".claude.json");
        fs::write(&file, r#"{"mcpServers":{"x":{"comm"#).unwrap();
        workspace.clear_home(&CliConfig::default(), RemovalLimit::TREE).unwrap();
        assert!(!file.exists());
    }
}
