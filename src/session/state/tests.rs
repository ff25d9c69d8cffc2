use proptest::prelude::*;
use tokio::time::{Duration, Instant};

use super::*;

mod evictions;
mod reachable;

/// A machine and the clock of its test.
struct Bench {
    machine: Machine,
    now: Instant,
    config: RestartConfig,
}

const SETTINGS: SettingsHash = 7;

impl Bench {
    fn new() -> Self {
        let machine = Machine::new(Generation(0), SETTINGS, false);
        Self { machine, now: Instant::now(), config: RestartConfig::default() }
    }

    fn feed(&mut self, input: Input) -> Vec<Effect> {
        self.machine.next(input, self.now, 1.0, &self.config)
    }

    fn idle() -> Self {
        let mut bench = Self::new();
        bench.feed(Input::Warm);
        bench.feed(Input::Ready(Generation(1)));
        assert_eq!(bench.machine.public_state(), SessionState::Idle);
        bench
    }

    fn busy() -> Self {
        let mut bench = Self::idle();
        bench.feed(submit(1));
        assert_eq!(bench.machine.public_state(), SessionState::Busy);
        bench
    }

    fn state(&self) -> SessionState {
        self.machine.public_state()
    }
}

fn queued(turn: u64) -> QueuedTurn {
    QueuedTurn { turn: TurnId(turn), settings_hash: None, brings_history: false }
}

fn submit(turn: u64) -> Input {
    Input::Submit(queued(turn))
}

fn start(generation: u64, restart: bool) -> Effect {
    Effect::Start { generation: Generation(generation), settings_hash: SETTINGS, restart }
}

fn deliver(generation: u64, turn: u64) -> Effect {
    Effect::Deliver { generation: Generation(generation), turn: TurnId(turn) }
}

fn ended(generation: u64, turn: u64) -> Input {
    Input::TurnEnded {
        generation: Generation(generation),
        turn: TurnId(turn),
        answered: true,
        exhausted: false,
    }
}

fn gone(generation: u64, kind: ExitKind) -> Input {
    Input::Exited { generation: Generation(generation), kind, retry: None }
}

fn crash() -> ExitKind {
    ExitKind::Crashed(StartFailure::ExitedEarly { exit: "signal 9".into(), stderr: String::new() })
}

fn missing() -> ExitKind {
    ExitKind::NotStarted(StartFailure::Spawn { reason: "not_found", message: "gone".into(), source: None })
}

#[test]
fn first_turn_starts_a_child_next_finds_it_warm() {
    let mut bench = Bench::new();
    assert_eq!(bench.feed(submit(1)), [start(1, false)]);
    assert_eq!(bench.feed(Input::Ready(Generation(1))), [Effect::AnswerWarm(Ok(())), deliver(1, 1)]);
    assert_eq!(bench.feed(submit(2)), []);
    assert_eq!(bench.feed(ended(1, 1)), [deliver(1, 2)]);
    assert_eq!(bench.feed(ended(1, 2)), []);
    assert_eq!(bench.state(), SessionState::Idle);
}

#[test]
fn a_busy_session_is_not_evicted_and_an_idle_one_is() {
    let mut bench = Bench::busy();
    assert_eq!(bench.feed(Input::EvictIfIdle), []);
    bench.feed(ended(1, 1));
    bench.feed(Input::Active(Generation(1), true));
    assert_eq!(bench.feed(Input::EvictIfIdle), [], "it works of its own accord");
    bench.feed(Input::Active(Generation(1), false));
    assert_eq!(bench.feed(Input::EvictIfIdle), [Effect::Stop { generation: Generation(1) }]);
    assert_eq!(bench.feed(gone(1, ExitKind::Requested)), [Effect::AnswerGone]);
    assert_eq!(bench.state(), SessionState::Dormant);
}

#[test]
fn turn_during_eviction_is_served_by_the_next_child() {
    let mut bench = Bench::idle();
    bench.feed(Input::EvictIfIdle);
    assert_eq!(bench.feed(submit(1)), []);
    assert_eq!(bench.feed(gone(1, ExitKind::Requested)), [Effect::AnswerGone, start(2, false)]);
    assert_eq!(bench.feed(Input::Ready(Generation(2))).last(), Some(&deliver(2, 1)));
}

#[test]
fn late_news_of_a_former_child_changes_nothing() {
    let mut bench = Bench::busy();
    bench.feed(gone(1, crash()));
    for late in
        [Input::Ready(Generation(1)), ended(1, 1), gone(1, crash()), Input::Active(Generation(1), true)]
    {
        assert_eq!(bench.feed(late), []);
        assert_eq!(bench.state(), SessionState::Starting);
    }
}

#[test]
fn crashed_child_restarts_until_the_circuit_opens() {
    let mut bench = Bench::idle();
    assert_eq!(bench.feed(gone(1, crash())), [Effect::AnswerGone, start(2, true)]);
    for generation in 2..=5 {
        let effects = bench.feed(gone(generation, crash()));
        let Some(Effect::WakeAt(at)) = effects.last() else { panic!("{effects:?}") };
        assert_eq!(bench.state(), SessionState::Backoff);
        assert_eq!(bench.feed(Input::Woken), [], "too early");
        bench.now = *at;
        assert_eq!(bench.feed(Input::Woken), [start(generation + 1, true)]);
    }
    bench.feed(submit(9));
    let effects = bench.feed(gone(6, crash()));
    assert!(effects.contains(&Effect::CircuitOpened));
    assert!(matches!(
        &effects[..],
        [.., Effect::Abort { error: TurnError::CircuitOpen { .. }, .. }, Effect::AnswerWarm(_)]
    ));
    assert_eq!(bench.state(), SessionState::Failed);
}

#[test]
fn open_circuit_refuses_until_one_try_after_the_pause() {
    let mut bench = Bench::idle();
    bench.config.intensity = 0;
    bench.feed(gone(1, crash()));
    let refused = bench.feed(submit(1));
    let Some(Effect::Abort { error: TurnError::CircuitOpen { retry_after, .. }, .. }) = refused.first()
    else {
        panic!("{refused:?}")
    };
    assert_eq!(*retry_after, bench.config.circuit_pause);
    assert!(!bench.machine.is_at_rest(bench.now));
    bench.now += bench.config.circuit_pause;
    assert!(bench.machine.is_at_rest(bench.now));
    assert_eq!(bench.feed(submit(2)), [start(2, false)]);
    let effects = bench.feed(gone(2, crash()));
    assert!(effects.contains(&Effect::CircuitOpened), "one failure is enough: {effects:?}");
}

#[test]
fn missing_cli_fails_the_turn_and_is_retried_soon() {
    let mut bench = Bench::new();
    bench.feed(submit(1));
    let effects = bench.feed(gone(1, missing()));
    assert!(matches!(effects[1], Effect::Abort { error: TurnError::NotStarted(_), .. }), "{effects:?}");
    assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Start { .. })).count(), 0);
    bench.now += HOPELESS_PAUSE;
    assert_eq!(bench.feed(submit(2)), [start(2, false)]);
}

#[test]
fn fenced_child_is_not_replaced() {
    let mut bench = Bench::idle();
    bench.feed(submit(1));
    bench.feed(submit(2));
    let refused = TurnError::NodeFenced { in_turn: false };
    assert_eq!(
        bench.feed(gone(1, ExitKind::Fenced)),
        [
            Effect::AnswerGone,
            Effect::Abort { turn: TurnId(2), error: refused.clone() },
            Effect::AnswerWarm(Err(refused)),
        ]
    );
    assert_eq!(bench.state(), SessionState::Dormant);
    bench.now += Duration::from_secs(60);
    assert_eq!(bench.feed(Input::Woken), []);
    // The contact may be back. The end of the former child was no failure.
    assert_eq!(bench.feed(submit(3)), [start(2, false)]);
}

#[test]
fn turn_without_output_is_retried_before_later_turns() {
    let mut bench = Bench::busy();
    bench.feed(submit(2));
    let input = Input::Exited { generation: Generation(1), kind: crash(), retry: Some(queued(1)) };
    assert_eq!(bench.feed(input), [Effect::AnswerGone, start(2, true)]);
    assert_eq!(bench.feed(Input::Ready(Generation(2))).last(), Some(&deliver(2, 1)));
}

#[test]
fn turn_for_another_child_restarts_between_turns() {
    let mut bench = Bench::busy();
    bench.feed(Input::Submit(QueuedTurn { turn: TurnId(2), settings_hash: Some(8), brings_history: false }));
    assert_eq!(bench.feed(ended(1, 1)), [Effect::Stop { generation: Generation(1) }]);
    let started = Effect::Start { generation: Generation(2), settings_hash: 8, restart: false };
    assert_eq!(bench.feed(gone(1, ExitKind::Requested)), [Effect::AnswerGone, started]);
    bench.feed(Input::Ready(Generation(2)));
    bench.feed(ended(2, 2));
    let same = Input::Submit(QueuedTurn { turn: TurnId(3), settings_hash: Some(8), brings_history: false });
    assert_eq!(bench.feed(same), [deliver(2, 3)]);
}

#[test]
fn history_restarts_a_child_without_context() {
    let brings = |turn| Input::Submit(QueuedTurn { brings_history: true, ..queued(turn) });
    let mut bench = Bench::idle();
    assert_eq!(bench.feed(brings(1)), [Effect::Stop { generation: Generation(1) }]);
    assert_eq!(bench.feed(gone(1, ExitKind::Requested)), [Effect::AnswerGone, start(2, false)]);
    assert_eq!(bench.machine.next_turn(), Some(TurnId(1)));
    // Whether or not it could be brought in, the child is not started a second time for it.
    let ready = bench.feed(Input::Ready(Generation(2)));
    assert!(ready.contains(&deliver(2, 1)), "{ready:?}");
    bench.machine.set_context(true);
    bench.feed(brings(2));
    let next = bench.feed(ended(2, 1));
    assert_eq!(next, [deliver(2, 2)], "a conversation with context goes on in its child");
    // It was lost while a turn waited.
    bench.feed(brings(3));
    bench.machine.set_context(false);
    assert_eq!(bench.feed(ended(2, 2)), [Effect::Stop { generation: Generation(2) }]);
}

#[test]
fn child_of_a_cancelled_history_is_not_anothers() {
    let brings = |turn| QueuedTurn { brings_history: true, ..queued(turn) };
    let mut bench = Bench::new();
    bench.feed(Input::Submit(brings(1)));
    bench.feed(Input::Ready(Generation(1)));
    bench.feed(Input::Submit(brings(2)));
    // Turn 1 goes first again, with a child that is started for it, and is cancelled.
    bench.feed(Input::Exited { generation: Generation(1), kind: crash(), retry: Some(brings(1)) });
    bench.feed(Input::Cancel(TurnId(1)));
    let generation = bench.machine.generation();
    let ready = bench.feed(Input::Ready(generation));
    assert!(ready.contains(&Effect::Stop { generation }), "turn 2 needs its own: {ready:?}");
}

#[test]
fn cancelled_waiting_turn_never_reaches_the_child() {
    let mut bench = Bench::busy();
    bench.feed(submit(2));
    bench.feed(submit(3));
    let abort = Effect::Abort { turn: TurnId(2), error: TurnError::Cancelled };
    assert_eq!(bench.feed(Input::Cancel(TurnId(2))), [abort]);
    let running = Effect::CancelRunning { generation: Generation(1), turn: TurnId(1) };
    assert_eq!(bench.feed(Input::Cancel(TurnId(1))), [running]);
    assert_eq!(bench.feed(ended(1, 1)), [deliver(1, 3)]);
}

#[test]
fn an_exhausted_child_is_replaced() {
    let mut bench = Bench::busy();
    bench.feed(submit(2));
    let exhausted =
        Input::TurnEnded { generation: Generation(1), turn: TurnId(1), answered: false, exhausted: true };
    assert_eq!(bench.feed(exhausted), [Effect::Stop { generation: Generation(1) }]);
    assert_eq!(bench.feed(gone(1, ExitKind::Requested)), [Effect::AnswerGone, start(2, false)]);
}

#[test]
fn shutdown_refuses_all_turns_and_starts_nothing() {
    let mut bench = Bench::busy();
    bench.feed(submit(2));
    let effects = bench.feed(Input::ShutDown(TurnError::Draining));
    assert_eq!(
        effects,
        [
            Effect::Abort { turn: TurnId(2), error: TurnError::Draining },
            Effect::Stop { generation: Generation(1) }
        ]
    );
    assert_eq!(bench.feed(submit(3)), [Effect::Abort { turn: TurnId(3), error: TurnError::Draining }]);
    assert_eq!(bench.feed(Input::ShutDown(TurnError::Draining)), []);
    assert_eq!(bench.feed(gone(1, crash())), [Effect::AnswerGone]);
    assert_eq!(bench.feed(Input::Warm), [Effect::AnswerWarm(Err(TurnError::Draining))]);
}

/// Who is refused learns why: the session of a deleted user does not stop with its server.
#[test]
fn shutdown_refuses_with_its_reason() {
    let mut bench = Bench::busy();
    let refused = |turn| Effect::Abort { turn: TurnId(turn), error: TurnError::UserDeleted };
    bench.feed(submit(2));
    assert_eq!(
        bench.feed(Input::ShutDown(TurnError::UserDeleted)),
        [refused(2), Effect::Stop { generation: Generation(1) }]
    );
    assert_eq!(bench.feed(submit(3)), [refused(3)]);
    let again = Some(QueuedTurn { turn: TurnId(1), ..queued(1) });
    let exited = Input::Exited { generation: Generation(1), kind: crash(), retry: again };
    assert_eq!(bench.feed(exited), [Effect::AnswerGone, refused(1)]);
    assert_eq!(bench.feed(Input::Warm), [Effect::AnswerWarm(Err(TurnError::UserDeleted))]);
}

#[test]
fn shutting_down_answers_a_waiting_warm() {
    let mut bench = Bench::new();
    bench.feed(Input::Warm);
    let refused = Effect::AnswerWarm(Err(TurnError::Draining));
    assert_eq!(
        bench.feed(Input::ShutDown(TurnError::Draining)),
        [refused, Effect::Stop { generation: Generation(1) }]
    );
    assert_eq!(bench.feed(gone(1, ExitKind::Requested)), [Effect::AnswerGone]);
}

#[test]
fn evicting_where_there_is_no_child_answers_at_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.feed(Input::Evict), [Effect::AnswerGone]);
    let mut bench = Bench::idle();
    bench.feed(gone(1, crash()));
    bench.feed(gone(2, crash()));
    assert_eq!(bench.state(), SessionState::Backoff);
    assert_eq!(bench.feed(Input::Evict), [Effect::AnswerGone]);
    assert_eq!(bench.state(), SessionState::Dormant);
}

/// What a random history may contain. Numbers are made to fit when the step is taken.
#[derive(Debug, Clone)]
enum Step {
    Submit(Option<SettingsHash>),
    Cancel(u64),
    Warm,
    Interrupt,
    EvictIfIdle,
    Evict,
    Ready,
    TurnEnded(bool),
    Gone(u8, bool),
    Late,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::option::of(0u64..3).prop_map(Step::Submit),
        1 => (0u64..20).prop_map(Step::Cancel),
        1 => Just(Step::Warm),
        1 => Just(Step::Interrupt),
        1 => Just(Step::EvictIfIdle),
        1 => Just(Step::Evict),
        4 => Just(Step::Ready),
        4 => any::<bool>().prop_map(Step::TurnEnded),
        2 => (0u8..4, any::<bool>()).prop_map(|(why, retry)| Step::Gone(why, retry)),
        1 => Just(Step::Late),
        2 => (0u64..70_000).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Plays both sides: obeys the effects as the actor would, and checks that no rule is ever broken.
    #[test]
    fn whatever_happens_the_rules_hold(steps in prop::collection::vec(step(), 1..120), drain in any::<bool>()) {
        let mut bench = Bench::new();
        let mut child: Option<Generation> = None;
        let mut running: Option<TurnId> = None;
        let (mut waiting, mut settled) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        let mut next_turn = 0;
        let apply = |bench: &mut Bench, input: Input, child: &mut Option<Generation>, running: &mut Option<TurnId>,
                         waiting: &mut std::collections::BTreeSet<TurnId>, settled: &mut std::collections::BTreeSet<TurnId>| {
            for effect in bench.feed(input) {
                match effect {
                    Effect::Start { generation, .. } => {
                        assert!(child.is_none(), "two children");
                        *child = Some(generation);
                    }
                    Effect::Deliver { generation, turn } => {
                        assert_eq!(*child, Some(generation), "a turn for a child that is not there");
                        assert!(running.is_none(), "two turns at once");
                        assert!(waiting.remove(&turn), "a turn that does not wait");
                        *running = Some(turn);
                    }
                    Effect::Stop { generation } => assert_eq!(*child, Some(generation)),
                    Effect::Abort { turn, .. } => {
                        assert!(waiting.remove(&turn), "a turn ended twice, or after it began");
                        assert!(settled.insert(turn));
                    }
                    _ => {}
                }
            }
        };
        for step in steps {
            let generation = child.unwrap_or_default();
            let input = match step {
                Step::Submit(settings_hash) => {
                    next_turn += 1;
                    waiting.insert(TurnId(next_turn));
                    Input::Submit(QueuedTurn { turn: TurnId(next_turn), settings_hash, brings_history: next_turn.is_multiple_of(3) })
                }
                Step::Cancel(turn) => Input::Cancel(TurnId(turn)),
                Step::Warm => Input::Warm,
                Step::Interrupt => Input::Interrupt,
                Step::EvictIfIdle => {
                    let busy = bench.state() == SessionState::Busy;
                    let effects = bench.feed(Input::EvictIfIdle);
                    prop_assert!(!busy || effects.is_empty(), "a busy turn was evicted");
                    continue;
                }
                Step::Evict => Input::Evict,
                Step::Ready if child.is_some() && running.is_none() => Input::Ready(generation),
                Step::TurnEnded(answered) => {
                    let Some(turn) = running.take() else { continue };
                    settled.insert(turn);
                    Input::TurnEnded { generation, turn, answered, exhausted: false }
                }
                Step::Gone(why, again) if child.take().is_some() => {
                    let retry = running.take().and_then(|turn| if again {
                        waiting.insert(turn);
                        Some(queued(turn.0))
                    } else {
                        settled.insert(turn);
                        None
                    });
                    let kind = match why { 0 => ExitKind::Requested, 1 => crash(), 2 => missing(),
                        _ => ExitKind::NotAdmitted(TurnError::Draining) };
                    Input::Exited { generation, kind, retry }
                }
                Step::Late => gone(generation.0.saturating_sub(1), crash()),
                Step::Pass(millis) => { bench.now += Duration::from_millis(millis); Input::Woken }
                Step::Ready | Step::Gone(..) => continue,
            };
            apply(&mut bench, input, &mut child, &mut running, &mut waiting, &mut settled);
            prop_assert_eq!(bench.machine.queue_depth(), waiting.len());
        }
        // In the end every turn has exactly one end.
        if drain {
            apply(&mut bench, Input::ShutDown(TurnError::Draining), &mut child, &mut running, &mut waiting, &mut settled);
            if let Some(generation) = child.take() {
                if let Some(turn) = running.take() { settled.insert(turn); }
                let input = gone(generation.0, ExitKind::Requested);
                apply(&mut bench, input, &mut child, &mut running, &mut waiting, &mut settled);
            }
            prop_assert!(waiting.is_empty() && child.is_none());
            prop_assert_eq!(settled.len() as u64, next_turn);
        }
    }
}
