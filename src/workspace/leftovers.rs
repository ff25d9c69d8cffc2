//! What children leave in a session's directories: cleared before each start, and at rest. Blocking.
//!
//! A CLI that is killed removes nothing, and its tools may have put anything in the place of its files. Nothing here
//! follows a link, and everything counts against a limit.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, unlinkat};

use super::Workspace;
use super::beneath::Beneath;
use super::remove::{Budget, RemovalLimit, names_where, remove_where};
use crate::adapter;
use crate::config::CliConfig;

/// Levels of empty directories that are removed: the CLI makes some by user, working directory and conversation, and mounts
/// leave the path of the data directory where that lies below `/tmp`.
const EMPTY_LEVELS: usize = 16;

impl Workspace {
    /// Removes the files in HOME that earlier children left and the next child would obey, and those in TMPDIR that no child
    /// uses again.
    ///
    /// # Errors
    /// Of kind [`io::ErrorKind::TimedOut`] if there are more than `limit` allows; the next call continues.
    pub(crate) fn clear_home(&self, cli: &CliConfig, limit: RemovalLimit) -> io::Result<()> {
        let (own, mut budget) = (self.beneath()?, limit.budget());
        clear_tmp(&own, cli, &mut budget)?;
        clear_cli(&own, cli, &mut budget)
    }

    /// As [`Workspace::clear_home`], for a session without a child: it keeps its conversation, the files of its tools, and
    /// no empty directory of the CLI or in TMPDIR. [`Workspace::create`] restores what the next child needs.
    pub(crate) fn tidy(&self, cli: &CliConfig, limit: RemovalLimit) -> io::Result<()> {
        let (own, mut budget) = (self.beneath()?, limit.budget());
        clear_cli(&own, cli, &mut budget)?;
        clear_tmp(&own, cli, &mut budget)?;
        if let Some(tmp) = inner(&own, "tmp")? {
            prune_where(&tmp, EMPTY_LEVELS, &mut budget, &|_| true)?;
        }
        if let (Some(home), Some(cleanup)) = (inner(&own, "home")?, adapter::home_cleanup(cli)) {
            let cleared = cleanup.cleared_directory.as_bytes();
            prune_where(&home, EMPTY_LEVELS, &mut budget, &|name| name == cleared)?;
        }
        for empty in ["tmp", "work"] {
            // Fails where a tool left a file.
            unlinkat(&own, empty, AtFlags::REMOVEDIR).ok();
        }
        Ok(())
    }
}

/// A directory of the session; `None` if it was removed at rest.
fn inner(own: &Beneath, name: &str) -> io::Result<Option<Beneath>> {
    match own.dir(Path::new(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // A child took the server's access away.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            own.restore_access(OsStr::new(name))?;
            own.dir(Path::new(name)).map(Some)
        }
        opened => opened.map(Some),
    }
}

fn clear_cli(own: &Beneath, cli: &CliConfig, budget: &mut Budget) -> io::Result<()> {
    let Some(cleanup) = adapter::home_cleanup(cli) else { return Ok(()) };
    let home = own.dir(Path::new("home"))?;
    remove_where(&home, budget, |name| name.starts_with(cleanup.removed_prefix.as_bytes()))?;
    let directory = Path::new(cleanup.cleared_directory);
    let own = match home.dir(directory) {
        // There is nothing to clear.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Replaces a link in its place.
        Err(_) => home.make_dir(directory)?,
        Ok(own) => own,
    };
    remove_where(&own, budget, |name| !cleanup.kept.iter().any(|kept| kept.as_bytes() == name))
}

fn clear_tmp(own: &Beneath, cli: &CliConfig, budget: &mut Budget) -> io::Result<()> {
    let cleanup = adapter::tmp_cleanup(cli);
    let Some(tmp) = inner(own, "tmp")? else { return Ok(()) };
    remove_where(&tmp, budget, |name| name == cleanup.removed.as_bytes())?;
    for name in names_where(&tmp, budget, |name| name.starts_with(cleanup.own_prefix.as_bytes()))? {
        // Anything but a directory is a tool's.
        let Ok(of_cli) = tmp.dir(Path::new(OsStr::from_bytes(name.as_bytes()))) else { continue };
        remove_where(&of_cli, budget, |name| name.starts_with(cleanup.removed_prefix.as_bytes()))?;
        if let Some(unwanted) = cleanup.removed_of_conversation {
            remove_below(&of_cli, 2, budget, unwanted.as_bytes())?;
        }
    }
    Ok(())
}

/// Removes the entries of this name from the directories that lie this number of levels deeper.
fn remove_below(directory: &Beneath, levels: usize, budget: &mut Budget, unwanted: &[u8]) -> io::Result<()> {
    if levels == 0 {
        return remove_where(directory, budget, |name| name == unwanted);
    }
    for name in names_where(directory, budget, |_| true)? {
        if let Ok(inner) = directory.dir(Path::new(OsStr::from_bytes(name.as_bytes()))) {
            remove_below(&inner, levels - 1, budget, unwanted)?;
        }
    }
    Ok(())
}

/// Removes the directories of these names that hold nothing but empty directories, `levels` deep.
fn prune_where(
    parent: &Beneath,
    levels: usize,
    budget: &mut Budget,
    wanted: &dyn Fn(&[u8]) -> bool,
) -> io::Result<()> {
    for name in names_where(parent, budget, wanted)? {
        if let Ok(directory) = parent.dir(Path::new(OsStr::from_bytes(name.as_bytes())))
            && levels > 0
        {
            prune_where(&directory, levels - 1, budget, &|_| true)?;
        }
        // Fails for a file, and for a directory with one.
        unlinkat(parent, &*name, AtFlags::REMOVEDIR).ok();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use std::path::PathBuf;

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

    /// A killed CLI leaves a socket and a probe for each process; a tool may leave anything in their place.
    #[test]
    fn tmp_cleanup_keeps_what_tools_left() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let tmp = workspace.dirs.tmp.clone();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("fswatch-probe-theirs"), "").unwrap();
        fs::create_dir_all(tmp.join("claude-0/fswatch-probe-1")).unwrap();
        fs::create_dir_all(tmp.join("claude-0/-work/id/tasks")).unwrap();
        fs::create_dir(tmp.join("cc-socks")).unwrap();
        for file in ["cc-socks/1.sock", "claude-0/fswatch-probe-1/probe", "mine", "claude-file"] {
            fs::write(tmp.join(file), "").unwrap();
        }
        fs::write(tmp.join("claude-0/-work/id/tasks/1.output"), "").unwrap();
        fs::write(tmp.join("claude-0/-work/id/notes"), "").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), tmp.join("claude-1")).unwrap();
        let background = CliConfig { background_tasks: true, ..CliConfig::default() };
        workspace.clear_home(&background, RemovalLimit::TREE).unwrap();
        assert!(!tmp.join("cc-socks").exists() && !tmp.join("claude-0/fswatch-probe-1").exists());
        assert!(tmp.join("claude-0/-work/id/tasks/1.output").exists() && tmp.join("mine").exists());
        assert!(elsewhere.path().join("fswatch-probe-theirs").exists());
        // A socket directory that is a link, and no directory at all.
        std::os::unix::fs::symlink(elsewhere.path(), tmp.join("cc-socks")).unwrap();
        workspace.tidy(&CliConfig::default(), RemovalLimit::TREE).unwrap();
        assert!(fs::symlink_metadata(tmp.join("cc-socks")).is_err() && elsewhere.path().exists());
        assert!(!tmp.join("claude-0/-work/id/tasks").exists() && tmp.join("mine").exists());
        assert!(tmp.join("claude-0/-work/id/notes").exists());
    }

    #[test]
    fn session_at_rest_keeps_no_empty_directory() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let (home, work, tmp) = (&workspace.dirs.home, &workspace.dirs.work, &workspace.dirs.tmp);
        fs::create_dir_all(home.join(".claude/projects/-work")).unwrap();
        fs::write(home.join(".claude/projects/-work/id.jsonl"), "{}").unwrap();
        fs::create_dir_all(home.join(".claude/todos")).unwrap();
        fs::create_dir_all(home.join("empty of a tool")).unwrap();
        fs::create_dir_all(tmp.join("claude-0/-work/id/tasks")).unwrap();
        let tidy = || workspace.tidy(&CliConfig::default(), RemovalLimit::TREE);
        tidy().unwrap();
        assert!(
            home.join(".claude/projects/-work/id.jsonl").exists() && home.join("empty of a tool").exists()
        );
        assert!(!home.join(".claude/todos").exists() && !tmp.exists() && !work.exists());
        // Twice, and after a start: the directories of a tool stay.
        tidy().unwrap();
        workspace.create().unwrap();
        fs::create_dir(work.join("empty of a tool")).unwrap();
        tidy().unwrap();
        assert!(work.join("empty of a tool").exists());
    }

    #[test]
    fn tidying_stops_at_its_limit() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        for number in 0..100 {
            fs::create_dir_all(workspace.dirs.tmp.join(format!("claude-0/{number}"))).unwrap();
        }
        let limit = RemovalLimit { entries: 50, time: std::time::Duration::from_secs(60) };
        let tidied = workspace.tidy(&CliConfig::default(), limit);
        assert_eq!(tidied.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
