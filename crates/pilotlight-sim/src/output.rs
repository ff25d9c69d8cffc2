//! Standard output and standard error: one `write(2)` for a line, no matter how many follow.

use std::fs::File;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

use super::json::{self, Object};

/// Buffers above this are given back after the line: one 100 MB answer must not stay in memory.
const KEPT_BUFFER: usize = 256 * 1024;

/// The standard output, with a buffer that is used again for each line.
pub(crate) struct Output {
    buffer: Vec<u8>,
}

impl Output {
    pub(crate) fn new() -> Self {
        Self { buffer: Vec::with_capacity(8 * 1024) }
    }

    /// Writes one object as one line.
    pub(crate) fn line(&mut self, fill: impl FnOnce(&mut Object<'_>)) {
        self.buffer.clear();
        json::object(&mut self.buffer, fill);
        self.buffer.push(b'\n');
        write_all(rustix::stdio::stdout(), &self.buffer);
        if self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = Vec::new();
        }
    }

    /// Writes bytes as they are: the fast path of deltas, and faults that are no lines at all.
    #[expect(clippy::unused_self, reason = "whoever writes must hold the output")]
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        write_all(rustix::stdio::stdout(), bytes);
    }

    /// Gives the standard output up; the host sees its end while the process lives on.
    #[expect(clippy::unused_self, reason = "whoever closes it must hold the output")]
    pub(crate) fn close(&mut self) {
        if let Ok(null) = File::options().write(true).open("/dev/null")
            && rustix::stdio::dup2_stdout(&null).is_err()
        {
            complain("Error: cannot close the standard output");
        }
    }
}

/// One line on standard error.
pub(crate) fn complain(text: &str) {
    write_all(rustix::stdio::stderr(), format!("{text}\n").as_bytes());
}

/// Writes everything, also to a descriptor that the host made non-blocking. A closed pipe is no reason to die:
/// the real CLI goes on until its input ends.
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
    // A failed wait only means that the caller tries again.
    poll(&mut fds, None).ok();
}
