//! What a store in a directory needs beside the crate. Blocking work on threads for it.
//!
//! The crate writes a file beside its place, syncs it, links it under its name and syncs the directory: a create is whole
//! or not there. A writer that is killed before the last step leaves a name that is not yet on the disk, and one that is
//! killed earlier a file with a number behind `#`, which no list shows.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_store::path::Path as ObjectPath;

use super::error::{OpenError, StoreError};
use crate::support::blocking::blocking_long;

/// Files of one user that are looked at.
const MOST_SWEPT: usize = 100_000;
/// Others may not enter: objects hold conversations.
const FORBIDDEN: u32 = 0o007;

/// File in the directory by which it is known again: where a file system is mounted there is another directory without it.
const MARK: &str = ".pilotlight-store";
/// Longest content of that file which is read.
const MAX_MARK: u64 = 64;

/// The directory of a store.
#[derive(Debug, Clone)]
pub(super) struct Local {
    root: PathBuf,
    mark: Arc<str>,
}

impl Local {
    /// Creates the directory, or checks that it is nobody else's.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |problem: String| OpenError::Directory { path: path.to_owned(), problem };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| failed(error.to_string()))?;
        let root = path.canonicalize().map_err(|error| failed(error.to_string()))?;
        let mode = root.metadata().map_err(|error| failed(error.to_string()))?.mode();
        if mode & FORBIDDEN != 0 {
            return Err(failed(format!("its mode {:04o} lets others in; chmod it to 0700", mode & 0o7777)));
        }
        let mark = mark(&root).map_err(|error| failed(error.to_string()))?;
        Ok(Self { root, mark })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes sure that the directory is the one that was opened. What is missing in another one says nothing, and what is
    /// created there is lost.
    pub(super) async fn check(self) -> Result<(), StoreError> {
        self.checked(read_mark).await
    }

    /// As [`Self::check`], and that this object is in it.
    pub(super) async fn check_has(self, object: ObjectPath) -> Result<(), StoreError> {
        self.checked(move |root| {
            // The object last: it is not in a directory that comes back between the two.
            let mark = read_mark(root)?;
            root.join(object.as_ref()).symlink_metadata()?;
            Ok(mark)
        })
        .await
    }

    async fn checked(
        self,
        look: impl FnOnce(&Path) -> io::Result<String> + Send + 'static,
    ) -> Result<(), StoreError> {
        let mark = self.mark.clone();
        match self.run(look).await {
            Ok(found) if found == *mark => Ok(()),
            Ok(_) | Err(StoreError::Missing) => {
                Err(StoreError::Unavailable("its directory is not mounted, or is another one".to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// Brings the name of an object to the disk.
    pub(super) async fn sync(self, object: ObjectPath) -> Result<(), StoreError> {
        self.run(move |root| {
            let directory = root.join(object.as_ref());
            let directory = directory.parent().unwrap_or(root);
            let mut above = directory.ancestors().take_while(|it| it.starts_with(root));
            above.try_for_each(|it| File::open(it)?.sync_all())
        })
        .await
    }

    /// Removes files that killed writers have left.
    pub(super) async fn sweep(self, below: ObjectPath, age: Duration) -> Result<(), StoreError> {
        self.run(move |root| {
            let mut directories = vec![root.join(below.as_ref())];
            let mut looked_at = 0;
            while let Some(directory) = directories.pop() {
                let entries = match fs::read_dir(&directory) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    entries => entries?,
                };
                for entry in entries {
                    looked_at += 1;
                    if looked_at > MOST_SWEPT {
                        return Ok(());
                    }
                    let entry = entry?;
                    let found = entry.metadata()?;
                    if found.is_dir() {
                        directories.push(entry.path());
                    } else if is_left(&entry.file_name().to_string_lossy()) && is_older(&found, age) {
                        fs::remove_file(entry.path())?;
                    }
                }
            }
            Ok(())
        })
        .await
    }

    async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        blocking_long(move || work(&self.root)).await.map_err(|error| StoreError::of_io(error.kind()))
    }
}

/// The content of the directory's mark, which the first node writes. Never empty: it is linked under its name when it is whole.
fn mark(root: &Path) -> io::Result<Arc<str>> {
    let path = root.join(MARK);
    if !path.exists() {
        let id = uuid::Uuid::new_v4();
        let written = root.join(format!("{MARK}#{}", id.as_simple()));
        let done = fs::write(&written, id.to_string())
            .and_then(|()| File::open(&written)?.sync_all())
            .and_then(|()| fs::hard_link(&written, &path));
        fs::remove_file(&written)?;
        match done {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => File::open(root)?.sync_all()?,
        }
    }
    read_mark(root).map(Arc::from)
}

fn read_mark(root: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(root.join(MARK))?.take(MAX_MARK).read_to_string(&mut text)?;
    Ok(text)
}

fn is_left(name: &str) -> bool {
    let number = name.rsplit_once('#').map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_older(found: &fs::Metadata, age: Duration) -> bool {
    let modified = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    // One from the future is of another clock, and may be in use.
    SystemTime::now().duration_since(modified).is_ok_and(|it| it >= age)
}
