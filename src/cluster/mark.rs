//! What is known of the files of a user that are on this node, against what the cluster has: one small file for each user,
//! beside the records.
//!
//! | mark | files here |
//! |---|---|
//! | none | are unknown to the cluster, if there are any |
//! | empty | came from the cluster or went there: what the store has replaces them |
//! | `FENCE SEQ` | are newer than the store: they have all that this head names, and more. `SEQ` is 0 where there was no head, and `FENCE` the ownership |

use std::io;
use std::path::{Path, PathBuf};

use super::ledger::{Fence, Head, UserHash};
use crate::support::atomic_file::{self, Durability};
use crate::support::blocking::blocking;
use crate::workspace::{is_full, records_dir, remove_any};

/// Number of this start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Name of the file beside the marks with that number while a server runs, and with [`SETTLED`] after an orderly end.
const BOOT: &str = "boot";
const SETTLED: &str = "settled";
/// The mark of files that are the latest only if the store has nothing.
const NOTHING_STORED: &str = "0 0";

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// The cluster does not know the files here.
    Never,
    /// They may be old.
    Stored,
    /// Something of them is here alone.
    Newer { fence: u64, seq: u64 },
}

impl Mark {
    /// Of files that have more than the head. The ownership counts where there is none.
    pub(super) fn newer(fence: Fence, head: Option<&Head>) -> Self {
        let (fence, seq) = head.map_or((fence, 0), |head| (head.fence, head.seq));
        Self::Newer { fence: fence.0, seq }
    }

    /// Whether nobody has had the user since, so that the files here are the latest.
    pub(super) fn is_latest(self, head: Option<&Head>) -> bool {
        let Self::Newer { fence, seq } = self else { return false };
        let Some(head) = head else { return seq == 0 };
        // The next one of the ownership is by this node, which was killed before it noted that. After the last one the files
        // may be removed; those after more turns may have been lost with the power.
        let is_next = seq.checked_add(1) == Some(head.seq) && !head.released;
        head.fence.0 == fence && (head.seq == seq || is_next)
    }

    /// # Errors
    /// The mark cannot be read: nothing is known of the files then.
    pub(super) async fn read(data_dir: &Path, user: UserHash) -> io::Result<Self> {
        let path = path(data_dir, user);
        blocking(move || match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Never),
            text => Ok(Self::parse(&text?)),
        })
        .await
    }

    /// # Errors
    /// The mark is as it was.
    pub(super) async fn write(self, data_dir: &Path, user: UserHash) -> io::Result<()> {
        let path = path(data_dir, user);
        let content = match self {
            Self::Never => return blocking(move || remove_any(&path)).await,
            Self::Stored => String::new(),
            Self::Newer { fence, seq } => format!("{fence} {seq}"),
        };
        blocking(move || {
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            atomic_file::replace(&path, content.as_bytes(), Durability::Kernel)
        })
        .await
    }

    fn parse(text: &str) -> Self {
        let numbers = text.split_once(' ').and_then(|(fence, seq)| fence.parse().ok().zip(seq.parse().ok()));
        match numbers {
            Some((fence, seq)) => Self::Newer { fence, seq },
            None if text.is_empty() => Self::Stored,
            // Nobody's: such files are set aside, and not replaced.
            None => Self::Newer { fence: 0, seq: u64::MAX },
        }
    }
}

/// Whether something of the user's files may be missing in the cluster. Blocking.
///
/// # Errors
/// The mark cannot be looked at.
pub(super) fn may_lack(data_dir: &Path, user: UserHash) -> io::Result<bool> {
    match path(data_dir, user).metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        found => Ok(found?.len() > 0),
    }
}

/// Before marks are read: removes what writes that were cut off have left. Where the machine has lost its power since, files
/// may lack the latest of what their marks say: they are the latest only of users of whom the store has nothing. Blocking.
///
/// # Errors
/// The directory cannot be read or written.
pub(super) fn begin(data_dir: &Path) -> io::Result<()> {
    let directory = directory(data_dir);
    match std::fs::create_dir_all(&directory) {
        // There are no marks.
        Err(error) if is_full(&error) => return Ok(()),
        done => done?,
    }
    // Where it cannot be read, each start is taken for another one.
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_else(|_| uuid::Uuid::new_v4().to_string());
    let noted = match std::fs::read_to_string(directory.join(BOOT)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        noted => Some(noted?),
    };
    // Without the file nothing that knows of it has run here.
    let is_same = noted.as_ref() == Some(&boot);
    let is_whole = is_same || noted.is_none_or(|noted| noted == SETTLED);
    for (name, path) in entries(&directory)? {
        if atomic_file::is_temporary_name(&name) {
            remove_any(&path)?;
        } else if !is_whole && is_newer(&name, &path)? {
            atomic_file::replace(&path, NOTHING_STORED.as_bytes(), Durability::Disk)?;
        }
    }
    if is_same {
        return Ok(());
    }
    // Before anything is written that the disk may not have yet.
    let path = directory.join(BOOT);
    let noted = atomic_file::replace(&path, boot.as_bytes(), Durability::Disk);
    // A server starts on such a disk. Empty the file needs no room, and is that of no start.
    let noted = noted
        .or_else(|error| if is_full(&error) { std::fs::File::create(&path)?.sync_all() } else { Err(error) });
    noted.or_else(|error| if is_full(&error) { Ok(()) } else { Err(error) })
}

/// After the last change: files that are newer than the store are on the disk, and outlive the machine. Blocking.
///
/// # Errors
/// They may not be.
pub(super) fn settle(data_dir: &Path) -> io::Result<()> {
    let directory = directory(data_dir);
    for (name, path) in entries(&directory)? {
        if is_newer(&name, &path)? {
            rustix::fs::syncfs(std::fs::File::open(data_dir)?)?;
            return atomic_file::replace(&directory.join(BOOT), SETTLED.as_bytes(), Durability::Disk);
        }
    }
    Ok(())
}

fn entries(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = std::fs::read_dir(directory)?.map(|entry| {
        let entry = entry?;
        Ok((entry.file_name().to_string_lossy().into_owned(), entry.path()))
    });
    entries.collect()
}

/// Whether it is the mark of files that are newer.
fn is_newer(name: &str, path: &Path) -> io::Result<bool> {
    if name.parse::<UserHash>().is_err() {
        return Ok(false);
    }
    match path.metadata() {
        // A removal that still runs.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        found => Ok(found?.len() > 0),
    }
}

fn directory(data_dir: &Path) -> PathBuf {
    records_dir(data_dir).join(".cluster")
}

fn path(data_dir: &Path, user: UserHash) -> PathBuf {
    directory(data_dir).join(user.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fence: u64, seq: u64, released: bool) -> Head {
        let first = Head::snapshot(None, Fence(fence), 1);
        let mut head = (1..seq).fold(first, |head, _| head.delta(Fence(fence), 1).unwrap());
        head.released = released;
        head
    }

    #[test]
    fn latest_files_are_those_that_nobody_went_on_from() {
        let newer = |fence, seq| Mark::Newer { fence, seq };
        let table = [
            // The first object was not written, or its answer has not come.
            (newer(5, 0), None, true),
            (newer(5, 0), Some(head(5, 1, false)), true),
            (newer(5, 0), Some(head(9, 1, false)), false),
            // A head has vanished: the ledger is an older one.
            (newer(5, 3), None, false),
            (newer(5, 0), Some(head(5, 1, true)), false),
            // Nothing was written since.
            (newer(5, 3), Some(head(5, 3, false)), true),
            (newer(5, 3), Some(head(5, 3, true)), true),
            // The next head could not be noted; after the last one files are removed.
            (newer(5, 3), Some(head(5, 4, false)), true),
            (newer(5, 3), Some(head(5, 4, true)), false),
            (newer(5, 3), Some(head(5, 5, false)), false),
            (newer(5, 3), Some(head(5, 2, false)), false),
            // Another node has written, or the ledger is an older one.
            (newer(5, 3), Some(head(6, 4, false)), false),
            (newer(5, 3), Some(head(6, 3, false)), false),
            (newer(5, 3), Some(head(2, 3, false)), false),
            (newer(5, u64::MAX), Some(head(5, 1, false)), false),
            (Mark::Stored, Some(head(5, 3, false)), false),
            (Mark::Stored, None, false),
            (Mark::Never, Some(head(5, 3, false)), false),
            (Mark::Never, None, false),
        ];
        for (mark, head, expected) in table {
            assert_eq!(mark.is_latest(head.as_ref()), expected, "{mark:?} {head:?}");
        }
    }

    #[tokio::test]
    async fn mark_is_read_as_it_was_written() {
        let data_dir = tempfile::tempdir().unwrap();
        let (data_dir, user) = (data_dir.path(), UserHash::from_bytes([7; 16]));
        let read = async || Mark::read(data_dir, user).await.unwrap();
        assert_eq!((read().await, may_lack(data_dir, user).unwrap()), (Mark::Never, true));
        for (mark, lacks) in
            [(Mark::Newer { fence: 3, seq: 9 }, true), (Mark::Stored, false), (Mark::Never, true)]
        {
            mark.write(data_dir, user).await.unwrap();
            assert_eq!((read().await, may_lack(data_dir, user).unwrap()), (mark, lacks));
        }
        Mark::Never.write(data_dir, user).await.unwrap();
        // Neither replaces files nor takes them for the latest.
        std::fs::write(path(data_dir, user), "3 ").unwrap();
        let mark = read().await;
        assert!(matches!(mark, Mark::Newer { .. }) && !mark.is_latest(Some(&head(3, 3, false))), "{mark:?}");
        // It cannot be read: nothing is decided on it.
        std::fs::remove_file(path(data_dir, user)).unwrap();
        std::fs::create_dir(path(data_dir, user)).unwrap();
        Mark::read(data_dir, user).await.unwrap_err();
    }

    #[tokio::test]
    async fn write_that_was_cut_off_leaves_nothing() {
        let data_dir = tempfile::tempdir().unwrap();
        begin(data_dir.path()).unwrap();
        let user = UserHash::from_bytes([7; 16]);
        Mark::Stored.write(data_dir.path(), user).await.unwrap();
        let cut_off = directory(data_dir.path()).join(atomic_file::temporary_name());
        std::fs::write(&cut_off, "3").unwrap();
        begin(data_dir.path()).unwrap();
        assert_eq!(
            (cut_off.exists(), Mark::read(data_dir.path(), user).await.unwrap()),
            (false, Mark::Stored)
        );
    }

    #[tokio::test]
    async fn files_before_a_loss_of_power_are_not_the_latest() {
        let data_dir = tempfile::tempdir().unwrap();
        let data_dir = data_dir.path();
        let users = [1, 2].map(|number| UserHash::from_bytes([number; 16]));
        let (newer, boot) = (Mark::Newer { fence: 5, seq: 3 }, directory(data_dir).join(BOOT));
        let marks = async || {
            let [one, two] = users.map(|user| Mark::read(data_dir, user));
            [one.await.unwrap(), two.await.unwrap()]
        };
        std::fs::create_dir_all(directory(data_dir)).unwrap();
        newer.write(data_dir, users[0]).await.unwrap();
        Mark::Stored.write(data_dir, users[1]).await.unwrap();
        // The first start that knows of it, another one after a kill, and one after an orderly end and a start of the machine.
        begin(data_dir).unwrap();
        begin(data_dir).unwrap();
        settle(data_dir).unwrap();
        begin(data_dir).unwrap();
        assert_eq!(marks().await, [newer, Mark::Stored]);
        std::fs::write(&boot, "another start of the machine").unwrap();
        begin(data_dir).unwrap();
        let [lost, stored] = marks().await;
        assert!(!lost.is_latest(Some(&head(5, 3, false))) && lost.is_latest(None), "{lost:?}");
        assert!(may_lack(data_dir, users[0]).unwrap() && stored == Mark::Stored);
    }
}
