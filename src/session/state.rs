//! The state machine of a session: a pure function of (state, input, now) to the next state and its effects.
//!
//! The machine identifies turns by number and children by generation. It starts nothing, ends nothing and reads no clock:
//! the actor carries out its [`Effect`]s. A message of a former generation changes nothing.
//!
//! ```text
//!              Submit, Warm                Ready              Deliver
//!   ┌─────────┐ ─────────▶ ┌──────────┐ ─────────▶ ┌──────┐ ─────────▶ ┌──────┐
//!   │ Dormant │            │ Starting │            │ Idle │            │ Busy │
//!   └─────────┘ ◀──┐       └──────────┘            └──────┘ ◀───────── └──────┘
//!        ▲         │          ▲  │ │                  │      TurnEnded    │
//!        │         │          │  │ └────────────┐     │                   │
//!        │ Exited, │    Woken │  │ Exited:      │     │ EvictIfIdle,      │ Evict,
//!        │ nothing │          │  │ failed, soon │     │ other settings    │ ShutDown
//!        │ waits   │          │  ▼              ▼     ▼                   │
//!        │         │       ┌─────────┐        ┌──────────┐                │
//!        │         └────── │ Backoff │        │ Stopping │ ◀──────────────┘
//!        │           Evict └─────────┘        └──────────┘
//!        │                                         │ Exited: Starting again if a turn waits
//!        └─────────────────────────────────────────┘
//!
//!   Exited unasked, from Starting, Idle or Busy: Starting at once, Backoff, or Failed when the circuit opens.
//!   Failed: refuses until `retry_at`; the next Submit or Warm leads to Starting.
//! ```

use std::collections::VecDeque;

use tokio::time::Instant;

use super::conclude::ExitKind;
use super::restart::{Failures, RestartDecision};
use crate::config::RestartConfig;
use crate::error::{StartFailure, TurnError};
use crate::model::SessionState;
use crate::model::ids::{Generation, TurnId};

/// Pause after a start that cannot succeed before the CLI is repaired (missing, not executable). Only a turn repeats
/// such a start: no storm, and a repaired CLI is found within a second.
const HOPELESS_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Hash of the settings that a child is started with.
pub(crate) type SettingsHash = u64;

/// A turn that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueuedTurn {
    pub(crate) turn: TurnId,
    /// The settings that the child must have; `None`: any.
    pub(crate) settings_hash: Option<SettingsHash>,
    /// The turn brings a history that a child must be started with if the conversation has no context.
    pub(crate) brings_history: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
enum Phase {
    #[default]
    Dormant,
    Starting {
        generation: Generation,
    },
    Idle {
        generation: Generation,
    },
    Busy {
        generation: Generation,
        turn: TurnId,
    },
    Stopping {
        generation: Generation,
    },
    Backoff {
        until: Instant,
    },
    Failed {
        last: StartFailure,
        retry_at: Instant,
    },
}

/// Input of the machine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    /// A turn was accepted.
    Submit(QueuedTurn),
    /// The reader of a turn is gone.
    Cancel(TurnId),
    /// A caller requests a child that is ready.
    Warm,
    /// Interrupt the running turn; its child stays.
    Interrupt,
    /// Stop the child, if nothing needs it.
    EvictIfIdle,
    /// Stop the child, also from a running turn; the next one serves the turns that wait.
    Evict,
    /// Stop the child and start none again. Turns are refused with this error.
    ShutDown(TurnError),
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

/// Effect that the actor carries out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// Start a child.
    Start { generation: Generation, settings_hash: SettingsHash, restart: bool },
    /// Deliver a turn to the child.
    Deliver { generation: Generation, turn: TurnId },
    /// Interrupt the child's turn because its reader is gone.
    CancelRunning { generation: Generation, turn: TurnId },
    /// Interrupt the child's turn; its reader gets the outcome.
    InterruptRunning { generation: Generation, turn: TurnId },
    /// Stop the child.
    Stop { generation: Generation },
    /// End a turn that the child has not seen.
    Abort { turn: TurnId, error: TurnError },
    /// Call again with [`Input::Woken`].
    WakeAt(Instant),
    /// Answer the callers that wait for a child that is ready.
    AnswerWarm(Result<(), TurnError>),
    /// Answer the callers that wait for the end of the child.
    AnswerGone,
    /// The circuit was opened.
    CircuitOpened,
}

/// The state of one session.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Machine {
    phase: Phase,
    queue: VecDeque<QueuedTurn>,
    generation: Generation,
    /// What the current or the next child is started with.
    settings_hash: SettingsHash,
    /// The conversation holds earlier turns.
    has_context: bool,
    /// The turn whose history the child was started with.
    offered: Option<TurnId>,
    /// The child works of its own accord.
    active: bool,
    warm_wanted: bool,
    /// What turns are refused with since the session was shut down.
    refusal: Option<TurnError>,
    failures: Failures,
}

impl Machine {
    /// A session without a child, whose last child was of `generation` and was started with `settings_hash`.
    pub(crate) fn new(generation: Generation, settings_hash: SettingsHash, has_context: bool) -> Self {
        Self { generation, settings_hash, has_context, ..Self::default() }
    }

    /// The conversation has gained context, or lost it.
    pub(crate) fn set_context(&mut self, has_context: bool) {
        self.has_context = has_context;
    }

    /// The child has other settings now, or the next one gets them.
    pub(crate) fn set_settings(&mut self, settings_hash: SettingsHash) {
        self.settings_hash = settings_hash;
    }

    pub(crate) fn public_state(&self) -> SessionState {
        match self.phase {
            Phase::Dormant => SessionState::Dormant,
            Phase::Starting { .. } => SessionState::Starting,
            Phase::Idle { .. } => SessionState::Idle,
            Phase::Busy { .. } => SessionState::Busy,
            Phase::Stopping { .. } => SessionState::Stopping,
            Phase::Backoff { .. } => SessionState::Backoff,
            Phase::Failed { .. } => SessionState::Failed,
        }
    }

    /// When an open circuit may be tried again.
    pub(crate) fn circuit_until(&self) -> Option<Instant> {
        match self.phase {
            Phase::Failed { retry_at, .. } => Some(retry_at),
            _ => None,
        }
    }

    /// The turn that runs.
    pub(crate) fn running(&self) -> Option<TurnId> {
        match self.phase {
            Phase::Busy { turn, .. } => Some(turn),
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

    /// Whether the child has nothing to do.
    pub(crate) fn may_be_evicted(&self) -> bool {
        matches!(self.phase, Phase::Idle { .. }) && self.queue.is_empty() && !self.active
    }

    /// Whether the session may leave memory: no child, none on its way, no turn.
    pub(crate) fn is_at_rest(&self, now: Instant) -> bool {
        let rests = match self.phase {
            Phase::Dormant => true,
            // A circuit that is open must stay known until it may be tried again.
            Phase::Failed { retry_at, .. } => retry_at <= now,
            _ => false,
        };
        rests && self.queue.is_empty()
    }

    /// Takes an input; returns its effects. `jitter` in 0..1.
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
                if let Phase::Busy { generation, turn } = self.phase {
                    effects.push(Effect::InterruptRunning { generation, turn });
                }
            }
            Input::EvictIfIdle => {
                if self.may_be_evicted() {
                    self.stop(&mut effects);
                }
            }
            Input::Evict => self.stop(&mut effects),
            Input::ShutDown(refusal) => {
                self.refusal = Some(refusal.clone());
                self.give_up(&refusal, &mut effects);
                self.stop(&mut effects);
            }
            Input::Ready(generation) if generation == self.generation => {
                if matches!(self.phase, Phase::Starting { .. }) {
                    self.phase = Phase::Idle { generation };
                    self.warm_wanted = false;
                    effects.push(Effect::AnswerWarm(Ok(())));
                    self.dispatch(&mut effects);
                }
            }
            Input::Active(generation, active) if generation == self.generation => self.active = active,
            Input::TurnEnded { generation, turn, answered, exhausted } if generation == self.generation => {
                if answered {
                    self.failures.succeeded();
                }
                if self.phase == (Phase::Busy { generation, turn }) {
                    self.phase = Phase::Idle { generation };
                    if exhausted { self.stop(&mut effects) } else { self.dispatch(&mut effects) }
                }
            }
            Input::Exited { generation, kind, retry } if generation == self.generation => {
                self.exited(kind, retry, now, jitter, config, &mut effects);
            }
            Input::Woken => {
                if matches!(self.phase, Phase::Backoff { until } if until <= now) {
                    self.start(true, &mut effects);
                }
            }
            // Late events of a former child.
            Input::Ready(_) | Input::Active(..) | Input::TurnEnded { .. } | Input::Exited { .. } => {}
        }
        effects
    }

    fn submit(&mut self, queued: QueuedTurn, now: Instant, effects: &mut Vec<Effect>) {
        if let Some(error) = self.refusal.clone() {
            return effects.push(Effect::Abort { turn: queued.turn, error });
        }
        if let Phase::Failed { last, retry_at } = &self.phase
            && *retry_at > now
        {
            let error = circuit_open(last, *retry_at, now);
            return effects.push(Effect::Abort { turn: queued.turn, error });
        }
        self.queue.push_back(queued);
        match self.phase {
            Phase::Dormant | Phase::Failed { .. } => self.start(false, effects),
            Phase::Idle { .. } => self.dispatch(effects),
            Phase::Starting { .. } | Phase::Busy { .. } | Phase::Stopping { .. } | Phase::Backoff { .. } => {}
        }
    }

    fn cancel(&mut self, turn: TurnId, effects: &mut Vec<Effect>) {
        if let Some(index) = self.queue.iter().position(|queued| queued.turn == turn) {
            self.queue.remove(index);
            effects.push(Effect::Abort { turn, error: TurnError::Cancelled });
        } else if let Phase::Busy { generation, turn: running } = self.phase
            && running == turn
        {
            effects.push(Effect::CancelRunning { generation, turn });
        }
    }

    fn warm(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if let Some(error) = self.refusal.clone() {
            return effects.push(Effect::AnswerWarm(Err(error)));
        }
        match &self.phase {
            Phase::Idle { .. } | Phase::Busy { .. } => effects.push(Effect::AnswerWarm(Ok(()))),
            Phase::Failed { last, retry_at } if *retry_at > now => {
                effects.push(Effect::AnswerWarm(Err(circuit_open(last, *retry_at, now))));
            }
            Phase::Dormant | Phase::Failed { .. } => {
                self.warm_wanted = true;
                self.start(false, effects);
            }
            Phase::Starting { .. } | Phase::Stopping { .. } | Phase::Backoff { .. } => {
                self.warm_wanted = true
            }
        }
    }

    fn stop(&mut self, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Starting { generation } | Phase::Idle { generation } | Phase::Busy { generation, .. } => {
                self.phase = Phase::Stopping { generation };
                effects.push(Effect::Stop { generation });
            }
            Phase::Stopping { .. } => {}
            Phase::Backoff { .. } => {
                self.phase = Phase::Dormant;
                effects.push(Effect::AnswerGone);
                self.start_if_wanted(effects);
            }
            Phase::Dormant | Phase::Failed { .. } => effects.push(Effect::AnswerGone),
        }
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
        let was_stopping = matches!(self.phase, Phase::Stopping { .. });
        self.phase = Phase::Dormant;
        self.active = false;
        self.queue.extend(retry);
        // A turn that is tried again goes before those that came after it.
        self.queue.rotate_right(usize::from(retry.is_some()));
        effects.push(Effect::AnswerGone);
        if let Some(error) = self.refusal.clone() {
            return self.give_up(&error, effects);
        }
        match kind {
            ExitKind::NotAdmitted(error) => self.give_up(&error, effects),
            ExitKind::Fenced => self.give_up(&TurnError::NodeFenced { in_turn: false }, effects),
            ExitKind::NotStarted(failure) if is_hopeless(&failure) => {
                self.give_up(&TurnError::NotStarted(failure.clone()), effects);
                self.phase = Phase::Failed { last: failure, retry_at: now + HOPELESS_PAUSE };
            }
            ExitKind::NotStarted(failure @ StartFailure::NeverReady { .. }) => {
                // It took all the time that a start may take: turns do not wait for another one.
                self.give_up(&TurnError::NotStarted(failure.clone()), effects);
                self.failed(failure, now, jitter, config, effects);
            }
            // A crash during a stop is a stop.
            ExitKind::Crashed(_) if was_stopping => self.start_if_wanted(effects),
            ExitKind::Requested | ExitKind::Outgrown => self.start_if_wanted(effects),
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
        match self.failures.failed(now, jitter, config) {
            RestartDecision::Restart(pause) if pause.is_zero() => self.start(true, effects),
            RestartDecision::Restart(pause) => {
                let until = now + pause;
                self.phase = Phase::Backoff { until };
                effects.push(Effect::WakeAt(until));
            }
            RestartDecision::Open(pause) => {
                let retry_at = now + pause;
                effects.push(Effect::CircuitOpened);
                self.give_up(&circuit_open(&failure, retry_at, now), effects);
                self.phase = Phase::Failed { last: failure, retry_at };
            }
        }
    }

    /// The settings of the last waiting turn that brings any.
    pub(super) fn last_wanted(&self) -> Option<SettingsHash> {
        self.queue.iter().rev().find_map(|queued| queued.settings_hash)
    }

    fn start_if_wanted(&mut self, effects: &mut Vec<Effect>) {
        if self.refusal.is_none() && (self.warm_wanted || !self.queue.is_empty()) {
            self.start(false, effects);
        }
    }

    fn start(&mut self, restart: bool, effects: &mut Vec<Effect>) {
        self.generation = self.generation.next();
        self.offered = self.next_turn();
        if let Some(front) = self.queue.front() {
            self.settings_hash = front.settings_hash.unwrap_or(self.settings_hash);
        }
        self.phase = Phase::Starting { generation: self.generation };
        effects.push(Effect::Start {
            generation: self.generation,
            settings_hash: self.settings_hash,
            restart,
        });
    }

    /// Delivers the first turn of the queue to an idle child, or replaces the child if the turn needs another one.
    fn dispatch(&mut self, effects: &mut Vec<Effect>) {
        let Phase::Idle { generation } = self.phase else { return };
        let Some(queued) = self.queue.front().copied() else { return };
        let is_offered = self.offered == Some(queued.turn);
        let brings_history = queued.brings_history && !self.has_context && !is_offered;
        if brings_history || queued.settings_hash.is_some_and(|wanted| wanted != self.settings_hash) {
            return self.stop(effects);
        }
        self.queue.pop_front();
        self.phase = Phase::Busy { generation, turn: queued.turn };
        effects.push(Effect::Deliver { generation, turn: queued.turn });
    }

    /// Refuses everybody who waits for a child.
    fn give_up(&mut self, error: &TurnError, effects: &mut Vec<Effect>) {
        let abort = |queued: QueuedTurn| Effect::Abort { turn: queued.turn, error: error.clone() };
        effects.extend(self.queue.drain(..).map(abort));
        if std::mem::take(&mut self.warm_wanted) || self.refusal.is_none() {
            effects.push(Effect::AnswerWarm(Err(error.clone())));
        }
    }
}

fn circuit_open(last: &StartFailure, retry_at: Instant, now: Instant) -> TurnError {
    TurnError::CircuitOpen { last: last.clone(), retry_after: retry_at.saturating_duration_since(now) }
}

/// Whether no start can succeed before the CLI is repaired.
fn is_hopeless(failure: &StartFailure) -> bool {
    matches!(failure, StartFailure::Spawn { reason: "not_found" | "eacces" | "enoexec", .. })
}

#[cfg(test)]
mod tests;
