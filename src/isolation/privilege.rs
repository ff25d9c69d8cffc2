//! What the rung `uid` needs of this process and of the way to the programs and files. Decisions apart from two reads.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities};

use crate::config::UidRange;

/// Start children as other users, give files away, and still read, remove and kill what belongs to them.
const NEEDED: [(CapabilitySet, &str); 6] = [
    (CapabilitySet::SETUID, "CAP_SETUID"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
    (CapabilitySet::CHOWN, "CAP_CHOWN"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    (CapabilitySet::FOWNER, "CAP_FOWNER"),
    (CapabilitySet::KILL, "CAP_KILL"),
];

/// What this process lacks to run children as users of the range.
pub(super) fn lacking(range: UidRange) -> Option<String> {
    let Ok(sets) = capabilities(None) else { return Some("its capabilities cannot be read".to_owned()) };
    missing(sets.effective)
        .or_else(|| {
            let own = geteuid().as_raw();
            range
                .contains(own)
                .then(|| format!("isolation.uids ({range}) contains the server's own user id {own}"))
        })
        .or_else(|| SUBORDINATE.into_iter().find_map(|file| shared(range, file)))
}

/// Ids that users of this host give to their containers, by which they could reach the files of sessions.
const SUBORDINATE: [&str; 2] = ["/etc/subuid", "/etc/subgid"];

fn shared(range: UidRange, file: &str) -> Option<String> {
    // Without the file nobody has such ids.
    let text = std::fs::read_to_string(file).ok()?;
    let owner = owner_of_a_part(range, &text)?;
    Some(format!(
        "isolation.uids ({range}) overlaps the ids that {file} gives to {owner}: choose another range"
    ))
}

/// Who has an id of the range, by lines `OWNER:FIRST:COUNT`.
fn owner_of_a_part(range: UidRange, text: &str) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let end = first.saturating_add(count);
        (first <= range.last().into() && end > range.first().into() && count > 0).then_some(owner)
    })
}

fn missing(effective: CapabilitySet) -> Option<String> {
    let names: Vec<_> = NEEDED
        .iter()
        .filter(|(capability, _)| !effective.contains(*capability))
        .map(|(_, name)| *name)
        .collect();
    (!names.is_empty()).then(|| format!("the server lacks {}", names.join(", ")))
}

/// The first directory on the way to a path, or the path itself, that other users may not pass or execute.
pub(super) fn closed(path: &Path) -> Option<PathBuf> {
    let real = path.canonicalize().ok()?;
    let mut way: Vec<_> = real.ancestors().collect();
    way.reverse();
    way.into_iter().find(|it| !is_open(it)).map(Path::to_owned)
}

/// Whether other users may execute a file, or pass a directory.
pub(super) fn is_open(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing(CapabilitySet::all()), None);
        let without = CapabilitySet::all().difference(CapabilitySet::CHOWN | CapabilitySet::KILL);
        assert_eq!(missing(without).as_deref(), Some("the server lacks CAP_CHOWN, CAP_KILL"));
    }

    #[test]
    fn own_id_in_the_range_is_refused() {
        let own = geteuid().as_raw();
        if let Some(range) = UidRange::new(own, own) {
            assert!(lacking(range).is_some());
        }
    }

    #[test]
    fn ids_of_containers_of_users_are_not_used() {
        let text =
            "# ids\nalice:100000:65536\nbob:165536:65536\n\nbroken:x:1\ncarol:300000:0\n1005:400000:10\n";
        let owner = |first, last| owner_of_a_part(UidRange::new(first, last).unwrap(), text);
        assert_eq!(owner(200_000, 265_535), Some("bob"));
        assert_eq!(owner(231_071, 231_071), Some("bob"));
        assert_eq!(owner(231_072, 399_999), None);
        assert_eq!(owner(99_000, 99_999), None);
        assert_eq!(owner(99_000, 100_000), Some("alice"));
        assert_eq!(owner(400_009, 400_009), Some("1005"));
        let default = UidRange::default();
        assert_eq!(owner_of_a_part(default, "last:600034464:65536\nnspawn:524288:1878523904\n"), None);
    }

    #[test]
    fn closed_directory_on_the_way_is_found() {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().canonicalize().unwrap();
        let file = real.join("open/file");
        fs::create_dir(real.join("open")).unwrap();
        fs::write(&file, "").unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        set(&real, 0o700);
        set(&real.join("open"), 0o755);
        set(&file, 0o755);
        assert_eq!(closed(&file), Some(real.clone()));
        set(&real, 0o711);
        assert_eq!(closed(&file), None);
        set(&file, 0o644);
        assert_eq!(closed(&file), Some(file.clone()));
    }
}
