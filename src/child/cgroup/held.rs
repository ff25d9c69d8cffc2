//! Directories of groups that a living server uses, distinguished from those of servers that were killed.
//!
//! A lock on the directory ends with its server, however that ends. A name with a process id would need the time of its
//! start and the namespace as well.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use pilotlight_shim::cgroup::Group;
use rustix::fs::{FlockOperation, flock};

/// Begin of the name of every server's directory, before the marker of its data directory.
const PREFIX: &str = "pilotlight-";
/// Length of that marker, in hexadecimal digits.
const MARKER: usize = 32;
/// Entries that are looked at in a search for dead servers; the kernel has some dozens for each group.
const MAX_ENTRIES: usize = 4096;
/// Attempts to make a directory that is removed meanwhile.
const MAX_TRIES: usize = 3;

/// A directory that no other server removes.
#[derive(Debug)]
pub(crate) struct Held {
    _lock: File,
}

impl Held {
    /// Makes the directory, unless it is there, and holds it.
    pub(super) fn make(dir: &Path) -> io::Result<Self> {
        for _ in 0..MAX_TRIES {
            Group::create(dir)?;
            let Ok(lock) = File::open(dir) else { continue };
            // A tool that opened the directory may have a lock, which does no harm.
            let _shared = flock(&lock, FlockOperation::NonBlockingLockShared);
            let inode = |found: io::Result<fs::Metadata>| found.ok().map(|it| it.ino());
            if inode(fs::metadata(dir)).is_some_and(|named| Some(named) == inode(lock.metadata())) {
                return Ok(Self { _lock: lock });
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Removes what dead servers left in a group, unless a process is in it. Kills nothing: it may be of any server.
pub(super) fn remove_dead(group: &Path) {
    let entries = fs::read_dir(group).into_iter().flatten().take(MAX_ENTRIES).flatten();
    for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(is_of_a_server)) {
        let Ok(dir) = File::open(entry.path()) else { continue };
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Some(group) = Group::open(&entry.path())
        {
            // Fails while a process is in it.
            let _inhabited = group.remove();
        }
    }
}

fn is_of_a_server(name: &str) -> bool {
    let is_marker =
        |marker: &str| marker.len() == MARKER && marker.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.strip_prefix(PREFIX).is_some_and(is_marker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_dead_servers_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let of = |digit: &str| root.path().join(format!("{PREFIX}{}", digit.repeat(MARKER)));
        let (dead, alive) = (of("a"), of("b"));
        fs::create_dir_all(dead.join("child/nested")).unwrap();
        let held = Held::make(&alive).unwrap();
        for other in ["pilotlight-server", "pilotlight-", "other"] {
            fs::create_dir(root.path().join(other)).unwrap();
        }
        remove_dead(root.path());
        assert!(!dead.exists() && alive.exists());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 4);
        drop(held);
        remove_dead(root.path());
        assert!(!alive.exists());
    }

    #[test]
    fn directory_that_is_there_is_held() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(format!("{PREFIX}{}", "c".repeat(MARKER)));
        fs::create_dir(&dir).unwrap();
        let _held = Held::make(&dir).unwrap();
        remove_dead(root.path());
        assert!(dir.exists());
        assert!(Held::make(&root.path().join("no/such")).is_err());
    }
}
