//! Every input in every reachable state, for a session of a few turns. The search ends when no new state is found.

use std::collections::{HashSet, VecDeque};

use super::*;

/// Turns of a session: one that runs and one that waits behind it.
const TURNS: usize = 2;
/// Shorter than each pause of an open circuit, so that the ages of failures stay few.
const WINDOW: Duration = Duration::from_millis(500);
const CIRCUIT_PAUSE: Duration = Duration::from_secs(2);
/// Steps within which an undisturbed session comes to rest.
const REST_WITHIN: usize = 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Unsent,
    Queued { brings_history: bool },
    Running { brings_history: bool },
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Child {
    None,
    Starting,
    Ready,
}

/// A session together with the world that it acts upon.
#[derive(Clone)]
struct World {
    machine: Machine,
    now: Instant,
    child: Child,
    /// The child was asked to stop.
    stopping: bool,
    turns: [Turn; TURNS],
    waits_for_warm: bool,
    waits_for_gone: bool,
}

/// Something that can happen.
#[derive(Debug, Clone)]
enum Step {
    Feed(Input),
    /// The turn ends, and its child lives.
    TurnEnds {
        answered: bool,
        exhausted: bool,
    },
    /// The child ends; `retry`: its turn goes to the next one.
    ChildEnds {
        kind: ExitKind,
        retry: bool,
    },
    ContextLost,
    /// Time passes: up to the time that the machine waits for, or until failures no longer count.
    Pass(Duration),
}

impl World {
    fn new() -> Self {
        Self {
            machine: Machine::new(Generation(0), SETTINGS, false),
            now: Instant::now(),
            child: Child::None,
            stopping: false,
            turns: [Turn::Unsent; TURNS],
            waits_for_warm: false,
            waits_for_gone: false,
        }
    }

    fn config() -> RestartConfig {
        RestartConfig {
            intensity: 2,
            window: WINDOW,
            circuit_pause: CIRCUIT_PAUSE,
            ..RestartConfig::default()
        }
    }

    /// Equal for states that differ in nothing but the date and the number of former children.
    fn key(&self) -> String {
        let machine = &self.machine;
        let phase = match &machine.phase {
            Phase::Backoff { until } => format!("backoff {:?}", until.saturating_duration_since(self.now)),
            Phase::Failed { last, retry_at } => {
                format!("failed {last:?} {:?}", retry_at.saturating_duration_since(self.now))
            }
            Phase::Busy { turn, .. } => format!("busy {turn:?}"),
            _ => format!("{:?}", machine.public_state()),
        };
        format!(
            "{phase} {:?} {} {} {:?} {} {} {} {:?} | {:?} {} {:?} {} {}",
            machine.queue,
            machine.settings_hash,
            machine.has_context,
            machine.offered,
            machine.active,
            machine.warm_wanted,
            machine.refusal.is_some(),
            machine.failures.summary(self.now, WINDOW),
            self.child,
            self.stopping,
            self.turns,
            self.waits_for_warm,
            self.waits_for_gone,
        )
    }

    fn running(&self) -> Option<(usize, bool)> {
        self.turns.iter().enumerate().find_map(|(at, turn)| match turn {
            Turn::Running { brings_history } => Some((at, *brings_history)),
            _ => None,
        })
    }

    /// Everything that can happen now.
    fn steps(&self) -> Vec<Step> {
        let generation = self.machine.generation();
        let mut steps = vec![
            Step::Feed(Input::Warm),
            Step::Feed(Input::Interrupt),
            Step::Feed(Input::EvictIfIdle),
            Step::Feed(Input::Evict),
            Step::Feed(Input::ShutDown(TurnError::Draining)),
            Step::Feed(Input::Woken),
            Step::Pass(WINDOW + Duration::from_millis(1)),
        ];
        steps.extend((0..TURNS).map(|at| Step::Feed(Input::Cancel(id(at)))));
        if let Some(at) = self.turns.iter().position(|turn| *turn == Turn::Unsent) {
            for (settings_hash, brings_history) in [(None, false), (Some(SETTINGS + 1), false), (None, true)]
            {
                let turn = QueuedTurn { turn: id(at), settings_hash, brings_history };
                steps.push(Step::Feed(Input::Submit(turn)));
            }
        }
        match &self.machine.phase {
            Phase::Backoff { until: at } | Phase::Failed { retry_at: at, .. } if *at > self.now => {
                steps.push(Step::Pass(*at - self.now));
            }
            _ => {}
        }
        let mut ends = Vec::new();
        if self.child != Child::None {
            ends.extend([crash(), ExitKind::Fenced]);
        }
        if self.stopping {
            ends.push(ExitKind::Requested);
        }
        match self.child {
            Child::None => {}
            Child::Starting => {
                steps.push(Step::Feed(Input::Ready(generation)));
                steps.push(Step::ContextLost);
                ends.extend([
                    missing(),
                    ExitKind::NotStarted(StartFailure::NeverReady { limit: WINDOW }),
                    ExitKind::NotAdmitted(TurnError::Cancelled),
                ]);
            }
            Child::Ready => {
                ends.push(ExitKind::Outgrown);
                steps.extend([true, false].map(|active| Step::Feed(Input::Active(generation, active))));
                if self.running().is_some() {
                    for (answered, exhausted) in [(true, false), (false, false), (false, true)] {
                        steps.push(Step::TurnEnds { answered, exhausted });
                    }
                }
            }
        }
        for kind in ends {
            steps.push(Step::ChildEnds { kind: kind.clone(), retry: false });
            if self.running().is_some() {
                steps.push(Step::ChildEnds { kind, retry: true });
            }
        }
        steps
    }

    fn take(&mut self, step: &Step) {
        let generation = self.machine.generation();
        match step.clone() {
            Step::Feed(input) => self.feed(input),
            Step::Pass(time) => self.now += time,
            Step::ContextLost => self.machine.set_context(false),
            Step::TurnEnds { answered, exhausted } => {
                let (at, _) = self.running().unwrap();
                self.turns[at] = Turn::Done;
                self.machine.set_context(true);
                self.feed(Input::TurnEnded { generation, turn: id(at), answered, exhausted });
            }
            Step::ChildEnds { kind, retry } => {
                let retry = self.running().and_then(|(at, brings_history)| {
                    self.turns[at] = if retry { Turn::Queued { brings_history } } else { Turn::Done };
                    retry.then_some(QueuedTurn { turn: id(at), settings_hash: None, brings_history })
                });
                (self.child, self.stopping) = (Child::None, false);
                self.feed(Input::Exited { generation, kind, retry });
            }
        }
    }

    fn feed(&mut self, input: Input) {
        match &input {
            Input::Submit(queued) => {
                self.turns[index(queued.turn)] = Turn::Queued { brings_history: queued.brings_history };
            }
            Input::Warm => self.waits_for_warm = true,
            Input::Evict | Input::ShutDown(_) => self.waits_for_gone = true,
            Input::Ready(_) => self.child = Child::Ready,
            _ => {}
        }
        let had_turn = self.running().is_some();
        let was_open = matches!(&self.machine.phase, Phase::Failed { retry_at, .. } if *retry_at > self.now);
        let effects = self.machine.next(input.clone(), self.now, 1.0, &Self::config());
        if input == Input::EvictIfIdle && had_turn {
            assert_eq!(effects, [], "a busy turn is evicted");
        }
        for effect in effects {
            self.carry_out(effect, &input, was_open);
        }
    }

    fn carry_out(&mut self, effect: Effect, input: &Input, was_open: bool) {
        let current = self.machine.generation();
        match effect {
            Effect::Start { generation, .. } => {
                assert_eq!((self.child, generation), (Child::None, current), "a second child");
                assert!(!was_open, "a start while the circuit is open");
                self.child = Child::Starting;
            }
            Effect::Deliver { generation, turn } => {
                assert!(self.child == Child::Ready && !self.stopping && generation == current);
                assert_eq!(self.running(), None, "two turns at once");
                let Turn::Queued { brings_history } = self.turns[index(turn)] else {
                    panic!("{turn:?} does not wait")
                };
                self.turns[index(turn)] = Turn::Running { brings_history };
            }
            Effect::CancelRunning { generation, turn } | Effect::InterruptRunning { generation, turn } => {
                assert_eq!((generation, self.running().map(|(at, _)| id(at))), (current, Some(turn)));
            }
            Effect::Stop { generation } => {
                assert!(self.child != Child::None && !self.stopping && generation == current);
                self.stopping = true;
            }
            Effect::Abort { turn, error } => {
                assert!(
                    matches!(self.turns[index(turn)], Turn::Queued { .. }),
                    "a second outcome of {turn:?}"
                );
                if was_open && matches!(input, Input::Submit(_)) && self.machine.refusal.is_none() {
                    assert!(matches!(error, TurnError::CircuitOpen { .. }), "{error:?}");
                }
                self.turns[index(turn)] = Turn::Done;
            }
            Effect::WakeAt(at) => assert!(at > self.now),
            Effect::AnswerWarm(result) => {
                assert!(result.is_err() || self.child == Child::Ready);
                self.waits_for_warm = false;
            }
            Effect::AnswerGone => self.waits_for_gone = false,
            Effect::CircuitOpened => assert_eq!(self.machine.public_state(), SessionState::Failed),
        }
    }

    /// An event of a former child changes nothing.
    fn check_late_events(&self) {
        let former = Generation(self.machine.generation().0.wrapping_sub(1));
        let turn = self.running().map_or(id(0), |(at, _)| id(at));
        for late in [
            Input::Ready(former),
            Input::Active(former, true),
            Input::TurnEnded { generation: former, turn, answered: false, exhausted: true },
            Input::Exited { generation: former, kind: crash(), retry: None },
        ] {
            let mut world = self.clone();
            assert_eq!(world.machine.next(late, self.now, 1.0, &Self::config()), []);
            assert_eq!(world.key(), self.key());
        }
    }

    /// Left alone with a child that works, the session answers everything and comes to rest.
    fn check_rest(mut self) {
        for _ in 0..REST_WITHIN {
            let generation = self.machine.generation();
            let step = match (&self.machine.phase, self.child) {
                (Phase::Backoff { until }, Child::None) if *until > self.now => Step::Pass(*until - self.now),
                (Phase::Backoff { .. }, Child::None) => Step::Feed(Input::Woken),
                (_, Child::None) => break,
                _ if self.stopping => Step::ChildEnds { kind: ExitKind::Requested, retry: false },
                (_, Child::Starting) => Step::Feed(Input::Ready(generation)),
                (_, Child::Ready) if self.running().is_some() => {
                    Step::TurnEnds { answered: true, exhausted: false }
                }
                (_, Child::Ready) => break,
            };
            self.take(&step);
        }
        let is_settled = |turn: &Turn| matches!(turn, Turn::Unsent | Turn::Done);
        assert!(self.turns.iter().all(is_settled), "a turn without an outcome: {}", self.key());
        // After a shutdown the actor ends, which answers callers that wait for a child.
        let waits_for_warm = self.waits_for_warm && self.machine.refusal.is_none();
        assert!(!waits_for_warm && !self.waits_for_gone, "a caller without an answer: {}", self.key());
        assert_eq!(self.machine.queue_depth(), 0);
    }
}

fn id(at: usize) -> TurnId {
    TurnId(at as u64 + 1)
}

fn index(turn: TurnId) -> usize {
    usize::try_from(turn.0).unwrap() - 1
}

#[test]
fn every_input_in_every_state_keeps_the_rules() {
    let first = World::new();
    let (mut seen, mut next) = (HashSet::from([first.key()]), VecDeque::from([first]));
    let mut phases = HashSet::new();
    while let Some(world) = next.pop_front() {
        phases.insert(world.machine.public_state());
        world.check_late_events();
        world.clone().check_rest();
        for step in world.steps() {
            let mut after = world.clone();
            after.take(&step);
            if seen.insert(after.key()) {
                next.push_back(after);
            }
        }
    }
    assert_eq!(phases.len(), 7, "a state was not reached: {phases:?}");
    assert!(seen.len() > 1000, "{} states", seen.len());
}
