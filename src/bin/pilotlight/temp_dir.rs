//! A private temporary directory, removed when dropped.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub(crate) struct TempDir {
    path: PathBuf,
    keep: bool,
}

impl TempDir {
    /// Creates `pilotlight-NAME-…` with mode 0700; `keep` leaves it behind.
    pub(crate) fn new(name: &str, keep: bool) -> io::Result<Self> {
        let unique = uuid::Uuid::new_v4().simple();
        let path = std::env::temp_dir().join(format!("pilotlight-{name}-{unique}"));
        private_directory(&path)?;
        Ok(Self { path, keep })
    }

    /// Lets other users pass, and see nothing.
    pub(crate) fn let_pass(&self) -> io::Result<()> {
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o711))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the temporary directory");
        }
    }
}

/// Creates a directory and its parents with mode 0700.
pub(crate) fn private_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
