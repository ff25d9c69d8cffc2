//! The actor of one session: each message is an input to the pure [`Machine`], whose effects it carries out.
//!
//! It owns the session's record and the turns that wait. A task of its own drives the child
//! ([`super::lifecycle`]). No line of output passes this mailbox, and no handler waits for the child. The mailbox is
//! bounded: a turn needs a permit of the session's queue first, and the child's task sends a handful of messages per
//! turn.
//!
//! `submit`: turns on their way to the child. `start`: the start of a child. `on_event`: what its events change.
//! `persist`: the record's way to disk. `switch`: another conversation in the place of this one.

mod on_event;
mod persist;
mod servers;
mod start;
mod submit;
mod switch;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::persist::Due;
use self::start::ChildLink;
use self::switch::Switching;
use super::message::{SessionMessage, TurnSubmission};
use super::state::{Effect, Input, Machine, SettingsHash};
use super::status::{ActorView, Visible};
use super::store::{Record, SettingsRecord};
use super::{import::First, registry::Entry, sessions::Sessions, shelf::Reserved};
use crate::child::{Answer, AskServers, Job, KillReason, Steer};
use crate::error::TurnError;
use crate::model::ids::{SessionKey, TurnId};
use crate::model::{PermissionError, SessionState, SteerError};
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::{EvictionReason, RestartCause};
use crate::turn::SteerRights;
use crate::workspace::Workspace;

pub(crate) struct SessionActor;

pub(crate) struct SessionArgs {
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) workspace: Workspace,
    pub(crate) record: Record,
    /// Of a session that has just begun.
    pub(crate) spare: Option<Reserved>,
    pub(crate) key: SessionKey,
}

/// State of the actor.
pub(crate) struct SessionActorState {
    sessions: Arc<Sessions>,
    workspace: Workspace,
    entry: Arc<Entry>,
    machine: Machine,
    /// The state that the metrics count.
    counted: SessionState,
    /// The child had nothing to do after the last message.
    rests: bool,
    /// The child was to make room and did not, and nobody was asked instead.
    has_refused: bool,

    record: Record,
    /// Number of the last save.
    saves: u64,
    /// When the record is saved next, if it has changed.
    due: Option<Due>,
    /// The record is being written before the session leaves memory.
    retiring: bool,

    waiting: HashMap<TurnId, Box<TurnSubmission>>,
    /// Settings that turns asked for, by their hash.
    settings_by_hash: HashMap<SettingsHash, SettingsRecord>,
    /// How the turn whose history the child was started with is sent.
    first: Option<First>,
    /// The turn whose reader gets the context loss. Until it has ended the loss counts as unreported.
    reported_in: Option<TurnId>,
    /// A turn that the child did not take because it had ended; its end is about to be reported.
    undelivered: Option<Box<Job>>,
    /// The turn whose client speaks to the child itself.
    attached: Option<Box<Job>>,
    /// The last turn that was accepted, in the present conversation.
    last_turn: Option<TurnId>,

    child: Option<ChildLink>,
    /// For the first child.
    spare: Option<Reserved>,
    warm_waiters: Vec<oneshot::Sender<Result<(), TurnError>>>,
    gone_waiters: Vec<oneshot::Sender<()>>,
    /// Conversations that take the place of this one when the child has ended.
    switching: Vec<Switching>,
    eviction: Option<EvictionReason>,
    crashed_at: Option<Instant>,
    restart_cause: RestartCause,
}

impl Actor for SessionActor {
    type Msg = SessionMessage;
    type State = SessionActorState;
    type Arguments = SessionArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<SessionMessage>,
        args: SessionArgs,
    ) -> Result<SessionActorState, ActorProcessingErr> {
        // One may run, and `turn_queue` wait behind it.
        let turn_limit = args.sessions.env.config.session.turn_queue + 1;
        let entry = Entry::new(args.key, args.workspace.clone(), myself, turn_limit, &args.record);
        let entry = Arc::new(entry);
        args.sessions.registry.insert(entry.clone());
        args.sessions.env.telemetry.metrics.session_moved(None, Some(SessionState::Dormant));
        let settings_hash = args.record.settings.hash();
        Ok(SessionActorState {
            machine: Machine::new(args.record.generation(), settings_hash, has_context(&args.record)),
            counted: SessionState::Dormant,
            rests: false,
            has_refused: false,
            sessions: args.sessions,
            workspace: args.workspace,
            entry,
            record: args.record,
            saves: 0,
            due: None,
            retiring: false,
            waiting: HashMap::new(),
            settings_by_hash: HashMap::new(),
            first: None,
            reported_in: None,
            undelivered: None,
            attached: None,
            last_turn: None,
            child: None,
            spare: args.spare,
            warm_waiters: Vec::new(),
            gone_waiters: Vec::new(),
            switching: Vec::new(),
            eviction: None,
            crashed_at: None,
            restart_cause: RestartCause::Crash,
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<SessionMessage>,
        message: SessionMessage,
        state: &mut SessionActorState,
    ) -> Result<(), ActorProcessingErr> {
        state.on_message(message);
        state.publish();
        Ok(())
    }
}

impl SessionActorState {
    fn on_message(&mut self, message: SessionMessage) {
        match message {
            SessionMessage::Submit(submission) => self.submit(submission),
            SessionMessage::Cancel(turn) => self.feed(Input::Cancel(turn)),
            SessionMessage::Warm(reply) => {
                self.warm_waiters.push(reply);
                self.touch();
                self.feed(Input::Warm);
            }
            SessionMessage::Interrupt(reply) => {
                let runs = self.machine.public_state() == SessionState::Busy;
                self.feed(Input::Interrupt);
                // To the session, a turn that waits for its caller is over.
                let generation = self.machine.generation();
                let waits = !runs && self.connection(generation).is_some_and(|it| it.interrupt_wait());
                reply.send(runs || waits).ok();
            }
            SessionMessage::EvictIdle { reason, quiet_since } => {
                let is_as_chosen =
                    |visible: &Visible| visible.is_idle() && visible.quiet_since == quiet_since;
                if self.entry.status.read(is_as_chosen) && self.machine.may_be_evicted() {
                    self.evict(reason, Input::EvictIfIdle);
                } else {
                    // Used meanwhile: another one goes, or this one by what is known of it now. One that stops makes room.
                    let state = self.machine.public_state();
                    self.has_refused = matches!(state, SessionState::Idle | SessionState::Busy);
                }
            }
            SessionMessage::Evict(reply) => {
                self.gone_waiters.push(reply);
                self.evict(EvictionReason::Admin, Input::Evict);
            }
            SessionMessage::ShutDown { refusal, reply } => {
                self.gone_waiters.push(reply);
                self.save_last();
                self.feed(Input::ShutDown(refusal));
            }
            SessionMessage::Outgrown { shim, reason } => self.outgrown(shim, reason),
            SessionMessage::Retire => self.retire(),
            SessionMessage::Written(number) => self.leave(number),
            SessionMessage::OwnCredentials(reply) => {
                if !std::mem::replace(&mut self.record.own_credentials, true) {
                    self.save_now();
                }
                reply.send(()).ok();
            }
            SessionMessage::Record(reply) => drop(reply.send(Box::new(self.record.clone()))),
            SessionMessage::Context(reply) => {
                if let Some(connection) = self.connection(self.machine.generation()) {
                    connection.ask_context(reply);
                }
            }
            SessionMessage::Servers(reply) => {
                if let Some(connection) = self.connection(self.machine.generation()) {
                    connection.ask_servers(AskServers::Status(reply));
                }
            }
            SessionMessage::ReconnectServer(name, reply) => self.reconnect_server(name, reply),
            SessionMessage::ChangeServers(change, reply) => drop(reply.send(self.change_servers(change))),
            SessionMessage::Switch { to, interrupt, reply } => self.switch(to, interrupt, reply),
            SessionMessage::Answer(answer) => self.answer(answer),
            SessionMessage::Steer(steer, rights) => self.steer(steer, &rights),
            SessionMessage::Child(generation, event) => self.on_child_event(generation, event),
            SessionMessage::Lifecycle(generation, event) => self.on_lifecycle_event(generation, event),
            SessionMessage::Wake => self.feed(Input::Woken),
            SessionMessage::Save => self.save_due(),
            #[cfg(feature = "failpoints")]
            #[expect(clippy::panic, reason = "that is what it is for")]
            SessionMessage::Panic => panic!("a test asked for it"),
        }
    }

    /// Requests an eviction, and keeps its reason if the child stops for it.
    fn evict(&mut self, reason: EvictionReason, input: Input) {
        let before = self.machine.public_state();
        self.feed(input);
        let stops = self.machine.public_state() == SessionState::Stopping;
        if stops && before != SessionState::Stopping {
            self.eviction = Some(reason);
        }
    }

    fn feed(&mut self, input: Input) {
        let jitter = fastrand::f64();
        let env = self.sessions.env.clone();
        let effects = self.machine.next(input, Instant::now(), jitter, &env.current().restart);
        // A caller that an effect answers may read the status at once.
        self.publish();
        for effect in effects {
            match effect {
                Effect::Start { generation, settings_hash, restart } => {
                    self.start(generation, settings_hash, restart)
                }
                Effect::Deliver { generation, turn } => self.deliver(generation, turn),
                Effect::CancelRunning { generation, turn } => {
                    if let Some(connection) = self.connection(generation) {
                        connection.cancel(turn);
                    }
                }
                Effect::InterruptRunning { generation, turn } => {
                    if let Some(connection) = self.connection(generation) {
                        connection.interrupt(turn);
                    }
                }
                Effect::Stop { generation } => self.stop(generation),
                Effect::Abort { turn, error } => {
                    if let Some(submission) = self.waiting.remove(&turn) {
                        submission.job.abort(error);
                    }
                }
                Effect::WakeAt(at) => {
                    let pause = at.saturating_duration_since(Instant::now());
                    // A wake-up that is no longer wanted changes nothing: the machine looks at the time.
                    drop(self.entry.actor.send_after(pause, || SessionMessage::Wake));
                }
                Effect::AnswerWarm(result) => {
                    for waiter in self.warm_waiters.drain(..) {
                        drop(waiter.send(result.clone()));
                    }
                }
                Effect::AnswerGone => {
                    for waiter in self.gone_waiters.drain(..) {
                        waiter.send(()).ok();
                    }
                }
                Effect::CircuitOpened => self.telemetry().circuit_opened(&self.entry.key),
            }
        }
    }

    fn answer(&mut self, answer: Answer) {
        match self.connection(self.machine.generation()) {
            Some(connection) => connection.answer(answer),
            None => drop(answer.reply.send(Err(PermissionError::Unknown))),
        }
    }

    fn steer(&mut self, steer: Steer, rights: &SteerRights) {
        let settings = &self.record.settings;
        let running = self.connection(self.machine.generation()).filter(|_| self.machine.running().is_some());
        match running {
            Some(connection) if rights.include(&settings.restrictions, settings.mcp_servers.as_ref()) => {
                connection.steer(steer);
            }
            Some(_) => drop(steer.reply.send(Err(SteerError::NotAllowed))),
            None => drop(steer.reply.send(Err(SteerError::NoRunningTurn))),
        }
    }

    /// Ends the child for its memory, if it is still the one that was measured.
    fn outgrown(&self, shim: u32, reason: KillReason) {
        let is_it = self.entry.status.read(|visible| visible.shim) == Some(shim);
        if let Some(connection) = self.connection(self.machine.generation()).filter(|_| is_it) {
            connection.kill(reason);
        } else if is_it {
            // Of a client that speaks to it itself.
            self.stop(self.machine.generation());
        }
    }

    fn telemetry(&self) -> &Telemetry {
        &self.sessions.env.telemetry
    }

    /// Records that the session is used.
    fn touch(&mut self) {
        self.record.last_used = SystemTime::now();
        self.entry.status.touch();
    }

    fn publish(&mut self) {
        let state = self.machine.public_state();
        let rests = self.machine.may_be_evicted();
        // Until then it counted as one that makes room. The start that got it may be another one than the one that waits.
        let has_stopped = self.counted == SessionState::Stopping && state != SessionState::Stopping;
        let comes_to_rest = !std::mem::replace(&mut self.rests, rests) && rests;
        if state != self.counted {
            self.sessions.env.telemetry.metrics.session_moved(Some(self.counted), Some(state));
            self.counted = state;
        }
        self.entry.status.actor_moved(&ActorView {
            state,
            running: self.machine.running(),
            queue_depth: self.machine.queue_depth(),
            circuit_until: self.machine.circuit_until(),
            record: &self.record,
        });
        // One that only looks idle, because the end of its turn is on its way here, would be chosen again.
        let passes_on = self.has_refused && (rests || !self.entry.status.read(Visible::is_idle));
        if comes_to_rest || has_stopped || passes_on {
            self.has_refused &= !passes_on;
            self.sessions.admission.ask_for_room();
        }
    }
}

impl Drop for SessionActorState {
    fn drop(&mut self) {
        self.sessions.env.telemetry.metrics.session_moved(Some(self.counted), None);
    }
}

/// Whether the CLI's conversation holds earlier turns.
fn has_context(record: &Record) -> bool {
    record.context_turns > 0
}
