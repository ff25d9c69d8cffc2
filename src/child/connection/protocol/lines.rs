//! The lines of the child: judged one by one, kept for the reader or acted upon.

use tokio::time::{Duration, Instant};

use super::{Action, Ending, HANDSHAKE, Measurement, PING, Phase, Protocol, SERVERS};
use crate::adapter::{self, ControlResponse, HostRequest, LineKind, Notice, Terminal};
use crate::child::event::ChildEvent;
use crate::child::exit::KillReason;
use crate::child::permissions::Permissions;
use crate::child::running_turn::RunningTurn;
use crate::config::PermissionPolicy;
use crate::error::{Loss, TurnError};
use crate::telemetry::metrics::{ModelClass, ProtocolError, Stream};

/// The CLI tries some transports one after the other, each for the time that a server has to connect.
pub(super) const CONNECT_TRIES: u32 = 2;

/// Time for a child that closed its output to exit.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::child::connection) enum Fate {
    /// The turn's reader gets the line.
    Keep,
    Drop,
}

/// Lines that need no judgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::child::connection) enum PassedOn {
    Nothing,
    /// Pieces of the blocks of the model's answer.
    Deltas,
    /// All lines of the model's answer.
    Answer,
}

impl PassedOn {
    pub(in crate::child::connection) fn has(self, line: &[u8]) -> bool {
        // The most frequent case comes first, and is one comparison.
        self != Self::Nothing
            && adapter::is_streamed(line)
            && (self == Self::Answer || adapter::is_block_delta(line))
    }
}

impl Protocol {
    pub(in crate::child::connection) fn on_output(&mut self, now: Instant) {
        self.hears(now);
        if let Some(running) = &mut self.running {
            running.watchdog.sign_of_life(now);
        }
    }

    /// The lines that are for the reader and have no other effect, because the turn has brought output before.
    /// [`Protocol::on_line`] comes to the same.
    pub(in crate::child::connection) fn passed_on(&self) -> PassedOn {
        let running = self.running.as_ref();
        let is_read = running.is_some_and(|it| it.produced && it.job.sender.is_some() && !it.is_withheld());
        // The message of an open call counts as complete when it is silent: each of its lines is heard.
        if !is_read || self.calls.are_open() {
            PassedOn::Nothing
        } else if self.calls.are_possible() {
            // The end of a message with calls is a line of the answer.
            PassedOn::Deltas
        } else {
            PassedOn::Answer
        }
    }

    /// Takes in one line, without its line end.
    pub(in crate::child::connection) fn on_line(&mut self, line: &[u8], now: Instant) -> Fate {
        self.take_line(line, now).unwrap_or_else(|| {
            self.measure(Measurement::ProtocolError(ProtocolError::BadJson));
            Fate::Drop
        })
    }

    /// `None`: it is malformed.
    fn take_line(&mut self, line: &[u8], now: Instant) -> Option<Fate> {
        // Without a turn a line goes to nobody: never to the next one.
        let fate = if self.has_reader() { Fate::Keep } else { Fate::Drop };
        match adapter::classify(line) {
            LineKind::Message { substantial, checkpoint } => {
                let checkpoint = if checkpoint { adapter::checkpoint(line) } else { None };
                self.saw(substantial, checkpoint.clone(), now);
                if let Some(id) = checkpoint {
                    self.note_tools(line);
                    self.journal.own(&id, line);
                    self.keep_early();
                }
                self.note_calls(line, now);
            }
            LineKind::Mirror => {
                if adapter::mirrors_conversation(line) {
                    self.measure(Measurement::Mirrored);
                    self.journal.mirrored(line);
                    self.keep_early();
                }
                return Some(Fate::Drop);
            }
            LineKind::Notice(notice) => {
                self.measure(Measurement::Notice(notice));
                self.saw(notice != Notice::ShuttingDown, None, now);
                if notice == Notice::ShuttingDown {
                    self.leave(now);
                }
            }
            LineKind::Announcement => {
                self.steer_begins_turn(now);
                self.announced(line);
            }
            LineKind::Terminal => return Some(self.terminal(Box::new(adapter::terminal(line)?), fate, now)),
            LineKind::ControlResponse => {
                let answer = adapter::control_response(line)?;
                self.report_context(&answer, line);
                self.report_servers(&answer, line);
                self.withdrawn(&answer.request_id, line, now);
                self.answered(&answer, now);
                return Some(Fate::Drop);
            }
            LineKind::HostRequest => return Some(self.host_request(adapter::host_request(line)?, fate, now)),
            LineKind::Cancelled => {
                let id = adapter::cancelled_request(line)?;
                if self.calls.withdraw(&id) {
                    return Some(Fate::Drop);
                }
                if self.permissions.withdraw(&id) {
                    self.emit_permissions();
                }
            }
            LineKind::Task => {
                self.saw(true, None, now);
                // Switched off, a task is a tool that takes long: its turn is what counts.
                if self.config.cli.background_tasks
                    && let Some(task) = adapter::task(line)
                {
                    self.own_work.tasks.note(task, now);
                    self.act(Action::Rearm);
                    self.emit_activity();
                }
            }
            LineKind::Echo => {
                let mark = self.running.as_ref().and_then(|running| running.mark.as_deref());
                if mark.is_some() && mark == adapter::echo(line).as_deref() {
                    self.claim(now);
                    return Some(Fate::Drop);
                }
            }
            LineKind::Working => {
                self.working();
                return Some(Fate::Drop);
            }
            LineKind::Waiting => {
                self.waiting(now);
                return Some(Fate::Drop);
            }
            LineKind::Malformed => return None,
        }
        Some(fate)
    }

    pub(in crate::child::connection) fn on_oversized_line(&mut self, now: Instant) {
        self.measure(Measurement::ProtocolError(ProtocolError::LineTooLong));
        self.measure(Measurement::Truncated(Stream::Stdout));
        let limit = self.config.session.line_limit;
        self.cancel_running(TurnError::LineTooLong { limit }, now);
    }

    /// The lines that are withheld exceed the limit of one line.
    pub(in crate::child::connection) fn on_withheld_overflow(&mut self, now: Instant) {
        let limit = self.config.session.line_limit;
        let cause = format!(
            "the CLI wrote more than {limit} bytes (session.line_limit) that may belong to a turn of its own"
        );
        self.cancel_running(TurnError::SessionLost(Loss { cause, stderr: String::new() }), now);
    }

    /// The output has ended, in the middle of a line if `partial`.
    pub(in crate::child::connection) fn on_output_end(&mut self, partial: bool, now: Instant) {
        if partial {
            self.measure(Measurement::ProtocolError(ProtocolError::PartialEof));
        }
        if !self.is_ending() {
            self.enter(Phase::Closed, Some(now + CLOSE_GRACE));
        }
    }

    fn saw(&mut self, substantial: bool, checkpoint: Option<String>, now: Instant) {
        self.act_on_turn(now, |running| running.saw(substantial, checkpoint));
    }

    /// Changes the running turn. If that brings its first output, its message is of no more use but for the journal.
    fn act_on_turn(&mut self, now: Instant, change: impl FnOnce(&mut RunningTurn) -> bool) {
        let Some(running) = &mut self.running else { return };
        let prompt = (self.journal.is_on() && !running.produced && !running.goes_on)
            .then(|| (running.job.line.clone(), running.mark.clone()));
        if !change(running) {
            return;
        }
        match prompt {
            Some((line, Some(mark))) => self.journal.prompt(&adapter::with_message_id(&line, &mark)),
            Some((line, None)) => self.journal.prompt(&line),
            None => {}
        }
        self.first_output(now);
    }

    /// Hands over what the journal is to keep, if it has become much.
    fn keep_early(&mut self) {
        if self.journal.are_many() {
            let records = self.journal.take();
            self.emit(ChildEvent::Journal(records));
        }
    }

    fn first_output(&mut self, now: Instant) {
        if let Some(running) = &self.running {
            let job = &running.job;
            let first = Measurement::FirstOutput(job.start, now - job.accepted, job.trace.clone());
            self.measure(first);
        }
    }

    fn announced(&mut self, line: &[u8]) {
        if !std::mem::replace(&mut self.spending.announced, true)
            && let Some(model) = adapter::announced_model(line)
        {
            self.emit(ChildEvent::Model(model));
        }
        // A turn that is not the CLI's own begins.
        if !self.own_work.tasks.owes()
            && let Some(running) = &mut self.running
        {
            running.begins();
        }
    }

    /// The withheld lines belong to the running turn.
    fn claim(&mut self, now: Instant) {
        self.act_on_turn(now, RunningTurn::claim);
    }

    /// The withheld lines do not belong to the running turn.
    fn disclaim(&mut self) {
        if let Some(running) = self.running.as_mut().filter(|running| running.is_withheld()) {
            running.disclaim();
            self.act(Action::Discard);
        }
    }

    fn terminal(&mut self, terminal: Box<Terminal>, fate: Fate, now: Instant) -> Fate {
        if !self.handshake.complete {
            self.handshake.terminal = Some(terminal);
            return Fate::Drop;
        }
        let (cost_usd, is_plausible) = self.spending.cost_of(&terminal);
        if !is_plausible {
            self.measure(Measurement::ProtocolError(ProtocolError::ImplausibleUsage));
        }
        let model = ModelClass::of(self.spending.model.as_deref());
        self.measure(Measurement::Spent(model, terminal.usage, cost_usd));
        if self.wait_over(cost_usd, now) {
            return Fate::Drop;
        }
        if terminal.unsolicited {
            // A turn of the CLI's own answers nobody.
            self.disclaim();
            self.own_work.tasks.served();
            self.act(Action::Rearm);
            let records = self.journal.take();
            self.emit(ChildEvent::Journal(records));
            self.emit(ChildEvent::OwnTurn { cost_usd });
            self.emit_activity();
            return Fate::Drop;
        }
        self.claim(now);
        if let Some(running) = self.running.take() {
            self.settle_steers(now);
            self.turn_over(running, Ending::Answered(terminal, cost_usd), now);
        }
        fate
    }

    fn working(&mut self) {
        self.works_unsettled();
        self.own_work.tasks.works();
        match &mut self.running {
            Some(running) => running.working = true,
            None => {
                self.own_work.active = true;
                self.emit_activity();
            }
        }
    }

    /// The CLI waits for input. A turn that had begun and not ended has no end of its own.
    fn waiting(&mut self, now: Instant) {
        self.own_work.active = self.rests_unsettled();
        self.own_work.tasks.waits(now);
        self.act(Action::Rearm);
        self.emit_activity();
        if let Some(running) = self.running.take_if(|running| running.working) {
            self.measure(Measurement::ProtocolError(ProtocolError::UnknownId));
            let cause = "the CLI ended the turn without a result".to_owned();
            let loss = TurnError::SessionLost(Loss { cause, stderr: String::new() });
            self.withdraw_steers();
            self.steering.give_up();
            self.turn_over(running, Ending::Lost(loss), now);
        }
        if !self.own_work.active {
            self.begin_held(now);
        }
    }

    /// Reports whether the child works of its own accord, if that has changed.
    pub(super) fn emit_activity(&mut self) {
        let active = self.own_work.active || self.own_work.tasks.any();
        if std::mem::replace(&mut self.own_work.reported, active) != active {
            self.emit(ChildEvent::Active(active));
        }
    }

    fn answered(&mut self, answer: &ControlResponse, now: Instant) {
        let id = answer.request_id.as_str();
        if self.phase == Phase::Opening {
            match id {
                HANDSHAKE => {
                    self.handshake.answered = true;
                    self.emit(ChildEvent::Greeted);
                }
                SERVERS if answer.error.is_some() => {
                    return self.declare_dead(KillReason::Protocol("it did not take its MCP servers"), now);
                }
                SERVERS => self.handshake.connecting = false,
                _ => {}
            }
            self.opened(now);
        } else if id.starts_with(PING)
            && let Some(sent) = self.running.as_mut().and_then(|running| running.pinged.take())
        {
            self.measure(Measurement::Ping(now - sent));
        }
    }

    /// An answer about the use of the context goes to who asked.
    fn report_context(&mut self, answer: &ControlResponse, line: &[u8]) {
        let asked = self.context_asked.iter().position(|(id, _)| *id == answer.request_id);
        if let Some(at) = asked {
            let (_, asker) = self.context_asked.swap_remove(at);
            // Refused: the question is dropped.
            adapter::context_usage(line).and_then(|usage| asker.send(usage).err());
        }
    }

    /// The child is ready, or may take its time to connect to its MCP servers.
    fn opened(&mut self, now: Instant) {
        if !self.handshake.answered {
            return;
        }
        if self.handshake.connecting {
            let tries = CONNECT_TRIES * self.config.mcp.connect_timeout;
            self.enter(Phase::Opening, Some(now + tries + self.config.session.spawn_timeout));
        } else {
            self.handshake.complete = true;
            self.enter(Phase::Serving, None);
            self.emit(ChildEvent::Ready);
        }
    }

    fn host_request(&mut self, request: HostRequest, fate: Fate, now: Instant) -> Fate {
        match request {
            HostRequest::Unsupported { request_id, what } => {
                self.write(adapter::unsupported_response(&request_id, &what));
                Fate::Drop
            }
            HostRequest::Tools { request_id, message_id, asked } => {
                self.tools_asked(request_id, message_id, asked, now);
                Fate::Drop
            }
            HostRequest::Permission(request) => match self.policy {
                PermissionPolicy::Ask
                    if self.permissions.have_room(request.kind)
                        && self.has_reader()
                        && !self.is_withheld() =>
                {
                    self.permissions.ask(request, now, (self.wall_clock)());
                    self.emit_permissions();
                    fate
                }
                policy => {
                    let decision = Permissions::standing(policy, request.kind);
                    self.write(adapter::permission_response(&request, &decision));
                    Fate::Drop
                }
            },
        }
    }
}
