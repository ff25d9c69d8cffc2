//! Directories of a child.

use std::path::PathBuf;

/// Directories of a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// Working directory.
    pub work: PathBuf,
    /// `HOME`, with the CLI's own files.
    pub home: PathBuf,
    /// `TMPDIR`.
    pub tmp: PathBuf,
}
