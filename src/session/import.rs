//! A history that a turn brings with it, and its way into the conversation of a session that has none.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::ids::TurnId;
use crate::model::History;

/// What a child is started with, if its conversation turns out to have no context.
#[derive(Debug, Clone)]
pub(crate) struct Offered {
    /// The turn that is to follow.
    pub(crate) turn: TurnId,
    pub(crate) history: Arc<History>,
}

/// An import that the CLI has accepted.
#[derive(Debug, Clone)]
pub(crate) struct Imported {
    pub(crate) turn: TurnId,
    /// The checkpoint of its last line.
    pub(crate) last: String,
}

/// The CLI whose imports were refused, if one's were. In memory: a server that is started again tries again.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<Option<ProgramFile>>);

/// A program, as long as nobody replaces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProgramFile {
    device: u64,
    inode: u64,
    modified: Option<SystemTime>,
}

impl ProgramFile {
    /// The file itself, behind all links: an update often changes a link.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        Some(Self { device: file.dev(), inode: file.ino(), modified: file.modified().ok() })
    }
}

impl Refusals {
    pub(crate) fn includes(&self, program: &ProgramFile) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(program)
    }

    pub(crate) fn note(&self, program: ProgramFile) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(program);
    }
}
