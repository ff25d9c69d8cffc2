//! Files that are replaced as a whole, readable by their owner alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, statat, unlinkat};

use super::beneath::Beneath;

/// Whether a write has to outlive the machine or only this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// On the disk when the call returns.
    Disk,
    /// With the kernel: lost if the machine, but not if this process ends at once. Costs no wait for the disk.
    Kernel,
}

/// The end of the name of a file that is being written.
const HALF_WRITTEN: &str = ".new";
/// A file that has been half written for longer was left by a killed program.
const HALF_WRITTEN_FOR: Duration = Duration::from_secs(60);
/// Entries looked at in one sweep: a child may fill the directory.
const MOST_SWEPT: usize = 10_000;

/// A name of its own: two writers at once each replace the file as a whole, and a planted link is never met.
pub(super) fn temporary_name() -> String {
    format!(".{}{HALF_WRITTEN}", uuid::Uuid::new_v4().simple())
}

/// Replaces a file as a whole: a reader, or a crash, sees the old content or the new. Mode 0600. For directories that no
/// child can write; see [`Beneath::replace`] for the others.
pub(crate) fn write_private(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let temporary = directory.join(temporary_name());
    let written = write_new(&temporary, content, durability).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // Half a file helps nobody; the error says that it was not written.
        fs::remove_file(&temporary).ok();
        return Err(error);
    }
    match durability {
        Durability::Disk => File::open(directory)?.sync_all(),
        Durability::Kernel => Ok(()),
    }
}

fn write_new(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    match durability {
        Durability::Disk => file.sync_all(),
        Durability::Kernel => Ok(()),
    }
}

/// Removes what a killed program left half written in a directory: it may hold secrets. The next start looks again at
/// what cannot be removed.
pub(super) fn sweep_half_written(directory: &Beneath) {
    let Ok(entries) = directory.entries() else { return };
    for entry in entries.take(MOST_SWEPT).flatten() {
        let name = entry.file_name();
        let id = name.to_str().ok().and_then(|name| name.strip_prefix('.')?.strip_suffix(HALF_WRITTEN));
        let is_ours = id.is_some_and(|id| uuid::Uuid::try_parse(id).is_ok());
        if !is_ours {
            continue;
        }
        let modified = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_mtime);
        if modified.is_ok_and(|modified| seconds_since(modified) > HALF_WRITTEN_FOR.as_secs()) {
            unlinkat(directory, name, AtFlags::empty()).ok();
        }
    }
}

fn seconds_since(moment: i64) -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    now.saturating_sub(u64::try_from(moment).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_was_half_written_long_ago_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let id = uuid::Uuid::new_v4().simple().to_string();
        let long_ago = SystemTime::now() - 2 * HALF_WRITTEN_FOR;
        let old = [format!(".{id}.new")];
        let kept = [".mine.new".to_owned(), "session.json".to_owned(), format!(".{id}.old")];
        for name in old.iter().chain(&kept) {
            File::create(root.path().join(name)).unwrap().set_modified(long_ago).unwrap();
        }
        let fresh = root.path().join(temporary_name());
        File::create(&fresh).unwrap();
        sweep_half_written(&Beneath::open(root.path(), Path::new("")).unwrap());
        assert!(old.iter().all(|name| !root.path().join(name).exists()));
        assert!(kept.iter().all(|name| root.path().join(name).exists()) && fresh.exists());
    }

    #[test]
    fn files_are_replaced_whole_and_private() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("a.json");
        let elsewhere = data.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        for (content, durability) in [("one", Durability::Disk), ("two", Durability::Kernel)] {
            write_private(&file, content.as_bytes(), durability).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), content);
        }
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!elsewhere.exists(), "a planted link was followed");
    }
}
