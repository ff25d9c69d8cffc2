//! The pipes of one child: output cut into lines, input written as far as the pipe takes it.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::{UnixStream, unix::pipe};
use tokio::time::{Duration, Instant};
use tokio_util::io::poll_read_buf;

use super::protocol::ABSENT;
use crate::child::framing::Framer;
use crate::telemetry::metrics::{Metrics, Stream};

/// Bytes of one read while no turn runs. On the stack of a function that does not wait.
const IDLE_READ: usize = 4096;

/// Bytes of a turn that are counted together: the counter is shared by all children, too slow for each line.
const COUNTED_AT_ONCE: u64 = 256 << 10;

/// Lines that may wait to be written: a turn, pings, answers. A child that asks its host for more and reads so little
/// breaks the protocol.
const MAX_UNWRITTEN: usize = 256;

pub(super) struct PipeIo {
    input: UnixStream,
    output: pipe::Receiver,
    pub(super) framer: Framer,
    pub(super) outbox: Outbox,
    metrics: Arc<Metrics>,
    pub(super) ended: bool,
    /// Bytes that came and were not counted yet.
    uncounted: u64,
}

#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) lines: VecDeque<Bytes>,
    /// When the next byte has to be taken.
    pub(super) deadline: Option<Instant>,
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    Bytes,
    End,
}

impl PipeIo {
    pub(super) fn new(
        (input, output): (UnixStream, pipe::Receiver),
        line_limit: usize,
        write_timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let outbox = Outbox { lines: VecDeque::new(), deadline: None, timeout: write_timeout };
        Self { input, output, framer: Framer::new(line_limit), outbox, metrics, ended: false, uncounted: 0 }
    }

    // ---- Output ----

    pub(super) fn poll_read(&mut self, in_turn: bool, context: &mut Context<'_>) -> Poll<Read> {
        let read = if in_turn {
            poll_read_buf(Pin::new(&mut self.output), context, self.framer.buffer())
        } else {
            self.poll_read_idle(context)
        };
        match ready!(read) {
            Ok(length) if length > 0 => {
                self.uncounted += length as u64;
                Poll::Ready(Read::Bytes)
            }
            // An error means that the runtime is going away: nothing more will come.
            _ => Poll::Ready(Read::End),
        }
    }

    /// One read when nothing is expected: an idle session holds no buffer while it waits.
    fn poll_read_idle(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut block = [MaybeUninit::<u8>::uninit(); IDLE_READ];
        let mut read = ReadBuf::uninit(&mut block);
        ready!(Pin::new(&mut self.output).poll_read(context, &mut read))?;
        self.framer.buffer().extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// One read of what the pipe holds now. The pipe itself is asked: the runtime may not have noticed it yet.
    pub(super) fn try_read(&mut self) -> Option<Read> {
        let mut block = [MaybeUninit::<u8>::uninit(); IDLE_READ];
        match rustix::io::read(&self.output, &mut block) {
            Ok(([], _)) => Some(Read::End),
            Ok((read, _)) => {
                self.uncounted += read.len() as u64;
                self.framer.buffer().extend_from_slice(read);
                Some(Read::Bytes)
            }
            // Nothing more. Any error shows itself to the next read.
            Err(_) => None,
        }
    }

    pub(super) fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(&self.output).is_ok_and(|unread| unread > 0)
    }

    /// All lines of a read were taken: counts it, and gives memory back between turns.
    pub(super) fn settle_read(&mut self, in_turn: bool) {
        if !in_turn && self.framer.kept() == 0 {
            self.framer.release();
        }
        if !in_turn || self.uncounted >= COUNTED_AT_ONCE {
            self.count();
        }
    }

    pub(super) fn count(&mut self) {
        self.metrics.stream_bytes.add(Stream::Stdout, std::mem::take(&mut self.uncounted));
    }

    /// Ends the output. Whether it ended in the middle of a line.
    pub(super) fn end_output(&mut self) -> bool {
        self.ended = true;
        self.framer.finish().is_some()
    }

    // ---- Input ----

    /// Writes what the pipe takes at once.
    pub(super) fn flush(&mut self, now: Instant) {
        while let Some(front) = self.outbox.lines.front() {
            match self.input.try_write(front) {
                Ok(length) if length > 0 => {
                    self.metrics.stream_bytes.add(Stream::Stdin, length as u64);
                    self.outbox.written(length, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The exit, or the end of the output, reveals more.
                _ => self.outbox.clear(),
            }
        }
    }

    /// Writes what waits; pending while the pipe is full, or with nothing to write.
    pub(super) fn poll_write(&mut self, now: Instant, context: &mut Context<'_>) -> Poll<()> {
        if self.outbox.lines.is_empty() {
            return Poll::Pending;
        }
        while !self.outbox.lines.is_empty() {
            if ready!(self.input.poll_write_ready(context)).is_err() {
                // The runtime is going away.
                self.outbox.clear();
            }
            self.flush(now);
        }
        Poll::Ready(())
    }

    /// Closes the child's input. What was not written is dropped.
    pub(super) fn close_input(&mut self) -> io::Result<()> {
        self.outbox.clear();
        Ok(rustix::net::shutdown(&self.input, rustix::net::Shutdown::Write)?)
    }
}

impl Outbox {
    /// Queues a line; false if too many wait already.
    pub(super) fn push(&mut self, line: Bytes, now: Instant) -> bool {
        if self.lines.is_empty() {
            self.deadline = Some(now + self.timeout);
        }
        let has_room = self.lines.len() < MAX_UNWRITTEN;
        if has_room {
            self.lines.push_back(line);
        }
        has_room
    }

    fn written(&mut self, length: usize, now: Instant) {
        if let Some(front) = self.lines.front_mut() {
            front.advance(length.min(front.remaining()));
            if !front.has_remaining() {
                self.lines.pop_front();
            }
        }
        self.deadline = (!self.lines.is_empty()).then(|| now + self.timeout);
    }

    fn clear(&mut self) {
        self.lines.clear();
        self.deadline = None;
    }

    /// Whether the child takes nothing. A deadline that was noticed late is no evidence: it begins again.
    pub(super) fn is_stalled(&mut self, now: Instant) -> bool {
        match self.deadline {
            Some(deadline) if deadline + ABSENT <= now => {
                self.deadline = Some(now + self.timeout);
                false
            }
            deadline => deadline.is_some_and(|deadline| deadline <= now),
        }
    }
}

#[cfg(test)]
mod tests;
