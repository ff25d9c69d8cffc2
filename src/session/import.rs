//! A history that a turn brings with it, and its way into the conversation of a session that has none.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use crate::cli::Dirs;
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

/// Directories of the CLI's own between its configuration and a transcript: `projects/<folder>/<file>`.
const LEVELS: usize = 3;

/// Writes a transcript where the CLI looks for it, mode 0600. The directories on the way are within reach of children:
/// no link is followed, and what stands in the file's place is replaced. Blocks.
pub(crate) fn write_transcript(dirs: &Dirs, transcript: &Path, content: &[u8]) -> io::Result<()> {
    let own = dirs.home.parent().filter(|root| transcript.starts_with(root));
    // A configured directory for all sessions is the operator's.
    let trusted = own.or_else(|| transcript.ancestors().nth(LEVELS)).ok_or(io::ErrorKind::InvalidInput)?;
    let inner = transcript.strip_prefix(trusted).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (folder, name) = inner.parent().zip(inner.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut directory: OwnedFd = openat(CWD, trusted, flags, Mode::empty())?;
    for step in folder {
        match mkdirat(&directory, step, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        directory = openat(&directory, step, flags | OFlags::NOFOLLOW, Mode::empty())?;
    }
    match unlinkat(&directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&directory, name, flags, Mode::RUSR | Mode::WUSR)?;
    let written = File::from(file).write_all(content);
    if written.is_err() {
        // Half a transcript would be resumed as half a conversation.
        unlinkat(&directory, name, AtFlags::empty())?;
    }
    written
}
