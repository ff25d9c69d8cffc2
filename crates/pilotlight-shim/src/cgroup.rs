//! The cgroups of one CLI process, joined before the CLI's first instruction and removed after its last.
//!
//! One of version 2 is created by the shim, if the server has not, and killed as a whole: `cgroup.kill` kills concurrent
//! forks as well. A CLI may create nested groups, hence the recursive removal. Those of version 1 limit the CLI; the server
//! has created them with their limits.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// Maximum depth of nested groups that a removal descends into.
const MAX_DEPTH: usize = 8;

/// An existing cgroup.
pub struct Group {
    dir: PathBuf,
}

impl Group {
    /// Creates the group, or opens it if it exists.
    ///
    /// # Errors
    /// The error of mkdir(2).
    pub fn create(dir: &Path) -> io::Result<Self> {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self { dir: dir.to_owned() }),
        }
    }

    /// Opens a group that another process created.
    pub fn open(dir: &Path) -> Option<Self> {
        dir.is_dir().then(|| Self { dir: dir.to_owned() })
    }

    /// The parent group.
    pub(crate) fn parent(&self) -> Option<PathBuf> {
        self.dir.parent().map(Path::to_owned)
    }

    /// Opens the directory, for a clone3(2) into the group.
    pub(crate) fn open_dir(&self) -> io::Result<OwnedFd> {
        Ok(File::open(&self.dir)?.into())
    }

    /// Whether the group or a nested group has a process.
    pub fn is_populated(&self) -> bool {
        fs::read_to_string(self.dir.join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Sends SIGKILL to every process of the group and its nested groups, concurrent forks included.
    ///
    /// # Errors
    /// The error of the write to `cgroup.kill`.
    pub fn kill(&self) -> io::Result<()> {
        File::options().write(true).open(self.dir.join("cgroup.kill"))?.write_all(b"1")
    }

    /// Freezes every process of the group and its nested groups, or thaws them. A frozen process can be killed.
    ///
    /// # Errors
    /// The error of the write to `cgroup.freeze`, which kernels before 5.2 do not have.
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        let text = if frozen { b"1" } else { b"0" };
        File::options().write(true).open(self.dir.join("cgroup.freeze"))?.write_all(text)
    }

    /// Removes the group and its nested groups.
    ///
    /// # Errors
    /// The error of rmdir(2), also while the group has a process.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.dir, MAX_DEPTH)
    }
}

/// The groups of version 1, open for the CLI to join.
pub(crate) struct Joined {
    groups: Vec<(PathBuf, File)>,
}

impl Joined {
    /// Opens the groups. The right to join goes with the open file, so that the CLI can join as any user.
    ///
    /// # Errors
    /// If one cannot be opened. All are removed then.
    pub(crate) fn open(dirs: &[PathBuf]) -> io::Result<Self> {
        // Not `cgroup.procs`: a single thread that moves itself through `tasks` waits for no other process to fork or exit.
        let open = |dir: &PathBuf| Ok((dir.clone(), File::options().write(true).open(dir.join("tasks"))?));
        let groups = dirs.iter().map(open).collect::<io::Result<_>>();
        let groups = groups.inspect_err(|_| dirs.iter().for_each(|dir| drop(fs::remove_dir(dir))))?;
        Ok(Self { groups })
    }

    /// Moves this process, which has one thread. Runs in the forked child.
    pub(crate) fn join(&self) -> io::Result<()> {
        self.groups.iter().try_for_each(|(_, tasks)| (&*tasks).write_all(b"0"))
    }

    /// Removes the groups, once no member is left, and their parents too if the server is gone.
    pub(crate) fn remove(&self, with_parents: bool) {
        for (dir, _) in &self.groups {
            // Fails only if another program has put a process into it; the server's next start finds it.
            let _inhabited = fs::remove_dir(dir);
            if let Some(parent) = dir.parent().filter(|_| with_parents) {
                // Fails while it has groups of other children.
                let _inhabited = fs::remove_dir(parent);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_cannot_all_be_joined_are_removed() {
        let root = std::env::temp_dir().join(format!("pilotlight-joined-{}", std::process::id()));
        let dirs = ["memory", "pids"].map(|name| root.join(name));
        dirs.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        assert!(Joined::open(&dirs).is_err(), "they have no file to join by");
        assert!(dirs.iter().all(|dir| !dir.exists()));
        fs::remove_dir(&root).unwrap();
    }
}
