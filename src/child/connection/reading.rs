//! Reading: by the reader of the running turn while it holds the lease, else by the child's task.

use std::pin::pin;
use std::task::{Context, Poll, ready};

use tokio::time::Instant;

use super::Connection;
use super::pipes::Read;
use super::protocol::Fate;
use crate::child::framing::Framed;
use crate::model::ids::TurnId;
use crate::telemetry::metrics::ProtocolError;
use crate::turn::Pulled;

/// Reads of an idle pipe before a turn: together what a pipe holds. More came after the question.
const READS_TO_CATCH_UP: usize = 16;

impl Connection {
    // ---- The reader ----

    /// Reads for the reader of `turn`, if that turn runs.
    pub(super) fn poll_for_reader(&mut self, turn: TurnId, context: &mut Context<'_>) -> Poll<Pulled> {
        if self.protocol.over || !self.protocol.is_read_by(turn) {
            return Poll::Pending;
        }
        if self.handoff.take_put() {
            return Poll::Ready(Pulled::Channel);
        }
        let now = Instant::now();
        self.handoff.begin_poll(now);
        let pulled = self.pull(turn, now, context);
        self.handoff.end_poll();
        self.settle(now);
        pulled
    }

    fn pull(&mut self, turn: TurnId, now: Instant, context: &mut Context<'_>) -> Poll<Pulled> {
        // One read of lines that are not for the reader before others get their turn: it may hold thousands of them.
        for has_read in [false, true] {
            if self.for_reader() > 0 {
                return Poll::Ready(Pulled::Lines(self.pipes.framer.take()));
            }
            if !self.protocol.is_read_by(turn) {
                // It has ended just now.
                return Poll::Ready(Pulled::Channel);
            }
            if self.pipes.ended {
                return Poll::Pending;
            }
            if !has_read {
                ready!(self.poll_read(now, context));
            }
        }
        // More is there. Not woken at once: a task that is always ready delays the runtime's look for other
        // input, and each of its reads may take long.
        let later = pin!(tokio::task::yield_now());
        later.poll(context).map(|()| Pulled::Channel)
    }

    pub(super) fn for_reader(&self) -> usize {
        if self.protocol.is_withheld() { 0 } else { self.pipes.framer.kept() }
    }

    fn poll_read(&mut self, now: Instant, context: &mut Context<'_>) -> Poll<()> {
        let in_turn = self.protocol.running.is_some();
        match ready!(self.pipes.poll_read(in_turn, context)) {
            Read::Bytes => self.take_lines(now),
            Read::End => self.end_output(now),
        }
        Poll::Ready(())
    }

    /// Takes in what has come while no turn ran.
    pub(super) fn catch_up(&mut self, now: Instant) {
        for _ in 0..READS_TO_CATCH_UP {
            if self.pipes.ended {
                return;
            }
            match self.pipes.try_read() {
                Some(Read::Bytes) => self.take_lines(now),
                Some(Read::End) => self.end_output(now),
                None => return,
            }
        }
    }

    fn take_lines(&mut self, now: Instant) {
        let limit = self.context.config.session.line_limit;
        self.protocol.on_output(now);
        let mut passed_on = self.protocol.passed_on();
        while let Some(framed) = self.pipes.framer.next_line() {
            // Most lines: nothing follows from them but that the reader gets them.
            if matches!(framed, Framed::Line(line) if passed_on.has(line)) {
                self.pipes.framer.keep();
                continue;
            }
            match framed {
                Framed::Line(line) => {
                    if self.protocol.on_line(line, now) == Fate::Keep {
                        self.pipes.framer.keep();
                        if self.protocol.is_withheld() && self.pipes.framer.kept() > limit {
                            self.protocol.on_withheld_overflow(now);
                        }
                    }
                }
                Framed::TooLong { .. } => self.protocol.on_oversized_line(now),
            }
            self.carry_out_all(now);
            passed_on = self.protocol.passed_on();
        }
        self.pipes.settle_read(self.protocol.running.is_some());
    }

    fn end_output(&mut self, now: Instant) {
        let partial = self.pipes.end_output();
        self.order(now, |protocol, now| protocol.on_output_end(partial, now));
    }

    // ---- The child's task ----

    /// Reads, and puts what is the reader's into its channel. Pending while the reader reads itself, or has no room.
    pub(super) fn poll_read_for_task(&mut self, now: Instant, context: &mut Context<'_>) -> Poll<()> {
        if !self.handoff.task_may_read(now) || self.pipes.ended || self.for_reader() > 0 {
            return Poll::Pending;
        }
        ready!(self.poll_read(now, context));
        self.put_lines();
        Poll::Ready(())
    }

    /// Puts the kept lines into the reader's channel, if there is room. Else nothing more is read before the reader polls.
    fn put_lines(&mut self) {
        let kept = self.for_reader();
        if kept == 0 {
            return;
        }
        match self.protocol.running.as_ref().and_then(|running| running.job.sender.as_ref()) {
            Some(sender) if sender.has_room(kept) => {
                let waiting = sender.put(self.pipes.framer.take());
                self.handoff.put(waiting);
            }
            Some(_) => {}
            None => drop(self.pipes.framer.take()),
        }
    }

    /// One read of what is left after the exit; kept for the reader. Ready with false at the end, or when it is more
    /// than the pipe can have held: then another process writes there.
    pub(in crate::child) fn poll_last(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let session = &self.context.config.session;
        if self.pipes.framer.kept() > session.event_buffer_bytes.saturating_add(session.line_limit) {
            return Poll::Ready(false);
        }
        if !self.pipes.ended {
            ready!(self.poll_read(Instant::now(), context));
        }
        Poll::Ready(!self.pipes.ended)
    }

    /// Nothing more is read. A part of a line is not kept.
    pub(in crate::child) fn close_output(&mut self) {
        if self.pipes.end_output() {
            self.context.metrics.protocol_errors.increment(ProtocolError::PartialEof);
        }
    }
}
