//! The actor of one session: feeds the pure [`Machine`] with what happens and carries out what it decides.
//!
//! It owns the session's record and the turns that wait. The child is driven by a task of its own
//! ([`super::lifecycle`]) and reached through its connection; no line of output passes this mailbox, and no handler waits for the child. What the
//! mailbox holds is bounded: a turn needs a permit of the session's queue first, and the child's task sends a handful
//! of messages per turn.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::child_events::{LifecycleEvent, Mailbox, Started};
use super::conclude::Conclusion;
use super::import::{First, Offered};
use super::lifecycle::{self, Plan};
use super::message::{SessionMessage, Submission};
use super::state::{Effect, Input, Machine, SettingsHash, Ticket};
use super::store::{Record, SettingsRecord};
use crate::child::{Answer, ChildEvent, ConnectionHandle, TurnJob, TurnReport};
use crate::error::TurnError;
use crate::model::ids::{Generation, SessionKey, TurnId};
use crate::model::{PermissionError, SessionState};
use crate::session::registry::{Board, Entry};
use crate::session::sessions::Sessions;
use crate::support::atomic_file::Durability;
use crate::telemetry::Telemetry;
use crate::telemetry::emit::{CircuitOpened, ContextLoss, Evicted, Restarted};
use crate::telemetry::metrics::{ContextLost, EvictionReason, RestartCause};
use crate::turn::{Earlier, FirstLine, wake};
use crate::workspace::Workspace;

/// Counters are written to disk at most so often; what matters for resuming is written at once.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

pub(crate) struct SessionActor;

pub(crate) struct SessionArgs {
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) workspace: Workspace,
    pub(crate) record: Record,
    pub(crate) key: SessionKey,
}

pub(crate) struct SessionActorState {
    sessions: Arc<Sessions>,
    workspace: Workspace,
    record: Record,
    entry: Arc<Entry>,
    saves: u64,
    /// The record is being written to leave memory.
    retiring: bool,
    machine: Machine,
    waiting: HashMap<TurnId, Box<Submission>>,
    /// Settings that queued turns ask for, by their hash.
    settings_by_hash: HashMap<SettingsHash, SettingsRecord>,
    child: Option<ChildLink>,
    warm_waiters: Vec<oneshot::Sender<Result<(), TurnError>>>,
    gone_waiters: Vec<oneshot::Sender<()>>,
    eviction: Option<EvictionReason>,
    /// The turn that is told what is missing of the conversation. Until it has ended the loss counts as untold.
    told: Option<TurnId>,
    /// How the turn whose history the child was started with is sent.
    first: Option<First>,
    /// A turn that the child did not take because it had ended; its end is about to be reported.
    undelivered: Option<Box<TurnJob>>,
    crashed_at: Option<Instant>,
    restart_cause: RestartCause,
    shown: SessionState,
    save_scheduled: bool,
}

/// How to reach the child.
struct ChildLink {
    generation: Generation,
    /// Once there is one.
    connection: Option<Arc<ConnectionHandle>>,
    /// Asks the child to go; dropping it does so too.
    stop: CancellationToken,
    since: Instant,
    pid: Option<u32>,
}

impl Drop for ChildLink {
    fn drop(&mut self) {
        self.stop.cancel();
    }
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
        let entry = Arc::new(Entry::new(
            args.key,
            args.workspace.clone(),
            myself,
            turn_limit,
            first_board(&args.record),
        ));
        args.sessions.registry.insert(entry.clone());
        args.sessions.env.telemetry.metrics.session_moved(None, Some(SessionState::Dormant));
        let settings_hash = args.record.settings.hash();
        Ok(SessionActorState {
            machine: Machine::new(args.record.generation(), settings_hash, has_context(&args.record)),
            sessions: args.sessions,
            workspace: args.workspace,
            record: args.record,
            entry,
            saves: 0,
            retiring: false,
            waiting: HashMap::new(),
            settings_by_hash: HashMap::new(),
            child: None,
            warm_waiters: Vec::new(),
            gone_waiters: Vec::new(),
            eviction: None,
            told: None,
            first: None,
            undelivered: None,
            crashed_at: None,
            restart_cause: RestartCause::Crash,
            shown: SessionState::Dormant,
            save_scheduled: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<SessionMessage>,
        message: SessionMessage,
        state: &mut SessionActorState,
    ) -> Result<(), ActorProcessingErr> {
        state.take(&myself, message);
        state.publish();
        Ok(())
    }
}

impl SessionActorState {
    fn take(&mut self, myself: &ActorRef<SessionMessage>, message: SessionMessage) {
        match message {
            SessionMessage::Submit(submission) => self.submit(myself, submission),
            SessionMessage::Cancel(turn) => self.feed(myself, Input::Cancel(turn)),
            SessionMessage::Warm(reply) => {
                self.warm_waiters.push(reply);
                self.touch();
                self.feed(myself, Input::Warm);
            }
            SessionMessage::Interrupt(reply) => {
                let running = self.shown == SessionState::Busy;
                self.feed(myself, Input::Interrupt);
                reply.send(running).ok();
            }
            SessionMessage::EvictIdle { reason, quiet_since } => {
                let unchanged = self.entry.with_board(|board| board.quiet_since == quiet_since);
                if unchanged {
                    self.evict(myself, reason, Input::EvictIfIdle);
                }
            }
            SessionMessage::Evict(reply) => {
                self.gone_waiters.push(reply);
                self.evict(myself, EvictionReason::Admin, Input::Evict);
            }
            SessionMessage::ShutDown(reply) => {
                self.gone_waiters.push(reply);
                self.feed(myself, Input::ShutDown);
            }
            SessionMessage::Outgrown { shim, limit } => self.outgrown(shim, limit),
            SessionMessage::Retire => self.retire(myself),
            SessionMessage::Written(number) => self.leave(myself, number),
            SessionMessage::OwnCredentials(reply) => {
                if !std::mem::replace(&mut self.record.own_credentials, true) {
                    self.save_now();
                }
                reply.send(()).ok();
            }
            SessionMessage::Answer(answer) => self.answer(answer),
            SessionMessage::Child(generation, event) => self.on_child_event(myself, generation, event),
            SessionMessage::Lifecycle(generation, event) => {
                self.on_lifecycle_event(myself, generation, event)
            }
            SessionMessage::Wake => self.feed(myself, Input::Woken),
            SessionMessage::Save => {
                self.save_scheduled = false;
                // Counters and the checkpoint of the last turns: they have to outlive us, but not a power cut.
                self.save(Durability::Kernel);
            }
            #[cfg(feature = "failpoints")]
            #[expect(clippy::panic, reason = "that is what it is for")]
            SessionMessage::Panic => panic!("a test asked for it"),
        }
    }

    /// Asks for an eviction, and notes what for if there is one.
    fn evict(&mut self, myself: &ActorRef<SessionMessage>, reason: EvictionReason, input: Input) {
        let before = self.machine.public_state();
        self.feed(myself, input);
        let stops = self.machine.public_state() == SessionState::Stopping;
        if stops && before != SessionState::Stopping {
            self.eviction = Some(reason);
        }
    }

    fn submit(&mut self, myself: &ActorRef<SessionMessage>, mut submission: Box<Submission>) {
        let sender_gone = submission.job.sender.as_ref().is_none_or(crate::turn::TurnSender::is_closed);
        if sender_gone {
            return submission.job.abort(TurnError::Cancelled);
        }
        let turn = submission.job.turn;
        submission.settings.own_credentials = self.record.own_credentials;
        let settings_hash = self.settings_hash_for(&submission.settings);
        let brings_history = brings_history(&submission.job);
        self.touch();
        self.waiting.insert(turn, submission);
        self.feed(myself, Input::Submit(Ticket { turn, settings_hash, brings_history }));
    }

    /// What the child must have been started with for a turn that asks for `wanted`.
    fn settings_hash_for(&mut self, wanted: &SettingsRecord) -> Option<SettingsHash> {
        if *wanted == SettingsRecord::default() {
            return None;
        }
        // A turn before it that still waits may change them first.
        let before = self.machine.last_wanted();
        let before = before.and_then(|hash| self.settings_by_hash.get(&hash));
        let model_without = self.record.model_without(&self.sessions.env.config.cli);
        let settings = before.unwrap_or(&self.record.settings).with(wanted, model_without);
        let settings_hash = settings.hash();
        self.settings_by_hash.insert(settings_hash, settings);
        Some(settings_hash)
    }

    fn feed(&mut self, myself: &ActorRef<SessionMessage>, input: Input) {
        let jitter = fastrand::f64();
        let env = self.sessions.env.clone();
        let effects = self.machine.next(input, Instant::now(), jitter, &env.config.restart);
        // Whoever is answered below may look at once.
        self.publish();
        for effect in effects {
            self.carry_out(myself, effect);
        }
    }

    fn carry_out(&mut self, myself: &ActorRef<SessionMessage>, effect: Effect) {
        match effect {
            Effect::Start { generation, settings_hash, restart } => {
                self.start(myself, generation, settings_hash, restart)
            }
            Effect::Deliver { generation, turn } => self.deliver(myself, generation, turn),
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
            Effect::Stop { generation } => {
                if let Some(child) = self.child.as_ref().filter(|child| child.generation == generation) {
                    child.stop.cancel();
                }
            }
            Effect::Abort { turn, error } => {
                if let Some(submission) = self.waiting.remove(&turn) {
                    submission.job.abort(error);
                }
            }
            Effect::WakeAt(at) => {
                // A wake-up that is no longer wanted changes nothing: the machine looks at the time.
                drop(
                    myself.send_after(at.saturating_duration_since(Instant::now()), || SessionMessage::Wake),
                );
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
            Effect::CircuitOpened => {
                CircuitOpened.emit(self.telemetry(), &self.entry.key);
            }
        }
    }

    fn start(
        &mut self,
        myself: &ActorRef<SessionMessage>,
        generation: Generation,
        settings_hash: SettingsHash,
        restart: bool,
    ) {
        if let Some(settings) = self.settings_by_hash.remove(&settings_hash) {
            self.record.settings = settings;
        }
        self.settings_by_hash.retain(|_, _| !self.waiting.is_empty());
        if restart {
            self.record.restarts = self.record.restarts.saturating_add(1);
            Restarted { cause: self.restart_cause }.emit(self.telemetry(), &self.entry.key);
        }
        self.record.generation = generation.0;
        self.first = None;
        let stop = CancellationToken::new();
        self.child = Some(ChildLink {
            generation,
            connection: None,
            stop: stop.clone(),
            since: Instant::now(),
            pid: None,
        });
        let plan = Plan {
            sessions: self.sessions.clone(),
            entry: self.entry.clone(),
            workspace: self.workspace.clone(),
            generation,
            offered: self.offered(),
        };
        let mailbox = Mailbox::new(myself.clone(), generation);
        let task = lifecycle::run(plan, Box::new(self.record.clone()), stop, mailbox);
        self.sessions.env.tasks.spawn(task);
        self.save_now();
    }

    /// The history of the turn that the next child is started for.
    fn offered(&self) -> Option<Offered> {
        let turn = self.machine.next_turn()?;
        let earlier = self.waiting.get(&turn)?.job.earlier.as_ref()?;
        Some(Offered { turn, conversation: earlier.conversation()?.clone() })
    }

    fn deliver(&mut self, myself: &ActorRef<SessionMessage>, generation: Generation, turn: TurnId) {
        let Some(submission) = self.waiting.remove(&turn) else { return };
        let mut job = submission.job;
        let loss = self.record.untold_loss;
        match self.first_line(&job) {
            Ok(Some(line)) => job.line = line,
            Ok(None) => {}
            Err(error) => {
                job.abort(error);
                let over = Input::TurnEnded { generation, turn, answered: false, exhausted: false };
                return self.feed(myself, over);
            }
        }
        if let (Some(loss), Some(sender)) = (loss, &job.sender) {
            // The first that it hears; one that is given to a second child has been told already.
            if !job.context_lost {
                wake(sender.put(context_lost_notice(loss, &self.record.cli_session_id)));
            }
            job.context_lost = true;
            self.told = Some(turn);
        }
        let Some(connection) = self.connection(generation) else {
            return job.abort(TurnError::Internal("the child is gone"));
        };
        job.trace.given_to(generation);
        // If the child has just ended, the next one gets the turn.
        self.undelivered = connection.take_turn(job).err();
    }

    /// What the turn is sent as if it begins the conversation.
    fn first_line(&mut self, job: &TurnJob) -> FirstLine {
        // Of another turn: it was cancelled.
        if let Some(first) = self.first.take().filter(|first| first.turn == job.turn) {
            return first.line;
        }
        match &job.earlier {
            Some(Earlier::Unanswered(line)) if !has_context(&self.record) => line.clone(),
            _ => Ok(None),
        }
    }

    fn answer(&mut self, answer: Answer) {
        match self.connection(self.machine.generation()) {
            Some(connection) => connection.answer(answer),
            None => drop(answer.reply.send(Err(PermissionError::Unknown))),
        }
    }

    /// Ends the child, if it is still the one that was measured.
    fn outgrown(&self, shim: u32, limit: u64) {
        let is_it = self.entry.tree.load(std::sync::atomic::Ordering::Relaxed) == shim;
        if let Some(connection) = self.connection(self.machine.generation()).filter(|_| is_it) {
            connection.kill_for_memory(limit);
        }
    }

    fn on_lifecycle_event(
        &mut self,
        myself: &ActorRef<SessionMessage>,
        generation: Generation,
        event: LifecycleEvent,
    ) {
        if generation != self.machine.generation() {
            return;
        }
        match event {
            LifecycleEvent::Started(started, connection) => self.started(started, connection),
            LifecycleEvent::ContextLost(loss, gap) => {
                if self.record.untold_loss != Some(loss) {
                    // Found again by every start until a turn is told; it is one loss.
                    ContextLoss { extent: loss }.emit(self.telemetry(), &self.entry.key);
                }
                self.record.untold_loss = Some(loss);
                self.record.known_gap = gap;
                self.record.checkpoint = None;
                if loss == ContextLost::Conversation {
                    self.record.context_turns = 0;
                    // The one that begins in its place chooses again.
                    self.record.chosen_model = None;
                    self.machine.set_context(false);
                }
                // Whoever comes after us has to tell it, if we do not come to it.
                self.save_now();
            }
            LifecycleEvent::First(first) => self.first = Some(first),
            LifecycleEvent::Imported(imported) => {
                // From here on it can be lost like any other conversation.
                self.record.context_turns = self.record.context_turns.max(1);
                self.record.checkpoint = Some(imported.last);
                self.machine.set_context(true);
                self.save_now();
            }
            LifecycleEvent::NewConversation(cli_session_id) => {
                self.record.cli_session_id = cli_session_id;
                self.record.chosen_model = None;
                self.save_now();
            }
            LifecycleEvent::Ended(conclusion) => self.child_ended(myself, generation, *conclusion),
        }
    }

    fn on_child_event(
        &mut self,
        myself: &ActorRef<SessionMessage>,
        generation: Generation,
        event: ChildEvent,
    ) {
        if generation != self.machine.generation() {
            return;
        }
        match event {
            ChildEvent::Ready => {
                if let Some(crashed_at) = self.crashed_at.take() {
                    self.sessions.env.telemetry.metrics.recovery_duration.record(crashed_at.elapsed());
                }
                if !self.warm_waiters.is_empty() {
                    self.touch();
                }
                self.feed(myself, Input::Ready(generation));
            }
            ChildEvent::TurnEnded(ended) => self.turn_ended(myself, generation, ended),
            ChildEvent::OwnTurn { cost_usd } => {
                self.record.cost_usd += cost_usd;
                self.save_soon(myself);
            }
            ChildEvent::Active(active) => {
                self.touch();
                self.feed(myself, Input::Active(generation, active));
            }
            ChildEvent::Model(model) => {
                // The first one counts: a conversation is to end as it began.
                if self.record.chosen_model.is_none() {
                    self.record.chosen_model = Some(model);
                    self.save_now();
                }
            }
            // Shown already, and nothing that changes what happens next.
            ChildEvent::Greeted | ChildEvent::Permissions(_) => {}
        }
    }

    fn started(&mut self, started: Started, connection: Arc<ConnectionHandle>) {
        if let Some(child) = &mut self.child {
            child.pid = Some(started.pid);
            child.connection = Some(connection);
        }
        self.entry.set_tree(Some(started.shim));
    }

    fn turn_ended(&mut self, myself: &ActorRef<SessionMessage>, generation: Generation, ended: TurnReport) {
        self.touch();
        let mut save_at_once = self.record.turns == 0;
        if self.told.take_if(|told| *told == ended.turn).is_some() {
            self.record.untold_loss = None;
            save_at_once = true;
        }
        let record = &mut self.record;
        record.turns = record.turns.saturating_add(1);
        record.context_turns = record.context_turns.saturating_add(1);
        self.machine.set_context(true);
        record.cost_usd += ended.cost_usd;
        if let Some(id) = ended.cli_session_id.filter(|id| *id != record.cli_session_id) {
            // A command in the text began another conversation: that is the one to resume.
            record.cli_session_id = id;
            record.checkpoint = None;
            save_at_once = true;
        }
        if ended.checkpoint.is_some() {
            self.record.checkpoint = ended.checkpoint;
        }
        if save_at_once {
            self.save_now();
        } else {
            self.save_soon(myself);
        }
        self.feed(
            myself,
            Input::TurnEnded {
                generation,
                turn: ended.turn,
                answered: ended.answered,
                exhausted: ended.exhausted,
            },
        );
    }

    fn child_ended(&mut self, myself: &ActorRef<SessionMessage>, generation: Generation, ended: Conclusion) {
        let entry = self.entry.clone();
        entry.set_tree(None);
        entry.with_board(|board| {
            board.permissions.clear();
            board.active = false;
        });
        let link = self.child.take();
        if ended.was_ready
            && let Some(link) = link
        {
            self.sessions.env.telemetry.metrics.session_lifetime.record(link.since.elapsed());
        }
        let eviction = self.eviction.take();
        if ended.was_requested() {
            if let Some(reason) = eviction {
                Evicted { reason }.emit(self.telemetry(), &entry.key);
            }
        } else {
            self.crashed_at.get_or_insert_with(Instant::now);
            self.restart_cause = ended.restart;
        }
        let retry = ended.retry.or(self.undelivered.take()).and_then(still_read).map(|job| {
            let (turn, brings_history) = (job.turn, brings_history(&job));
            self.waiting.insert(turn, Box::new(Submission { job, settings: SettingsRecord::default() }));
            Ticket { turn, settings_hash: None, brings_history }
        });
        if self.told.take().is_some() && retry.is_none() {
            // It was told, and lost with the child.
            self.record.untold_loss = None;
        }
        self.save_now();
        self.feed(myself, Input::Exited { generation, kind: ended.kind, retry });
        if matches!(self.machine.public_state(), SessionState::Dormant | SessionState::Failed) {
            // Nothing is being recovered.
            self.crashed_at = None;
        }
    }

    /// Leaves memory, in two steps: whoever takes the session up again, or deletes it, must find the last record on disk
    /// and nobody who still writes one. Here the record is written.
    fn retire(&mut self, myself: &ActorRef<SessionMessage>) {
        if self.retiring || !self.machine.is_at_rest(Instant::now()) {
            return;
        }
        self.retiring = true;
        let (save, myself) = (self.next_save(Durability::Disk), myself.clone());
        let number = self.saves;
        self.sessions.env.tasks.spawn(async move {
            save.await;
            drop(myself.cast(SessionMessage::Written(number)));
        });
    }

    /// The record was written to leave memory. If anything has happened since, the session stays; it will be asked again.
    fn leave(&mut self, myself: &ActorRef<SessionMessage>, written: u64) {
        self.retiring = false;
        // Every save that is under way holds the writer.
        let is_last = written == self.saves && Arc::strong_count(&self.entry.writer) == 1;
        let may_leave = is_last && self.machine.is_at_rest(Instant::now());
        if may_leave && self.sessions.registry.forget_unused(&self.entry) {
            myself.stop(None);
        }
    }

    // ---- What others see ----

    fn telemetry(&self) -> &Telemetry {
        &self.sessions.env.telemetry
    }

    /// Notes that the session is used.
    fn touch(&mut self) {
        self.record.last_used = SystemTime::now();
        self.entry.with_board(|board| board.quiet_since = Instant::now());
    }

    fn publish(&mut self) {
        let state = self.machine.public_state();
        if state != self.shown {
            self.sessions.env.telemetry.metrics.session_moved(Some(self.shown), Some(state));
            self.shown = state;
        }
        let queue_depth = self.machine.queue_depth();
        let (pid, since) =
            self.child.as_ref().map_or((None, None), |child| (child.pid, child.pid.map(|_| child.since)));
        let (record, running) = (&self.record, self.machine.running());
        self.entry.with_board(|board| {
            // The end of a turn is shown before it is heard of here.
            let is_over = running.is_some() && running == board.ended && queue_depth == 0;
            board.state = if is_over { SessionState::Idle } else { state };
            board.pid = pid;
            board.child_since = since;
            board.generation = record.generation;
            if board.model != record.settings.model {
                board.model.clone_from(&record.settings.model);
            }
            board.last_used = record.last_used;
            board.turns = board.turns.max(record.turns);
            board.restarts = record.restarts;
            board.queue_depth = queue_depth;
            board.cost_usd = board.cost_usd.max(record.cost_usd);
        });
    }

    // ---- Disk ----

    fn save_soon(&mut self, myself: &ActorRef<SessionMessage>) {
        if !std::mem::replace(&mut self.save_scheduled, true) {
            drop(myself.send_after(SAVE_INTERVAL, || SessionMessage::Save));
        }
    }

    fn save_now(&mut self) {
        self.save(Durability::Disk);
    }

    /// Writes the record in the background.
    fn save(&mut self, durability: Durability) {
        let save = self.next_save(durability);
        self.sessions.env.tasks.spawn(save);
    }

    fn next_save(&mut self, durability: Durability) -> impl Future<Output = ()> + Send + use<> {
        self.saves += 1;
        let (record, workspace) = (self.record.clone(), self.workspace.clone());
        self.entry.writer.clone().save(self.saves, record, workspace, durability)
    }

    fn connection(&self, generation: Generation) -> Option<&Arc<ConnectionHandle>> {
        self.child.as_ref().filter(|child| child.generation == generation)?.connection.as_ref()
    }
}

impl Drop for SessionActorState {
    fn drop(&mut self) {
        self.sessions.env.telemetry.metrics.session_moved(Some(self.shown), None);
    }
}

/// What others see of a session that has just come into memory.
pub(crate) fn first_board(record: &Record) -> Board {
    Board {
        state: SessionState::Dormant,
        pid: None,
        generation: record.generation,
        model: record.settings.model.clone(),
        created: record.created,
        last_used: record.last_used,
        quiet_since: Instant::now(),
        child_since: None,
        turns: record.turns,
        restarts: record.restarts,
        queue_depth: 0,
        cost_usd: record.cost_usd,
        permissions: Vec::new(),
        active: false,
        ended: None,
        last_exit: None,
    }
}

/// Whether the CLI's conversation holds what was said before.
fn has_context(record: &Record) -> bool {
    record.context_turns > 0
}

/// Whether a child without context has to be started for this turn.
fn brings_history(job: &TurnJob) -> bool {
    job.earlier.as_ref().is_some_and(|earlier| earlier.conversation().is_some())
}

/// The turn, unless nobody reads it any more: then it ends here.
fn still_read(job: Box<TurnJob>) -> Option<Box<TurnJob>> {
    if job.sender.as_ref().is_none_or(crate::turn::TurnSender::is_closed) {
        job.abort(TurnError::Cancelled);
        return None;
    }
    Some(job)
}

fn context_lost_notice(loss: ContextLost, cli_session_id: &str) -> bytes::Bytes {
    let notice = serde_json::json!({
        "type": "pilotlight",
        "subtype": "context_lost",
        "lost": loss.as_str(),
        "session_id": cli_session_id,
    });
    format!("{notice}\n").into()
}
