//! The cgroup (v2) of one CLI: made by the shim, joined by the CLI before it runs, killed as a whole.
//!
//! `cgroup.kill` is the one means that no process can outrun. Groups are also made inside of groups by a CLI that
//! may, so removal goes down into them.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// Deeper nests of groups are left alone: nobody makes them by accident.
const MAX_DEPTH: usize = 8;

/// A group that exists.
pub struct Group {
    dir: PathBuf,
}

impl Group {
    /// Makes the group, or takes it over if it is there.
    pub fn create(dir: &Path) -> io::Result<Self> {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self { dir: dir.to_owned() }),
        }
    }

    /// A group made by someone else.
    pub fn existing(dir: &Path) -> Option<Self> {
        dir.is_dir().then(|| Self { dir: dir.to_owned() })
    }

    /// The group that it is in.
    pub(crate) fn base(&self) -> Option<PathBuf> {
        self.dir.parent().map(Path::to_owned)
    }

    /// The directory, for a process to be born in it.
    pub(crate) fn entrance(&self) -> io::Result<OwnedFd> {
        Ok(File::open(&self.dir)?.into())
    }

    /// Whether any process is in it, or below.
    pub fn holds_anyone(&self) -> bool {
        fs::read_to_string(self.dir.join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Sends SIGKILL to every process in it and below; forks under way are caught by the kernel.
    pub fn kill(&self) -> io::Result<()> {
        File::options().write(true).open(self.dir.join("cgroup.kill"))?.write_all(b"1")
    }

    /// Removes the group and those below it. Fails while a process is in there.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.dir, MAX_DEPTH)
    }
}

fn remove_tree(dir: &Path, depth: usize) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) if depth > 0 => {}
        other => return other,
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path(), depth - 1)?;
        }
    }
    fs::remove_dir(dir)
}
