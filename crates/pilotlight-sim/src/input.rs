//! Reader thread of standard input.
//!
//! All lines of one `read(2)` form one batch, so an interrupt written together with a message always hits its turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::output::wait_for;

/// Maximum number of batches that wait for the main thread. Beyond it, the reader and then the host wait.
const WAITING_BATCHES: usize = 64;
/// Maximum length of a line. claude has no limit; this one protects the machine from a test without line feeds.
const MAX_LINE: usize = 512 * 1024 * 1024;
const READ_SIZE: usize = 64 * 1024;

/// An input of the main thread.
#[derive(Debug)]
pub(crate) enum Input {
    /// One line without its line feed.
    Line(Vec<u8>),
    /// The host closed standard input.
    Eof,
    /// SIGINT.
    Interrupt,
    /// The foreground tool with this pid has exited and waits to be reaped.
    ToolEnded(u32),
    /// The background task with this id has exited with this code.
    TaskEnded(String, i32),
}

/// Inputs that arrived together.
pub(crate) type Batch = Vec<Input>;

/// Channel from the other threads to the main thread.
pub(crate) fn channel() -> (SyncSender<Batch>, Receiver<Batch>) {
    sync_channel(WAITING_BATCHES)
}

/// Reads standard input until its end, or until `stopped` by a fault.
pub(crate) fn start_reader(inputs: SyncSender<Batch>, stopped: Arc<AtomicBool>) {
    let reader = move || {
        let stdin = rustix::stdio::stdin();
        let (mut buffer, mut partial) = (vec![0; READ_SIZE], Vec::new());
        while !stopped.load(Ordering::SeqCst) {
            // Waits with poll(2), as claude's event loop does: on a socket pair, a reader that sleeps in read(2) is woken by
            // every read at the other end.
            wait_for(stdin, PollFlags::IN);
            let batch = match rustix::io::read(stdin, &mut buffer) {
                Ok(0) => vec![Input::Eof],
                Ok(length) => split_lines(&mut partial, buffer.get(..length).unwrap_or_default()),
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(_) => vec![Input::Eof],
            };
            if stopped.load(Ordering::SeqCst) {
                // This read had started before the stop; its bytes must not count.
                return;
            }
            let ended = matches!(batch.last(), Some(Input::Eof)) || partial.len() > MAX_LINE;
            if (!batch.is_empty() && inputs.send(batch).is_err()) || ended {
                return;
            }
        }
    };
    drop(std::thread::Builder::new().name("input".into()).stack_size(256 * 1024).spawn(reader));
}

/// Splits input into lines; `partial` keeps the rest. A last line without a line feed is lost.
fn split_lines(partial: &mut Vec<u8>, piece: &[u8]) -> Batch {
    let mut batch = Vec::new();
    let mut rest = piece;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let (line, after) = rest.split_at(end);
        partial.extend_from_slice(line);
        batch.push(Input::Line(std::mem::take(partial)));
        rest = after.get(1..).unwrap_or_default();
    }
    partial.extend_from_slice(rest);
    batch
}

#[cfg(test)]
mod tests {
    use super::{Input, split_lines};

    #[test]
    fn lines_are_the_same_for_any_split() {
        let mut partial = Vec::new();
        let mut lines = Vec::new();
        for piece in [&b"ab"[..], b"c\n\nd", b"\n", b"e"] {
            for input in split_lines(&mut partial, piece) {
                let Input::Line(line) = input else { panic!("not a line") };
                lines.push(String::from_utf8(line).unwrap());
            }
        }
        assert_eq!(lines, ["abc", "", "d"]);
        assert_eq!(partial, b"e");
    }
}
