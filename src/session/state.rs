//! The life of a session as a pure function of (state, input, now): what may happen when, and what has to be done.
//!
//! The machine knows turns by number and children by generation. It starts nothing, ends nothing and reads no clock:
//! the actor carries out its [`Effect`]s. A message of an earlier generation changes nothing.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::config::RestartConfig;
use crate::error::{StartFailure, TurnError};
use crate::model::SessionState;
use crate::model::ids::{Generation, TurnId};
use crate::session::conclude::ExitKind;
use crate::session::restart::{History, Verdict};

/// A start that cannot succeed before somebody mends the CLI (missing, not executable) is not repeated by itself, and
/// by turns at most this often: no storm, and a mended CLI is found within a second.
const HOPELESS_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Hash of the settings that a child is started with.
pub(crate) type SettingsHash = u64;

/// A turn that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueuedTurn {
    pub(crate) turn: TurnId,
    /// What the child must have been started with; `None`: as it is.
    pub(crate) settings_hash: Option<SettingsHash>,
    /// The turn brings a history that a child must be started with if the conversation has no context.
    pub(crate) brings_history: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    Dormant,
    Starting { generation: Generation },
    Idle { generation: Generation },
    Busy { generation: Generation, turn: TurnId },
    Stopping { generation: Generation },
    Backoff { until: Instant },
    Failed { last: StartFailure, retry_at: Instant },
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    /// A turn was accepted.
    Submit(QueuedTurn),
    /// A turn's reader is gone.
    Cancel(TurnId),
    /// Somebody wants the child to be there.
    Warm,
    /// The running turn shall end, its child stay.
    Interrupt,
    /// The child shall go, if nothing needs it.
    EvictIfIdle,
    /// The child shall go, also from a running turn; turns that wait are served by the next one.
    Evict,
    /// The child shall go, and nothing be started again.
    ShutDown,
    /// The child can take turns.
    Ready(Generation),
    /// The child works without having been asked, or has stopped doing so.
    Active(Generation, bool),
    /// The turn is over, the child lives. `exhausted`: but no turn can succeed in it any more.
    TurnEnded { generation: Generation, turn: TurnId, answered: bool, exhausted: bool },
    /// The child and its whole tree are gone, or never were.
    Exited { generation: Generation, kind: ExitKind, retry: Option<QueuedTurn> },
    /// The time of the last [`Effect::WakeAt`] has come.
    Woken,
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// Start a child.
    Start { generation: Generation, settings_hash: SettingsHash, restart: bool },
    /// Give the child a turn.
    Deliver { generation: Generation, turn: TurnId },
    /// Interrupt the child's turn because its reader is gone.
    CancelRunning { generation: Generation, turn: TurnId },
    /// Interrupt the child's turn; its reader hears the end.
    InterruptRunning { generation: Generation, turn: TurnId },
    /// Stop the child in order.
    Stop { generation: Generation },
    /// End a turn that the child has not seen.
    Abort { turn: TurnId, error: TurnError },
    /// Call again with [`Input::Woken`].
    WakeAt(Instant),
    /// Answer those who wait for the child to be there.
    AnswerWarm(Result<(), TurnError>),
    /// Answer those who wait for the child to be gone.
    AnswerGone,
    /// The circuit was opened.
    CircuitOpened,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Machine {
    state: State,
    queue: VecDeque<QueuedTurn>,
    generation: Generation,
    /// What the current or the next child is started with.
    settings_hash: SettingsHash,
    /// The conversation holds what was said before.
    has_context: bool,
    /// The turn whose history the child was started with.
    offered: Option<TurnId>,
    /// The child works of its own accord.
    active: bool,
    warm_wanted: bool,
    shutting_down: bool,
    history: History,
}

impl Machine {
    /// A session without a child, whose last child was of `generation` and was started with `settings_hash`.
    pub(crate) fn new(generation: Generation, settings_hash: SettingsHash, has_context: bool) -> Self {
        Self {
            state: State::Dormant,
            queue: VecDeque::new(),
            generation,
            settings_hash,
            has_context,
            offered: None,
            active: false,
            warm_wanted: false,
            shutting_down: false,
            history: History::default(),
        }
    }

    /// The conversation has come to hold what was said before, or has lost it.
    pub(crate) fn set_context(&mut self, has_context: bool) {
        self.has_context = has_context;
    }

    pub(crate) fn public_state(&self) -> SessionState {
        match self.state {
            State::Dormant => SessionState::Dormant,
            State::Starting { .. } => SessionState::Starting,
            State::Idle { .. } => SessionState::Idle,
            State::Busy { .. } => SessionState::Busy,
            State::Stopping { .. } => SessionState::Stopping,
            State::Backoff { .. } => SessionState::Backoff,
            State::Failed { .. } => SessionState::Failed,
        }
    }

    /// The turn that runs.
    pub(crate) fn running(&self) -> Option<TurnId> {
        match self.state {
            State::Busy { turn, .. } => Some(turn),
            _ => None,
        }
    }

    /// The turn that comes next.
    pub(crate) fn next_turn(&self) -> Option<TurnId> {
        self.queue.front().map(|queued| queued.turn)
    }

    pub(crate) fn queue_depth(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// No child, none on its way, no turn: nothing is lost if this session is forgotten.
    pub(crate) fn is_at_rest(&self, now: Instant) -> bool {
        let rests = match self.state {
            State::Dormant => true,
            // A circuit that is open must stay known until it may be tried again.
            State::Failed { retry_at, .. } => retry_at <= now,
            _ => false,
        };
        rests && self.queue.is_empty()
    }

    /// The next state, and what has to be done. `jitter` in 0..1.
    pub(crate) fn next(
        &mut self,
        input: Input,
        now: Instant,
        jitter: f64,
        config: &RestartConfig,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Submit(queued) => self.submit(queued, now, &mut effects),
            Input::Cancel(turn) => self.cancel(turn, &mut effects),
            Input::Warm => self.warm(now, &mut effects),
            Input::Interrupt => {
                if let State::Busy { generation, turn } = self.state {
                    effects.push(Effect::InterruptRunning { generation, turn });
                }
            }
            Input::EvictIfIdle => {
                if matches!(self.state, State::Idle { .. }) && self.queue.is_empty() && !self.active {
                    self.stop(&mut effects);
                }
            }
            Input::Evict => self.stop(&mut effects),
            Input::ShutDown => self.shut_down(&mut effects),
            Input::Ready(generation) if generation == self.generation => {
                if matches!(self.state, State::Starting { .. }) {
                    self.state = State::Idle { generation };
                    self.warm_wanted = false;
                    effects.push(Effect::AnswerWarm(Ok(())));
                    self.dispatch(&mut effects);
                }
            }
            Input::Active(generation, active) if generation == self.generation => self.active = active,
            Input::TurnEnded { generation, turn, answered, exhausted } if generation == self.generation => {
                if answered {
                    self.history.succeeded();
                }
                if self.state == (State::Busy { generation, turn }) {
                    self.state = State::Idle { generation };
                    if exhausted { self.stop(&mut effects) } else { self.dispatch(&mut effects) }
                }
            }
            Input::Exited { generation, kind, retry } if generation == self.generation => {
                self.exited(kind, retry, now, jitter, config, &mut effects);
            }
            Input::Woken => {
                if matches!(self.state, State::Backoff { until } if until <= now) {
                    self.start(true, &mut effects);
                }
            }
            // Late news of a former child.
            Input::Ready(_) | Input::Active(..) | Input::TurnEnded { .. } | Input::Exited { .. } => {}
        }
        effects
    }

    fn submit(&mut self, queued: QueuedTurn, now: Instant, effects: &mut Vec<Effect>) {
        if self.shutting_down {
            return effects.push(Effect::Abort { turn: queued.turn, error: TurnError::Draining });
        }
        if let State::Failed { last, retry_at } = &self.state
            && *retry_at > now
        {
            let error = circuit_open(last, *retry_at, now);
            return effects.push(Effect::Abort { turn: queued.turn, error });
        }
        self.queue.push_back(queued);
        match self.state {
            State::Dormant | State::Failed { .. } => self.start(false, effects),
            State::Idle { .. } => self.dispatch(effects),
            State::Starting { .. } | State::Busy { .. } | State::Stopping { .. } | State::Backoff { .. } => {}
        }
    }

    fn cancel(&mut self, turn: TurnId, effects: &mut Vec<Effect>) {
        if let Some(index) = self.queue.iter().position(|queued| queued.turn == turn) {
            self.queue.remove(index);
            effects.push(Effect::Abort { turn, error: TurnError::Cancelled });
        } else if let State::Busy { generation, turn: running } = self.state
            && running == turn
        {
            effects.push(Effect::CancelRunning { generation, turn });
        }
    }

    fn warm(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.shutting_down {
            return effects.push(Effect::AnswerWarm(Err(TurnError::Draining)));
        }
        match &self.state {
            State::Idle { .. } | State::Busy { .. } => effects.push(Effect::AnswerWarm(Ok(()))),
            State::Failed { last, retry_at } if *retry_at > now => {
                effects.push(Effect::AnswerWarm(Err(circuit_open(last, *retry_at, now))));
            }
            State::Dormant | State::Failed { .. } => {
                self.warm_wanted = true;
                self.start(false, effects);
            }
            State::Starting { .. } | State::Stopping { .. } | State::Backoff { .. } => {
                self.warm_wanted = true
            }
        }
    }

    fn stop(&mut self, effects: &mut Vec<Effect>) {
        match self.state {
            State::Starting { generation } | State::Idle { generation } | State::Busy { generation, .. } => {
                self.state = State::Stopping { generation };
                effects.push(Effect::Stop { generation });
            }
            State::Stopping { .. } => {}
            State::Backoff { .. } => {
                self.state = State::Dormant;
                effects.push(Effect::AnswerGone);
                if self.is_wanted() {
                    self.start(false, effects);
                }
            }
            State::Dormant | State::Failed { .. } => effects.push(Effect::AnswerGone),
        }
    }

    fn shut_down(&mut self, effects: &mut Vec<Effect>) {
        self.shutting_down = true;
        self.abort_queue(&TurnError::Draining, effects);
        self.stop(effects);
    }

    fn exited(
        &mut self,
        kind: ExitKind,
        retry: Option<QueuedTurn>,
        now: Instant,
        jitter: f64,
        config: &RestartConfig,
        effects: &mut Vec<Effect>,
    ) {
        let was_stopping = matches!(self.state, State::Stopping { .. });
        self.state = State::Dormant;
        self.active = false;
        self.queue.extend(retry);
        // A turn that is tried again goes before those that came after it.
        self.queue.rotate_right(usize::from(retry.is_some()));
        effects.push(Effect::AnswerGone);
        if self.shutting_down {
            return self.abort_queue(&TurnError::Draining, effects);
        }
        match kind {
            ExitKind::NotAdmitted(error) => self.give_up(&error, effects),
            ExitKind::NotStarted(failure) if is_hopeless(&failure) => {
                self.give_up(&TurnError::NotStarted(failure.clone()), effects);
                self.state = State::Failed { last: failure, retry_at: now + HOPELESS_PAUSE };
            }
            ExitKind::NotStarted(failure @ StartFailure::NeverReady { .. }) => {
                // It took all the time that a start may take: whoever waits is not made to wait for another one.
                self.give_up(&TurnError::NotStarted(failure.clone()), effects);
                self.failed(failure, now, jitter, config, effects);
            }
            // It died while it was being stopped: that is what was wanted.
            ExitKind::Crashed(_) if was_stopping => self.start_if_wanted(effects),
            ExitKind::Requested | ExitKind::MemoryLimit => self.start_if_wanted(effects),
            ExitKind::Crashed(failure) | ExitKind::NotStarted(failure) => {
                self.failed(failure, now, jitter, config, effects);
            }
        }
    }

    fn failed(
        &mut self,
        failure: StartFailure,
        now: Instant,
        jitter: f64,
        config: &RestartConfig,
        effects: &mut Vec<Effect>,
    ) {
        match self.history.failed(now, jitter, config) {
            Verdict::Restart(pause) if pause.is_zero() => self.start(true, effects),
            Verdict::Restart(pause) => {
                let until = now + pause;
                self.state = State::Backoff { until };
                effects.push(Effect::WakeAt(until));
            }
            Verdict::Open(pause) => {
                let retry_at = now + pause;
                effects.push(Effect::CircuitOpened);
                self.give_up(&circuit_open(&failure, retry_at, now), effects);
                self.state = State::Failed { last: failure, retry_at };
            }
        }
    }

    /// What the last of the waiting turns that ask for any settings asks for.
    pub(super) fn last_wanted(&self) -> Option<SettingsHash> {
        self.queue.iter().rev().find_map(|queued| queued.settings_hash)
    }

    fn is_wanted(&self) -> bool {
        !self.shutting_down && (self.warm_wanted || !self.queue.is_empty())
    }

    fn start_if_wanted(&mut self, effects: &mut Vec<Effect>) {
        if self.is_wanted() {
            self.start(false, effects);
        }
    }

    fn start(&mut self, restart: bool, effects: &mut Vec<Effect>) {
        self.generation = self.generation.next();
        self.offered = self.next_turn();
        if let Some(front) = self.queue.front() {
            self.settings_hash = front.settings_hash.unwrap_or(self.settings_hash);
        }
        self.state = State::Starting { generation: self.generation };
        effects.push(Effect::Start {
            generation: self.generation,
            settings_hash: self.settings_hash,
            restart,
        });
    }

    /// Gives an idle child the first turn of the queue, or starts it anew if the turn needs another one.
    fn dispatch(&mut self, effects: &mut Vec<Effect>) {
        let State::Idle { generation } = self.state else { return };
        let Some(queued) = self.queue.front().copied() else { return };
        let is_offered = self.offered == Some(queued.turn);
        let brings_history = queued.brings_history && !self.has_context && !is_offered;
        if brings_history || queued.settings_hash.is_some_and(|wanted| wanted != self.settings_hash) {
            return self.stop(effects);
        }
        self.queue.pop_front();
        self.state = State::Busy { generation, turn: queued.turn };
        effects.push(Effect::Deliver { generation, turn: queued.turn });
    }

    fn give_up(&mut self, error: &TurnError, effects: &mut Vec<Effect>) {
        self.abort_queue(error, effects);
        self.warm_wanted = false;
        effects.push(Effect::AnswerWarm(Err(error.clone())));
    }

    fn abort_queue(&mut self, error: &TurnError, effects: &mut Vec<Effect>) {
        effects.extend(
            self.queue.drain(..).map(|queued| Effect::Abort { turn: queued.turn, error: error.clone() }),
        );
    }
}

fn circuit_open(last: &StartFailure, retry_at: Instant, now: Instant) -> TurnError {
    TurnError::CircuitOpen { last: last.clone(), retry_after: retry_at.saturating_duration_since(now) }
}

/// Whether starting again cannot help before somebody mends the CLI.
fn is_hopeless(failure: &StartFailure) -> bool {
    matches!(failure, StartFailure::Spawn { reason: "not_found" | "eacces" | "enoexec", .. })
}

#[cfg(test)]
mod tests;
