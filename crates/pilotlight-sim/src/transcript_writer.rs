//! Writer of the transcript file: a separate thread writes lines with the delay of claude.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;

/// Delay between a line and its write, as in claude: SIGKILL loses the lines of this time.
const WRITE_DELAY: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Pending {
    file: Option<PathBuf>,
    lines: Vec<u8>,
    due: Option<Instant>,
    has_thread: bool,
    /// The last lines were not written.
    has_failed: bool,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends lines to a transcript, [`WRITE_DELAY`] later and on another thread.
#[derive(Clone, Default)]
pub(crate) struct Writer(Arc<Shared>);

impl Writer {
    /// Writes pending lines to the old file and changes to this one.
    pub(crate) fn set_file(&self, file: PathBuf) {
        let mut pending = self.0.lock();
        pending.write();
        pending.file = Some(file);
    }

    /// Queues whole lines.
    pub(crate) fn append(&self, lines: &[u8]) {
        let mut pending = self.0.lock();
        if pending.file.is_none() {
            return;
        }
        pending.lines.extend_from_slice(lines);
        if pending.due.is_none() {
            pending.due = Some(clock::now() + WRITE_DELAY);
            self.0.changed.notify_one();
        }
        if !pending.has_thread {
            pending.has_thread = true;
            let shared = Arc::clone(&self.0);
            let writer = std::thread::Builder::new().name("transcript".into()).stack_size(128 * 1024);
            drop(writer.spawn(move || write_delayed(&shared)));
        }
    }

    /// Whether the last lines could not be written.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.lock().has_failed
    }

    /// Writes pending lines at once.
    pub(crate) fn flush(&self) {
        self.0.lock().write();
    }
}

fn write_delayed(shared: &Shared) {
    let mut pending = shared.lock();
    loop {
        let left = pending.due.map(|due| due.saturating_duration_since(clock::now()));
        pending = match left {
            None => shared.changed.wait(pending).unwrap_or_else(PoisonError::into_inner),
            Some(Duration::ZERO) => {
                pending.write();
                pending
            }
            Some(left) => {
                let waited = shared.changed.wait_timeout(pending, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
}

impl Pending {
    /// Like claude, it does not report a full disk or an unwritable folder.
    fn write(&mut self) {
        self.due = None;
        let lines = std::mem::take(&mut self.lines);
        let Some(file) = &self.file else { return };
        if lines.is_empty() {
            return;
        }
        let made = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = made.and_then(|()| {
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
            file.write_all(&lines)
        });
        self.has_failed = written.is_err();
    }
}
