//! Standard output and standard error: one `write(2)` per line.

use std::fs::File;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

use crate::json::{self, Object};

/// Maximum capacity that a buffer keeps after a line: one answer of 100 MB must not stay in memory.
const KEPT_BUFFER: usize = 256 * 1024;

/// Standard output, with a reused buffer.
pub(crate) struct Output {
    buffer: Vec<u8>,
}

impl Output {
    pub(crate) fn new() -> Self {
        Self { buffer: Vec::with_capacity(8 * 1024) }
    }

    /// Writes one object as a line.
    pub(crate) fn line(&mut self, fill: impl FnOnce(&mut Object<'_>)) {
        self.buffer.clear();
        json::object(&mut self.buffer, fill);
        self.buffer.push(b'\n');
        write_all(rustix::stdio::stdout(), &self.buffer);
        if self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = Vec::new();
        }
    }

    /// Writes raw bytes: deltas, and faults that are no lines.
    #[expect(clippy::unused_self, reason = "only the owner of the output may write")]
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        write_all(rustix::stdio::stdout(), bytes);
    }

    /// Closes standard output while the process continues to run.
    #[expect(clippy::unused_self, reason = "only the owner of the output may close it")]
    pub(crate) fn close(&mut self) {
        if let Ok(null) = File::options().write(true).open("/dev/null")
            && rustix::stdio::dup2_stdout(&null).is_err()
        {
            write_error("Error: cannot close the standard output");
        }
    }
}

/// Writes one line to standard error.
pub(crate) fn write_error(text: &str) {
    write_all(rustix::stdio::stderr(), format!("{text}\n").as_bytes());
}

/// Writes all bytes, also to a non-blocking descriptor. Like claude, it ignores a closed pipe and continues until the
/// end of input.
pub(crate) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(fd, PollFlags::OUT),
            Err(_) => return,
        }
    }
}

/// Waits until a non-blocking descriptor is ready.
pub(crate) fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags) {
    let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
    // After a failed poll(2) the caller tries again.
    poll(&mut fds, None).ok();
}
