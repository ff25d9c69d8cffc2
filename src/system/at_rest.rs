//! Work on a data directory from outside its server: backup, restore, export and deletion of a user, export of a cluster.
//!
//! Backup and export only read, also while a server runs. Restore and deletion need the directory for themselves. Blocking.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

mod backup;
#[cfg(feature = "cluster")]
mod cluster;
mod export;
mod restore;

pub use backup::backup;
#[cfg(feature = "cluster")]
pub use cluster::{ClusterCopy, export_cluster};
pub use export::export_user;
pub use restore::restore;

use super::user;
#[cfg(feature = "cluster")]
use crate::error::Cause;
use crate::error::StartError;
use crate::model::ids::UserId;
pub use crate::workspace::Copied;
use crate::workspace::{self, UserFiles};

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AtRestError {
    /// The data directory cannot be used, or a server uses it.
    #[error(transparent)]
    DataDir(#[from] StartError),
    /// A directory that must be new or empty has files.
    #[error("{} is not empty: name a new directory", .0.display())]
    NotEmpty(PathBuf),
    /// A copy within the data directory would contain itself.
    #[error("{} lies in the data directory: name another one", .0.display())]
    Within(PathBuf),
    /// There is no data directory.
    #[error("{} is no data directory", .0.display())]
    NoData(PathBuf),
    /// Not a complete backup, or one of another release.
    #[error("{} is no backup that this release can restore: {problem}", .path.display())]
    NoBackup {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The user has no session.
    #[error("this user has no data here")]
    NoUser,
    /// The configuration has no cluster.
    #[cfg(feature = "cluster")]
    #[error("the configuration has no cluster (cluster.etcd)")]
    NoCluster,
    /// Nodes of the cluster run. Their names.
    #[cfg(feature = "cluster")]
    #[error("nodes of the cluster run ({}): stop them first, which stores all that they have", .0.join(", "))]
    ClusterRuns(Vec<String>),
    /// The users of a cluster cannot be read.
    #[cfg(feature = "cluster")]
    #[error("the users of the cluster cannot be read: {0}")]
    Cluster(#[source] Cause),
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The directory that is worked on.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Deletes a user with all data, while no server runs. Returns the number of sessions. A repetition, or the next start of
/// the server, continues what was interrupted.
///
/// # Errors
/// [`AtRestError::DataDir`] with [`StartError::DataDirLocked`] while a server runs.
pub fn delete_user(data_dir: &Path, user: &UserId) -> Result<usize, AtRestError> {
    existing(data_dir)?;
    let _lock = workspace::open(data_dir)?;
    let files = UserFiles::of(data_dir, user);
    let deleted = files.begin_deletion().and_then(|()| user::delete_files(data_dir, &files));
    deleted.map_err(at(data_dir))
}

/// The canonical path of a data directory that exists.
fn existing(data_dir: &Path) -> Result<PathBuf, AtRestError> {
    let no_data = || AtRestError::NoData(data_dir.to_owned());
    let data_dir = data_dir.canonicalize().map_err(|_| no_data())?;
    if workspace::records_dir(&data_dir).is_dir() { Ok(data_dir) } else { Err(no_data()) }
}

/// Creates a directory for a copy, or takes an empty one. Only its owner may enter.
fn new_directory(path: &Path, data_dir: &Path) -> Result<(), AtRestError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))?;
    if path.canonicalize().map_err(at(path))?.starts_with(data_dir) {
        return Err(AtRestError::Within(path.to_owned()));
    }
    if fs::read_dir(path).map_err(at(path))?.next().is_some() {
        return Err(AtRestError::NotEmpty(path.to_owned()));
    }
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> AtRestError {
    let path = path.to_owned();
    move |source| AtRestError::Io { path, source }
}
