//! Adds and revokes keys. The file is replaced as a whole, one change at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::{Entry, Key, KeyFileError, KeyLimits, MAX_FILE_BYTES, Role, digest, entry, load};
use crate::support::atomic_file::{self, Durability};
use crate::support::secret_file;

/// Digits of an id: unique within one file, and short enough to type.
const ID_DIGITS: usize = 10;

/// Generates a key and adds its digest to the file, which is created with mode 0600 if missing. The key is returned
/// only here.
///
/// # Errors
/// [`KeyFileError`]; the file is unchanged.
pub fn add(
    file: &Path,
    role: Role,
    label: Option<String>,
    limits: KeyLimits,
) -> Result<(Key, Entry), KeyFileError> {
    if let Some(problem) = limits.problem(&role) {
        return Err(KeyFileError::Limit(problem));
    }
    let key = Key::generate()?;
    let id = uuid::Uuid::new_v4().simple().to_string().chars().take(ID_DIGITS).collect();
    let entry = Entry::new(id, digest(key.expose().as_bytes()), role, label, limits);
    let line = entry.render().map_err(|error| failed(file)(error.into()))?;
    change(file, true, |mut text| {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&line);
        text.push('\n');
        Some(text)
    })?;
    Ok((key, entry))
}

/// Removes a key from the file. Returns whether it existed.
///
/// # Errors
/// [`KeyFileError`]; the file is then as it was.
pub fn revoke(file: &Path, id: &str) -> Result<bool, KeyFileError> {
    change(file, false, |text| {
        let is_it =
            |line: &str| entry::is_entry(line) && Entry::parse(line).is_ok_and(|entry| entry.id() == id);
        let kept: String = text.split_inclusive('\n').filter(|line| !is_it(line)).collect();
        (kept.len() < text.len()).then_some(kept)
    })
}

/// Replaces the text of the file; `None` leaves it. Returns whether it has changed.
fn change(
    file: &Path,
    may_create: bool,
    edit: impl FnOnce(String) -> Option<String>,
) -> Result<bool, KeyFileError> {
    // Resolves symbolic links: the target is replaced, not the link.
    let path = file.canonicalize().or_else(|_| std::path::absolute(file)).map_err(failed(file))?;
    let directory = path.parent().ok_or_else(|| failed(file)(io::ErrorKind::IsADirectory.into()))?;
    // Serialises concurrent commands by a lock on the directory, because the file itself is replaced.
    let lock = File::open(directory).map_err(failed(file))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|errno| failed(file)(errno.into()))?;
    let text = if may_create && !path.exists() { String::new() } else { text_of(&path)? };
    let Some(text) = edit(text) else { return Ok(false) };
    replace(&path, &text).map_err(failed(file))?;
    Ok(true)
}

/// Replaces the key file and keeps owner and mode: the operator may not be the server's user.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let before = path.metadata().ok();
    atomic_file::replace_with(path, text.as_bytes(), Durability::Disk, |file| {
        let Some(before) = before else { return Ok(()) };
        file.set_permissions(before.permissions())?;
        fchown(file, Some(before.uid()), Some(before.gid()))
    })
}

/// The text of the file, if all of it is valid.
fn text_of(file: &Path) -> Result<String, KeyFileError> {
    load(file)?;
    let unfit = |problem: String| KeyFileError::Unfit { path: file.to_owned(), problem };
    let (content, _) = secret_file::read(file, MAX_FILE_BYTES).map_err(|error| unfit(error.to_string()))?;
    String::from_utf8(content).map_err(|_| unfit("it is not text".to_owned()))
}

fn failed(file: &Path) -> impl Fn(io::Error) -> KeyFileError {
    let path = file.to_owned();
    move |source| KeyFileError::Write { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::list;
    use super::*;
    use crate::model::ids::UserId;

    #[test]
    fn key_is_added_and_revoked_and_comments_stay() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys");
        let alice = Role::User(UserId::new("alice").unwrap());
        let (key, first) = add(&file, alice.clone(), Some("lap\ntop".into()), KeyLimits::default()).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains(key.expose()) && !text.contains(key.expose().trim_start_matches("plk_")));
        private_write(&file, &format!("# ours\n{text}"));
        let (_, second) = add(&file, Role::Admin, None, KeyLimits::default()).unwrap();

        let listed = list(&file).unwrap();
        assert_eq!((listed[0].id(), listed[0].role()), (first.id(), &alice));
        assert_eq!(listed[0].digest(), &digest(key.expose().as_bytes()));
        assert!(revoke(&file, first.id()).unwrap());
        assert!(!revoke(&file, first.id()).unwrap());
        assert_eq!(list(&file).unwrap()[0].id(), second.id());
        assert!(std::fs::read_to_string(&file).unwrap().starts_with("# ours\n"));
    }

    #[test]
    fn concurrent_additions_all_stay() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| add(&file, Role::Service, None, KeyLimits::default()).unwrap());
            }
        });
        assert_eq!(list(&file).unwrap().len(), 8);
    }

    #[test]
    fn invalid_file_is_not_changed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys");
        assert!(revoke(&file, "x").is_err() && !file.exists());
        private_write(&file, "nonsense");
        assert!(add(&file, Role::Admin, None, KeyLimits::default()).is_err());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "nonsense");
    }

    fn private_write(file: &Path, text: &str) {
        std::fs::write(file, text).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}
