//! Removal of the temporary files that a killed process left ([`atomic_file`](crate::support::atomic_file)).

use std::time::Duration;

use rustix::fs::{AtFlags, statat, unlinkat};

use super::beneath::Beneath;
use crate::support::atomic_file::is_temporary_name;

/// Age from which a temporary file belongs to no running write.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);
/// Entries read in one sweep: a child may fill the directory.
const MOST_SWEPT: usize = 10_000;

/// Removes abandoned temporary files of a directory: they may hold secrets. The next start retries those that cannot be
/// removed.
pub(super) fn remove_abandoned(directory: &Beneath) {
    let Ok(entries) = directory.entries() else { return };
    for entry in entries.take(MOST_SWEPT).flatten() {
        let name = entry.file_name();
        if !name.to_str().is_ok_and(is_temporary_name) {
            continue;
        }
        let modified = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_mtime);
        if modified.is_ok_and(|modified| seconds_since(modified) > ABANDONED_AFTER.as_secs()) {
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
    use std::fs::File;
    use std::path::Path;
    use std::time::SystemTime;

    use super::*;
    use crate::support::atomic_file::temporary_name;

    #[test]
    fn only_old_temporary_files_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let id = uuid::Uuid::new_v4().simple().to_string();
        let long_ago = SystemTime::now() - 2 * ABANDONED_AFTER;
        let old = [format!(".{id}.new")];
        let kept = [".mine.new".to_owned(), "session.json".to_owned(), format!(".{id}.old")];
        for name in old.iter().chain(&kept) {
            File::create(root.path().join(name)).unwrap().set_modified(long_ago).unwrap();
        }
        let fresh = root.path().join(temporary_name());
        File::create(&fresh).unwrap();
        remove_abandoned(&Beneath::open(root.path(), Path::new("")).unwrap());
        assert!(old.iter().all(|name| !root.path().join(name).exists()));
        assert!(kept.iter().all(|name| root.path().join(name).exists()) && fresh.exists());
    }
}
