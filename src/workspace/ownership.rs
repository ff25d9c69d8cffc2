//! The owner of a session's directories: a user id of its own for each user, or the server's.
//!
//! A change of the owner walks the whole tree once: sessions of an earlier release, or of a configuration without the
//! rung `uid`. It follows no link and works on open files, so that a swapped name changes nothing else. Blocking.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, fchown, fstat, openat,
};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use super::Workspace;
use super::beneath::Beneath;
use super::remove::RemovalLimit;
use crate::config::UidRange;

/// A user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owner {
    /// The user of this process.
    pub(crate) fn own() -> Self {
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw() }
    }

    /// Becomes the owner of an open file.
    pub(super) fn take(self, file: impl AsFd) -> io::Result<()> {
        Ok(fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?)
    }
}

/// Deepest directory that changes its owner: each level holds a descriptor.
const DEEPEST: usize = 128;
/// Opens what a name stands for, without following a link and without any access to it.
const NO_ACCESS: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Only its owner may enter.
const PRIVATE: Mode = Mode::RWXU;
/// Its owner, and its user on the way to the directories in it.
const PASSABLE: Mode = Mode::RWXU.union(Mode::XGRP);

impl Workspace {
    /// Gives the session's directories to `owner`. Without one they return to the server, from users whose id is in
    /// `range`; other owners are what the file system shows for everything. The session directory itself stays the
    /// server's: its user may pass, and cannot exchange what is in it.
    ///
    /// # Errors
    /// Also if there are more files than `limit` allows; the next call continues.
    pub(crate) fn give_to(
        &self,
        owner: Option<Owner>,
        range: UidRange,
        limit: RemovalLimit,
    ) -> io::Result<()> {
        let session = self.beneath()?;
        let server = Owner::own();
        let stat = fstat(&session)?;
        let has_group = owner.map_or_else(|| !range.contains(stat.st_gid), |owner| owner.gid == stat.st_gid);
        if !has_group {
            Owner { uid: server.uid, gid: owner.unwrap_or(server).gid }.take(&session)?;
            fchmod(&session, owner.map_or(PRIVATE, |_| PASSABLE))?;
        }
        let mut walk = Walk { owner, range, budget: limit.budget(), skipped: 0 };
        for name in [c"work", c"home", c"tmp"] {
            walk.top(&session, name)?;
        }
        if walk.skipped > 0 {
            tracing::warn!(
                files = walk.skipped,
                "files of a session keep their owner: they have several names, are devices, or lie too deep"
            );
        }
        Ok(())
    }
}

struct Walk {
    owner: Option<Owner>,
    range: UidRange,
    budget: super::remove::Budget,
    skipped: u64,
}

impl Walk {
    /// Gives a directory to the owner, its content first: a walk that was cut short is found by its top and continues.
    fn top(&mut self, session: &Beneath, name: &CStr) -> io::Result<()> {
        // Anything but a directory was put there meanwhile.
        match session.dir(Path::new(OsStr::from_bytes(name.to_bytes()))) {
            // Removed at rest; made again before a child starts.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            directory => self.directory(&directory?, DEEPEST),
        }
    }

    fn directory(&mut self, directory: &Beneath, levels: usize) -> io::Result<()> {
        if self.is_done(&fstat(directory)?) {
            return Ok(());
        }
        for entry in directory.entries()? {
            self.budget.spend()?;
            let name: CString = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                self.entry(directory, &name, levels)?;
            }
        }
        self.owner().take(directory)
    }

    fn owner(&self) -> Owner {
        self.owner.unwrap_or_else(Owner::own)
    }

    fn is_done(&self, stat: &Stat) -> bool {
        match self.owner {
            Some(owner) => stat.st_uid == owner.uid && stat.st_gid == owner.gid,
            None => !self.range.contains(stat.st_uid),
        }
    }

    fn entry(&mut self, parent: &Beneath, name: &CStr, levels: usize) -> io::Result<()> {
        let file = match openat(parent, name, NO_ACCESS, Mode::empty()) {
            // A process that still writes here removed it.
            Err(Errno::NOENT) => return Ok(()),
            opened => opened?,
        };
        let stat = fstat(&file)?;
        if self.is_done(&stat) {
            return Ok(());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if levels == 0 => self.skipped += 1,
            // What lies under the name now, whatever it was before: links are not followed.
            FileType::Directory => {
                let inner = parent.dir(Path::new(OsStr::from_bytes(name.to_bytes())))?;
                self.directory(&inner, levels - 1)?;
            }
            // A second name may be that of a file of the server's or of another user's.
            FileType::RegularFile if stat.st_nlink > 1 => self.skipped += 1,
            FileType::RegularFile | FileType::Symlink | FileType::Fifo | FileType::Socket => {
                let owner = self.owner();
                let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
                chownat(&file, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
            }
            _ => self.skipped += 1,
        }
        Ok(())
    }
}

/// Lets users of children pass through a directory of the server's, and nothing else.
pub(crate) fn make_passable(directory: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, directory, flags, Mode::empty())?;
    let mode = Mode::from_raw_mode(fstat(&opened)?.st_mode);
    let wanted = mode | Mode::XGRP | Mode::XOTH;
    if mode != wanted {
        fchmod(&opened, wanted)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::super::tests::workspace;
    use super::*;

    const USER: Owner = Owner { uid: 1_900_012_345, gid: 1_900_012_345 };
    const LIMIT: RemovalLimit = RemovalLimit { entries: 1000, time: std::time::Duration::from_secs(60) };

    fn give(workspace: &Workspace, owner: Option<Owner>, limit: RemovalLimit) -> io::Result<()> {
        workspace.give_to(owner, UidRange::default(), limit)
    }

    fn is_root() -> bool {
        let is_root = geteuid().is_root();
        if !is_root {
            pilotlight_test_support::installed::left_out("only root may give files away");
        }
        is_root
    }

    #[test]
    fn whole_tree_changes_its_owner_and_back() {
        if !is_root() {
            return;
        }
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let work = workspace.dirs().work.clone();
        fs::create_dir_all(work.join("a/b")).unwrap();
        fs::write(work.join("a/b/file"), "x").unwrap();
        let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
        for wanted in [Some(USER), None] {
            give(&workspace, wanted, LIMIT).unwrap();
            let uid = wanted.map_or(geteuid().as_raw(), |owner| owner.uid);
            for path in [work.clone(), work.join("a"), work.join("a/b/file"), workspace.dirs().home.clone()] {
                assert_eq!(owner(&path), uid, "{}", path.display());
            }
            let session = fs::metadata(work.parent().unwrap()).unwrap();
            let mode = if wanted.is_some() { 0o710 } else { 0o700 };
            assert_eq!((session.uid(), session.mode() & 0o7777), (geteuid().as_raw(), mode));
        }
    }

    #[test]
    fn links_and_second_names_keep_their_owner() {
        if !is_root() {
            return;
        }
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let work = workspace.dirs().work.clone();
        let secret = data.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::create_dir(data.path().join("other")).unwrap();
        symlink(&secret, work.join("link")).unwrap();
        symlink(data.path().join("other"), work.join("directory")).unwrap();
        fs::hard_link(&secret, work.join("hard")).unwrap();
        give(&workspace, Some(USER), LIMIT).unwrap();
        let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
        assert_eq!((owner(&secret), owner(&data.path().join("other"))), (0, 0));
        assert_eq!(owner(&work.join("link")), USER.uid);
        // A link in the place of a directory is refused.
        fs::remove_dir_all(&work).unwrap();
        symlink(data.path().join("other"), &work).unwrap();
        assert!(give(&workspace, Some(USER), LIMIT).is_err());
        assert_eq!(owner(&data.path().join("other")), 0);
    }

    #[test]
    fn walk_that_stops_at_its_limit_continues() {
        if !is_root() {
            return;
        }
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let work = workspace.dirs().work.clone();
        for number in 0..20 {
            fs::write(work.join(number.to_string()), "").unwrap();
        }
        let few = RemovalLimit { entries: 5, ..LIMIT };
        assert_eq!(give(&workspace, Some(USER), few).unwrap_err().kind(), io::ErrorKind::TimedOut);
        give(&workspace, Some(USER), LIMIT).unwrap();
        assert!(
            fs::read_dir(&work).unwrap().all(|entry| entry.unwrap().metadata().unwrap().uid() == USER.uid)
        );
    }

    #[test]
    fn new_files_belong_to_the_owner_of_their_directory() {
        if !is_root() {
            return;
        }
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        give(&workspace, Some(USER), LIMIT).unwrap();
        let home = workspace.beneath().unwrap().dir(Path::new("home")).unwrap();
        let inner = home.make_dir(Path::new(".claude/new")).unwrap();
        inner.replace(Path::new("file"), b"x", crate::support::atomic_file::Durability::Kernel).unwrap();
        let of = |path: &str| fs::metadata(workspace.dirs().home.join(path)).unwrap().uid();
        assert_eq!([of(".claude"), of(".claude/new"), of(".claude/new/file")], [USER.uid; 3]);
    }
}
