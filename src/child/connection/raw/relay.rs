//! Lines between a client and its child, until one of them has ended.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::seen::Seen;
use super::{LINES_IN_FLIGHT, Phase, RawClient, RawInput, RawOutput, RawStops, Relay};
use crate::adapter::{self, FromChild, FromClient, Gate};
use crate::child::connection::pipes::{PipeIo, Read};
use crate::child::event::ChildEvent;
use crate::child::exit::{ChildExit, Exit, ExitCause, OomKills};
use crate::child::framing::Framed;
use crate::child::permissions::Permissions;
use crate::child::spawn::ShimHandle;
use crate::child::stderr::Tail;
use crate::child::task::UNKILLABLE;
use crate::telemetry::metrics::{ProtocolError, Stream};

/// Maximum time to read the rest of the output after the exit.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// Offset of a signal in the exit code of a process that it ended, as shells have it.
const SIGNAL_CODE: i32 = 128;

impl Relay {
    pub(super) async fn relay(
        &mut self,
        client: RawClient,
        mut shim: ShimHandle,
        stderr: pipe::Receiver,
        oom_kills: &OomKills,
        stops: RawStops,
    ) -> ChildExit {
        let RawClient { mut gate, mut input, output, idle_timeout } = client;
        let mut tail = Tail::new(self.context.config.session.stderr_tail, self.context.secrets.clone());
        let mut stderr = Some(stderr);
        self.until = Instant::now() + idle_timeout;
        let exit = loop {
            let (is_gone, is_open) = (output.is_closed(), self.phase == Phase::Open);
            if is_gone {
                self.pending.clear();
            }
            let may_read = self.pending.is_empty();
            let takes_input = is_open && may_read && self.pipes.outbox.lines.is_empty();
            let stalls_at = self.pipes.outbox.deadline.unwrap_or(self.until);
            let wakes_at = if is_open { self.until.min(stalls_at) } else { self.until };
            tokio::select! {
                exit = shim.exited() => break Some(exit),
                permit = output.reserve(), if !may_read => {
                    if let (Ok(permit), Some(next)) = (permit, self.pending.pop_front()) {
                        permit.send(next);
                        self.moved(idle_timeout);
                    }
                }
                read = poll_fn(|context| poll_pipes(&mut self.pipes, may_read, context)) => {
                    if read == Some(Read::Bytes) {
                        self.take_lines(&gate);
                        self.moved(idle_timeout);
                        self.leave_if_idle();
                    }
                    if read == Some(Read::End) {
                        self.pipes.end_output();
                    }
                }
                line = input.recv(), if takes_input => {
                    self.take_input(&mut gate, line);
                    self.moved(idle_timeout);
                }
                () = output.closed(), if matches!(self.phase, Phase::Open | Phase::Ended) => self.stop(None),
                () = stops.now.cancelled(), if self.stop_began.is_none() => {
                    self.stop(Some("the server ended the session's child"));
                }
                () = stops.after_turn.cancelled(), if !self.leaves => {
                    self.leaves = true;
                    self.leave_if_idle();
                }
                open = read_stderr(&mut tail, stderr.as_mut()), if stderr.is_some() => {
                    if !open {
                        stderr = None;
                    }
                }
                () = sleep_until(wakes_at) => {
                    if self.phase == Phase::Killed {
                        break None;
                    }
                    self.on_time(&shim);
                }
            }
        };
        if exit.is_some() {
            self.last_output(&gate).await;
        }
        if let Some(pipe) = &stderr {
            tail.drain(pipe);
        }
        self.context.metrics.stream_bytes.add(Stream::Stderr, tail.take_new());
        self.pipes.count();
        if self.journal.is_on() {
            self.context.events.on_child_event(ChildEvent::Journal(self.journal.take()));
        }
        let sweep = timeout(UNKILLABLE, shim.gone()).await.ok();
        let forced = self.phase == Phase::Killed;
        self.say_goodbye(&output, exit, tail.text()).await;
        ChildExit {
            cause: ExitCause::classify(exit.unwrap_or(Exit::Unknown), forced, oom_kills),
            ready: true,
            // Its end is that of the client's connection, and no reason for another start.
            requested: true,
            forced,
            stop_began: self.stop_began,
            stderr: tail.text(),
            sweep,
            ..ChildExit::default()
        }
    }

    /// Sends what is left, within the time for one write.
    async fn say_goodbye(&mut self, output: &mpsc::Sender<RawOutput>, exit: Option<Exit>, stderr: String) {
        if exit == Some(Exit::Fenced) {
            self.reason.get_or_insert("this node has lost its contact to the cluster");
        }
        self.pending.extend(self.reason.map(|reason| RawOutput::Note(reason.to_owned())));
        let code = match exit {
            _ if self.reason.is_some() => 1,
            Some(Exit::Code(code)) => code,
            Some(Exit::Signal(signal)) => SIGNAL_CODE + signal,
            Some(Exit::Fenced | Exit::Unknown) | None => 1,
        };
        self.pending.push_back(RawOutput::Exit { code, stderr });
        let pending = std::mem::take(&mut self.pending);
        let sent = async {
            for next in pending {
                if output.send(next).await.is_err() {
                    return;
                }
            }
        };
        timeout(self.context.config.session.write_timeout, sent).await.ok();
    }

    async fn last_output(&mut self, gate: &Gate) {
        let deadline = Instant::now() + LAST_OUTPUT;
        while !self.pipes.ended && self.pending.len() <= LINES_IN_FLIGHT {
            let read = poll_fn(|context| self.pipes.poll_read(true, context));
            match tokio::time::timeout_at(deadline, read).await {
                Ok(Read::Bytes) => self.take_lines(gate),
                Ok(Read::End) | Err(_) => return,
            }
        }
    }

    /// A line has moved: the time without one begins again.
    fn moved(&mut self, idle_timeout: Duration) {
        if self.phase == Phase::Open {
            self.until = Instant::now() + idle_timeout;
        }
    }

    pub(super) fn enter(&mut self, phase: Phase, within: Duration) {
        (self.phase, self.until) = (phase, Instant::now() + within);
    }

    pub(super) fn write(&mut self, line: Bytes) {
        if !self.pipes.outbox.push(line, Instant::now()) {
            self.stop(Some("the child reads nothing"));
        }
    }

    // ---- The client ----

    fn take_input(&mut self, gate: &mut Gate, input: Option<RawInput>) {
        let line = match input {
            Some(RawInput::Line(line)) => line,
            Some(RawInput::End) => {
                // The child finishes what it is at, and exits by itself.
                self.pipes.close_input().ok();
                return self.enter(Phase::Ended, self.context.config.session.turn_timeout);
            }
            None => return self.stop(None),
        };
        match gate.judge_client(&line) {
            FromClient::Pass { lines, is_message } => {
                if is_message && let Some(message) = lines.last() {
                    self.busy = true;
                    self.journal.prompt(message);
                }
                lines.into_iter().for_each(|line| self.write(line));
            }
            FromClient::Reply(reply) => self.pending.push_back(RawOutput::Line(reply)),
            FromClient::Drop => {}
            FromClient::Broken(why) => self.stop(Some(why)),
        }
    }

    // ---- The child ----

    fn take_lines(&mut self, gate: &Gate) {
        let mut permissions = Vec::new();
        let mut is_too_long = false;
        while let Some(framed) = self.pipes.framer.next_line() {
            let Framed::Line(line) = framed else {
                is_too_long = true;
                continue;
            };
            match gate.judge_child(line) {
                FromChild::Pass => {
                    self.pending.push_back(RawOutput::Line([line, b"\n"].concat().into()));
                }
                FromChild::Drop => {}
                FromChild::Permission(request) => permissions.push(request),
            }
            let seen = Seen {
                context: &self.context,
                journal: &mut self.journal,
                spending: &mut self.spending,
                checkpoint: &mut self.checkpoint,
            };
            self.busy &= !seen.note(line);
        }
        self.pipes.settle_read(self.busy);
        for request in permissions {
            let decision = Permissions::standing(gate.policy(), request.kind);
            self.write(adapter::permission_response(&request, &decision).into());
        }
        if is_too_long {
            self.context.metrics.protocol_errors.increment(ProtocolError::LineTooLong);
            self.stop(Some("the child wrote a line that is longer than session.line_limit"));
        }
        if self.phase == Phase::Interrupted && !self.busy {
            self.close_input();
        }
    }
}

/// Writes what waits, and reads if `may_read`. `None`: something was written.
fn poll_pipes(pipes: &mut PipeIo, may_read: bool, context: &mut Context<'_>) -> Poll<Option<Read>> {
    let written = pipes.poll_write(Instant::now(), context);
    if may_read
        && !pipes.ended
        && let Poll::Ready(read) = pipes.poll_read(true, context)
    {
        return Poll::Ready(Some(read));
    }
    written.map(|()| None)
}

async fn read_stderr(tail: &mut Tail, pipe: Option<&mut pipe::Receiver>) -> bool {
    match pipe {
        Some(pipe) => tail.read(pipe).await,
        None => std::future::pending().await,
    }
}
