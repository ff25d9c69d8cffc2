//! The embedded system on the simulated CLI, from outside: real processes, real kills, the public API.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and real processes live in real time"
)]

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use pilotlight::config::{PermissionPolicy, SlashCommands};
use pilotlight::error::StartFailure;
use pilotlight::turn::{Decision, Status};
use pilotlight::{Config, Outcome, Pilotlight, Session, SessionState, TurnError, TurnOptions};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

mod edges;
mod panics;
mod readers;

/// A system on a data directory of its own. Ends with nothing left, or the test fails.
struct Bench {
    pilot: Pilotlight,
    data: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let pilot = start(data.path(), change).await;
        Self { pilot, data }
    }

    /// Stops the system and sees that no process of its data directory is left.
    async fn end(self) {
        self.pilot.shutdown(Duration::from_secs(5)).await;
        assert_eq!(processes_in(self.data.path()), Vec::<u32>::new(), "left after the shutdown");
    }
}

async fn start(data: &Path, change: impl FnOnce(&mut Config)) -> Pilotlight {
    let mut config = Config::new(data);
    config.cli.program = "sim".to_owned();
    config.cli.shim = Some(env!("CARGO_BIN_EXE_pilotlight-shim").into());
    change(&mut config);
    Pilotlight::start(config).await.unwrap()
}

/// Every process whose environment names a home below this data directory.
fn processes_in(data: &Path) -> Vec<u32> {
    let home = format!("HOME={}", data.canonicalize().unwrap().join("sessions").display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(environ) = std::fs::read(entry.path().join("environ")) else { continue };
        if environ.split(|byte| *byte == 0).any(|variable| variable.starts_with(home.as_bytes())) {
            found.push(pid);
        }
    }
    found
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn ask(session: &Session, text: &str) -> Outcome {
    session.send(text).await.unwrap().finish().await
}

/// An answer that must come.
async fn say(session: &Session, text: &str) -> String {
    let outcome = ask(session, text).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    outcome.text
}

fn pid(session: &Session) -> u32 {
    session.status().and_then(|status| status.pid).expect("a child")
}

fn state(session: &Session) -> SessionState {
    session.status().expect("in memory").state
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn is_alive(pid: u32) -> bool {
    test_kill_process(Pid::from_raw(pid.cast_signed()).unwrap()).is_ok()
}

async fn killed_idle(session: &Session) -> u32 {
    let old = pid(session);
    signal(old, Signal::KILL);
    eventually("the killed child is noticed", || {
        !is_alive(old) && session.status().is_some_and(|s| s.pid != Some(old))
    })
    .await;
    old
}

/// Everything that the session's CLI has written down.
async fn transcript(session: &Session) -> String {
    let projects = session.workspace().await.unwrap().home.join(".claude/projects");
    let mut lines = String::new();
    for project in std::fs::read_dir(projects).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(project.path()).into_iter().flatten().flatten() {
            lines.push_str(&std::fs::read_to_string(file.path()).unwrap_or_default());
        }
    }
    lines
}

/// The CLI writes its answers down only some time after it gave them.
async fn written_down(session: &Session, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !transcript(session).await.lines().any(|line| line.contains("\"assistant\"") && line.contains(text))
    {
        assert!(Instant::now() < deadline, "never written down: {text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_warm_child_serves_all_turns_of_a_user() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    assert_eq!(say(&alice, "one").await, "echo 1: one");
    let first = pid(&alice);
    assert_eq!(say(&alice, "two").await, "echo 2: two");
    assert_eq!(say(&alice, "[[recall]]").await, "one | two");
    assert_eq!(pid(&alice), first);
    eventually("three turns", || alice.status().unwrap().turns == 3 && state(&alice) == SessionState::Idle)
        .await;
    let status = alice.status().unwrap();
    assert_eq!((status.restarts, status.generation), (0, 1));
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_have_children_of_their_own() {
    let bench = Bench::new().await;
    let (alice, bob) = (bench.pilot.session("alice"), bench.pilot.session("bob"));
    let second = bench.pilot.conversation("alice", "second");
    say(&alice, "I am alice").await;
    say(&bob, "I am bob").await;
    say(&second, "I am alice too").await;
    assert_eq!(say(&alice, "[[recall]]").await, "I am alice");
    assert_eq!(say(&bob, "[[recall]]").await, "I am bob");
    assert_eq!(say(&second, "[[recall]]").await, "I am alice too");
    assert!(pid(&alice) != pid(&bob) && pid(&alice) != pid(&second));
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_killed_while_idle_is_replaced_at_once_and_remembers() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "remember me").await;
    written_down(&alice, "remember me").await;
    killed_idle(&alice).await;
    eventually("a new child without being asked", || state(&alice) == SessionState::Idle).await;
    let outcome = ask(&alice, "[[recall]]").await;
    assert_eq!((outcome.text.as_str(), outcome.context_lost), ("remember me", false));
    assert_eq!(alice.status().unwrap().restarts, 1);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_killed_in_a_turn_ends_the_turn_and_the_conversation_goes_on() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "before").await;
    written_down(&alice, "before").await;
    let mut turn = alice.send("long [[deltas:1000]][[delay:20]]").await.unwrap();
    while turn.next().await.unwrap().unwrap().text_delta().is_none() {}
    signal(pid(&alice), Signal::KILL);
    let error = loop {
        match turn.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("the loss was not said"),
        }
    };
    assert!(matches!(&error, TurnError::SessionLost(loss) if loss.cause == "signal 9"), "{error}");
    assert!(turn.next().await.is_none());
    assert!(say(&alice, "[[recall]]").await.starts_with("before"));
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_of_which_nothing_came_out_is_given_to_the_next_child_once() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "before").await;
    written_down(&alice, "before").await;
    let marker = bench.data.path().join("died");
    let outcome = ask(&alice, &format!("again [[fault:die-once={}]]", marker.display())).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(outcome.retries, 1);
    // One that dies each time is not tried for ever.
    let outcome = ask(&alice, "[[fault:crash-before]]").await;
    assert!(matches!(outcome.status, Status::Aborted(TurnError::SessionLost(_))), "{outcome:?}");
    assert_eq!(outcome.retries, 1);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_is_lost_before_it_was_written_down_is_said_to_be_lost() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    // Dies right after the answer, before the transcript has it.
    say(&alice, "first [[fault:crash-after]]").await;
    let outcome = ask(&alice, "[[recall]]").await;
    assert!(outcome.context_lost, "{outcome:?}");
    written_down(&alice, "").await;
    let mut turn = alice.send("three [[fault:crash-after]]").await.unwrap();
    while turn.next().await.is_some() {}
    let mut turn = alice.send("four").await.unwrap();
    let first = turn.next().await.unwrap().unwrap().to_text().into_owned();
    assert!(first.contains("context_lost") && first.contains("latest_turns"), "{first}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_is_evicted_and_resumed_by_the_next_message() {
    let bench = Bench::with(|config| config.session.idle_timeout = Duration::from_millis(300)).await;
    let alice = bench.pilot.session("alice");
    say(&alice, "keep this").await;
    let old = pid(&alice);
    eventually("evicted", || alice.status().is_none_or(|status| status.pid.is_none())).await;
    assert!(!is_alive(old));
    assert_eq!(say(&alice, "[[recall]]").await, "keep this");
    assert_ne!(pid(&alice), old);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_session_outlives_the_idle_timeout() {
    let bench = Bench::with(|config| config.session.idle_timeout = Duration::from_millis(200)).await;
    let alice = bench.pilot.session("alice");
    assert!(say(&alice, "slow [[sleep:900]]").await.contains("slow"));
    assert_eq!(alice.status().unwrap().generation, 1);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_at_the_instant_of_eviction_are_all_served() {
    let bench = Bench::with(|config| config.session.idle_timeout = Duration::from_millis(20)).await;
    let alice = bench.pilot.session("alice");
    for round in 1..=30 {
        assert_eq!(say(&alice, "x").await, format!("echo {round}: x"));
        tokio::time::sleep(Duration::from_millis(15 + round % 10)).await;
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_first_messages_at_once_make_one_child_and_fifty_answers() {
    let bench = Bench::with(|config| config.session.turn_queue = 60).await;
    let mut turns = Vec::new();
    for number in 0..50 {
        let alice = bench.pilot.session("alice");
        turns.push(tokio::spawn(async move { ask(&alice, &format!("message {number}.")).await }));
    }
    for (number, turn) in turns.into_iter().enumerate() {
        let outcome = turn.await.unwrap();
        assert!(outcome.text.ends_with(&format!("message {number}.")), "{outcome:?}");
    }
    let alice = bench.pilot.session("alice");
    eventually("fifty turns", || alice.status().unwrap().turns == 50).await;
    assert_eq!(alice.status().unwrap().generation, 1);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once() {
    let bench = Bench::with(|config| config.session.turn_queue = 2).await;
    let alice = bench.pilot.session("alice");
    let held: Vec<_> = {
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(alice.send("[[sleep:300]]").await.unwrap());
        }
        held
    };
    assert_eq!(alice.send("one too many").await.unwrap_err(), TurnError::QueueFull { limit: 3 });
    for turn in held {
        assert!(turn.finish().await.is_ok());
    }
    say(&alice, "room again").await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_turn_is_interrupted_and_its_child_stays_warm() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "hello").await;
    let old = pid(&alice);
    let mut turn = alice.send("[[deltas:10000]][[delay:20]]").await.unwrap();
    while turn.next().await.unwrap().unwrap().text_delta().is_none() {}
    drop(turn);
    let answer = say(&alice, "next").await;
    assert!(answer.ends_with("next"), "{answer}");
    assert_eq!(pid(&alice), old);
    // One that still waits never reaches the child.
    let running = alice.send("[[sleep:200]]").await.unwrap();
    drop(alice.send("never said").await.unwrap());
    assert!(running.finish().await.is_ok());
    assert!(!say(&alice, "[[recall]]").await.contains("never said"));
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_turn_for_its_reader() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    assert!(!alice.interrupt().await.unwrap(), "nothing runs");
    let mut turn = alice.send("[[deltas:10000]][[delay:20]]").await.unwrap();
    while turn.next().await.unwrap().unwrap().text_delta().is_none() {}
    let old = pid(&alice);
    assert!(alice.interrupt().await.unwrap());
    let outcome = turn.finish().await;
    assert!(matches!(&outcome.status, Status::Failed(failure) if failure.interrupted), "{outcome:?}");
    say(&alice, "still here").await;
    assert_eq!(pid(&alice), old);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_has_a_time_limit_and_its_child_survives_it() {
    let bench = Bench::with(|config| config.session.turn_timeout = Duration::from_millis(300)).await;
    let alice = bench.pilot.session("alice");
    let outcome = ask(&alice, "[[sleep:60000]]").await;
    assert!(matches!(outcome.status, Status::Aborted(TurnError::TimedOut { .. })), "{outcome:?}");
    let old = pid(&alice);
    say(&alice, "next").await;
    assert_eq!(pid(&alice), old);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_api_reaches_the_caller_and_the_child_lives() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let outcome = ask(&alice, "[[api_error:429]]").await;
    let Status::Failed(failure) = &outcome.status else { panic!("{outcome:?}") };
    assert_eq!(failure.api_status, Some(429));
    let old = pid(&alice);
    say(&alice, "fine").await;
    assert_eq!(pid(&alice), old);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_child_is_found_killed_and_its_turn_served_by_the_next() {
    let faster = |config: &mut Config| {
        config.session.stall_timeout = Duration::from_millis(300);
        config.session.ping_timeout = Duration::from_millis(300);
        config.restart.intensity = 50;
    };
    let bench = Bench::with(faster).await;
    let alice = bench.pilot.session("alice");
    say(&alice, "before").await;
    written_down(&alice, "before").await;
    let old = pid(&alice);
    signal(old, Signal::STOP);
    let outcome = ask(&alice, "are you there?").await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(outcome.retries, 1);
    assert!(!is_alive(old));
    for fault in ["hang", "stop-self", "spin"] {
        let outcome = ask(&alice, &format!("[[fault:{fault}]]")).await;
        assert!(matches!(outcome.status, Status::Aborted(TurnError::SessionLost(_))), "{fault}: {outcome:?}");
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_with_answered_pings_is_no_hang() {
    let faster = |config: &mut Config| {
        config.session.stall_timeout = Duration::from_millis(100);
        config.session.ping_timeout = Duration::from_millis(500);
    };
    let bench = Bench::with(faster).await;
    let alice = bench.pilot.session("alice");
    assert!(ask(&alice, "[[sleep:1500]] slow").await.is_ok());
    assert_eq!(alice.status().unwrap().generation, 1);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_a_child_does_is_left_behind() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "[[fault:outlive]]").await;
    assert!(processes_in(bench.data.path()).len() > 2, "nothing to clean up");
    killed_idle(&alice).await;
    let home = bench.data.path().to_owned();
    eventually("only the new child is left", || processes_in(&home).len() <= 2).await;
    say(&alice, "[[background:1000]]").await;
    alice.evict().await.unwrap();
    assert_eq!(processes_in(bench.data.path()), Vec::<u32>::new());
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_ignores_every_request_to_go_is_killed() {
    let quick = |config: &mut Config| {
        config.cli.args = vec!["--fault".into(), "ignore-term".into(), "--fault".into(), "ignore-eof".into()];
        config.session.stop_eof = Duration::from_millis(200);
        config.session.stop_term = Duration::from_millis(200);
    };
    let bench = Bench::with(quick).await;
    let alice = bench.pilot.session("alice");
    say(&alice, "hello").await;
    let old = pid(&alice);
    alice.evict().await.unwrap();
    assert!(!is_alive(old));
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_lines_do_not_break_the_session() {
    let bench = Bench::with(|config| config.session.line_limit = 1 << 20).await;
    let alice = bench.pilot.session("alice");
    assert!(ask(&alice, "[[fault:garbage-line]]").await.is_ok());
    assert!(ask(&alice, "[[fault:invalid-utf8]]").await.is_ok());
    let outcome = ask(&alice, "[[fault:long-line=3000000]]").await;
    assert!(matches!(outcome.status, Status::Aborted(TurnError::LineTooLong { .. })), "{outcome:?}");
    say(&alice, "fine").await;
    assert_eq!(alice.status().unwrap().generation, 1);
    let outcome = ask(&alice, "[[fault:half-line]]").await;
    assert!(!outcome.is_ok(), "{outcome:?}");
    say(&alice, "fine again").await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_on_standard_error_disturbs_nobody() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    assert!(ask(&alice, "[[fault:stderr-flood=50000000]]").await.is_ok());
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_gets_every_event() {
    let small = |config: &mut Config| {
        config.session.event_buffer = 2;
        config.session.event_buffer_bytes = 4096;
    };
    let bench = Bench::with(small).await;
    let (alice, bob) = (bench.pilot.session("alice"), bench.pilot.session("bob"));
    let mut turn = alice.send("[[deltas:3000]]").await.unwrap();
    say(&bob, "not slowed").await;
    let mut text = String::new();
    let mut events = 0u32;
    while let Some(event) = turn.next().await {
        text.push_str(&event.unwrap().text_delta().unwrap_or_default());
        events += 1;
        if events.is_multiple_of(500) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(turn.outcome().unwrap().text, text);
    assert!(events >= 3000, "{events}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_cli_is_a_typed_error_and_mending_it_is_enough() {
    let data = tempfile::tempdir().unwrap();
    let cli = data.path().join("cli");
    let program = cli.to_string_lossy().into_owned();
    let bench = Bench::with(|config| config.cli.program = program).await;
    let alice = bench.pilot.session("alice");
    let reason = |outcome: Outcome| match outcome.status {
        Status::Aborted(TurnError::NotStarted(failure)) => failure.reason(),
        Status::Aborted(TurnError::CircuitOpen { last, .. }) => last.reason(),
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(ask(&alice, "hello").await), "not_found");
    std::fs::write(&cli, "not a program").unwrap();
    let tried_again = || async { tokio::time::sleep(Duration::from_millis(1100)).await };
    tried_again().await;
    assert_eq!(reason(ask(&alice, "hello").await), "eacces");
    set_mode(&cli, 0o755);
    tried_again().await;
    assert_eq!(reason(ask(&alice, "hello").await), "enoexec");
    std::fs::write(&cli, format!("#!/bin/sh\nexec {} sim \"$@\"\n", env!("CARGO_BIN_EXE_pilotlight")))
        .unwrap();
    tried_again().await;
    say(&alice, "hello").await;
    bench.end().await;
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_exits_at_once_opens_the_circuit_without_a_storm() {
    let broken = |config: &mut Config| {
        config.cli.args = vec!["--fault".into(), "exit-at-start=3".into()];
        config.restart.intensity = 2;
        config.restart.backoff = Duration::from_millis(10);
    };
    let bench = Bench::with(broken).await;
    let alice = bench.pilot.session("alice");
    let outcome = ask(&alice, "hello").await;
    let Status::Aborted(TurnError::CircuitOpen { last, .. }) = &outcome.status else { panic!("{outcome:?}") };
    assert!(matches!(last, StartFailure::ExitedEarly { exit, .. } if exit == "exit code 3"), "{last:?}");
    let generation = alice.status().unwrap().generation;
    assert_eq!(generation, 3);
    for _ in 0..20 {
        assert!(matches!(ask(&alice, "x").await.status, Status::Aborted(TurnError::CircuitOpen { .. })));
    }
    assert_eq!(alice.status().unwrap().generation, generation);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_is_never_ready_is_given_up() {
    let broken = |config: &mut Config| {
        config.cli.args = vec!["--fault".into(), "never-ready".into()];
        config.session.spawn_timeout = Duration::from_millis(200);
        config.restart.intensity = 0;
    };
    let bench = Bench::with(broken).await;
    let alice = bench.pilot.session("alice");
    // Who waits hears of it after one start, not after all that may be tried; the circuit is open from then on.
    let outcome = ask(&alice, "hello").await;
    let Status::Aborted(TurnError::NotStarted(failure)) = &outcome.status else { panic!("{outcome:?}") };
    assert_eq!(failure.reason(), "start_timeout");
    let outcome = ask(&alice, "hello").await;
    assert!(matches!(outcome.status, Status::Aborted(TurnError::CircuitOpen { .. })), "{outcome:?}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_service_resumes_every_conversation() {
    let bench = Bench::new().await;
    say(&bench.pilot.session("alice"), "survive").await;
    bench.pilot.shutdown(Duration::from_secs(5)).await;
    let again = start(bench.data.path(), |_| {}).await;
    let alice = again.session("alice");
    assert_eq!(say(&alice, "[[recall]]").await, "survive");
    eventually("both are counted", || alice.status().unwrap().turns == 2).await;
    again.shutdown(Duration::from_secs(5)).await;
    assert_eq!(processes_in(bench.data.path()), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_has_one_instance() {
    let bench = Bench::new().await;
    let config = Config::new(bench.data.path());
    let error = Pilotlight::start(config).await.unwrap_err();
    assert!(error.to_string().contains("in use by another instance"), "{error}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_looks_like_a_command_is_text_unless_configured() {
    let bench = Bench::new().await;
    let answer = say(&bench.pilot.session("alice"), "/clear").await;
    assert!(answer.starts_with("echo 1:") && answer.contains("/clear"), "{answer}");
    bench.end().await;

    let bench = Bench::with(|config| config.cli.slash_commands = SlashCommands::Refuse).await;
    let error = bench.pilot.session("alice").send("/clear").await.unwrap_err();
    assert!(matches!(error, TurnError::InvalidPrompt(_)) && !error.reached_child());
    bench.end().await;

    let bench = Bench::with(|config| config.cli.slash_commands = SlashCommands::Pass).await;
    let alice = bench.pilot.session("alice");
    let first = ask(&alice, "forget this").await;
    let cleared = ask(&alice, "/clear").await;
    assert_ne!(first.cli_session_id, cleared.cli_session_id, "a new conversation");
    say(&alice, "after").await;
    alice.evict().await.unwrap();
    // The new conversation is the one that is resumed.
    assert_eq!(say(&alice, "[[recall]]").await, "after");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_bound_at_the_start_makes_the_child_restart_with_its_context() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "before").await;
    let old = pid(&alice);
    let options = || TurnOptions { system_prompt: Some("be brief".into()), ..TurnOptions::default() };
    let turn = alice.send_with("[[recall]]", options()).await.unwrap();
    assert_eq!(turn.finish().await.text, "before");
    let new = pid(&alice);
    assert_ne!(new, old);
    alice.send_with("same", options()).await.unwrap().finish().await;
    say(&alice, "and without asking").await;
    assert_eq!(pid(&alice), new);
    let status = alice.status().unwrap();
    assert_eq!((status.restarts, status.generation), (0, 2), "nothing crashed");
    let live = TurnOptions { model: Some("haiku".into()), ..TurnOptions::default() };
    alice.send_with("another model", live).await.unwrap().finish().await;
    assert_eq!(pid(&alice), new);
    assert_eq!(alice.status().unwrap().model.as_deref(), Some("haiku"));
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn earlier_messages_are_folded_in_only_where_there_is_no_context() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let options = || TurnOptions { preamble: Some("EARLIER".into()), ..TurnOptions::default() };
    let first = alice.send_with("one", options()).await.unwrap().finish().await;
    assert!(first.text.contains("EARLIER"), "{first:?}");
    let second = alice.send_with("two", options()).await.unwrap().finish().await;
    assert!(!second.text.contains("EARLIER"), "{second:?}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_denied_allowed_or_asked_about() {
    let tool = "[[tool:Bash {\"command\":\"touch made\"}]]";
    let made = |session: &Session| {
        let session = session.clone();
        async move { session.workspace().await.unwrap().work.join("made").exists() }
    };
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    assert!(ask(&alice, tool).await.is_ok());
    assert!(!made(&alice).await);
    bench.end().await;

    let bench = Bench::with(|config| config.permissions.policy = PermissionPolicy::Allow).await;
    let alice = bench.pilot.session("alice");
    assert!(ask(&alice, tool).await.is_ok());
    assert!(made(&alice).await);
    bench.end().await;

    let ask_soon = |config: &mut Config| {
        config.permissions.policy = PermissionPolicy::Ask;
        config.session.permission_timeout = Duration::from_millis(500);
    };
    let bench = Bench::with(ask_soon).await;
    let alice = bench.pilot.session("alice");
    let turn = alice.send(tool).await.unwrap();
    eventually("the question", || !alice.permissions().is_empty()).await;
    let request = alice.permissions().remove(0).request;
    assert_eq!(request.tool_name, "Bash");
    let allow = || Decision::Allow { updated_input: None };
    assert!(alice.answer_permission("nonsense", allow()).await.is_err());
    alice.answer_permission(&request.request_id, allow()).await.unwrap();
    assert!(turn.finish().await.is_ok());
    assert!(made(&alice).await);
    assert!(alice.permissions().is_empty());
    // Nobody answers: denied at the limit, and the turn goes on.
    let bob = bench.pilot.session("bob");
    assert!(ask(&bob, tool).await.is_ok());
    assert!(!made(&bob).await);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn warming_starts_the_child_without_a_turn_and_purging_forgets_everything() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let status = alice.warm().await.unwrap();
    assert_eq!((status.state, status.turns), (SessionState::Idle, 0));
    let warm = pid(&alice);
    say(&alice, "secret").await;
    assert_eq!(pid(&alice), warm);
    let work = alice.workspace().await.unwrap().work;
    alice.purge().await.unwrap();
    assert!(!work.exists() && !is_alive(warm));
    eventually("gone from memory", || alice.status().is_none()).await;
    let outcome = ask(&alice, "[[recall]]").await;
    assert!(!outcome.text.contains("secret") && !outcome.context_lost, "{outcome:?}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_children_makes_others_wait_and_evicts_for_them() {
    let one = |config: &mut Config| {
        config.limits.max_children = 1;
        config.limits.queue_deadline = Duration::from_millis(400);
    };
    let bench = Bench::with(one).await;
    let (alice, bob) = (bench.pilot.session("alice"), bench.pilot.session("bob"));
    say(&alice, "mine").await;
    let outcome = ask(&bob, "and me?").await;
    assert!(matches!(outcome.status, Status::Aborted(TurnError::Overloaded { .. })), "{outcome:?}");
    alice.evict().await.unwrap();
    say(&bob, "now").await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_ids_are_any_bytes_and_never_paths() {
    let bench = Bench::new().await;
    for user in [&b"../../../tmp/x"[..], &[0xff, 0, b'\n'], "é".as_bytes(), &[b'a'; 256]] {
        say(&bench.pilot.session(user), "hello").await;
    }
    assert_eq!(std::fs::read_dir(bench.data.path().join("sessions")).unwrap().count(), 4);
    for user in [&b""[..], &[b'a'; 257]] {
        let error = bench.pilot.session(user).send("hello").await.unwrap_err();
        assert_eq!(error.code(), "invalid_user");
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn costs_are_those_of_the_turn_and_add_up_over_restarts() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let one = ask(&alice, "one").await.cost_usd;
    let two = ask(&alice, "two").await.cost_usd;
    written_down(&alice, "two").await;
    killed_idle(&alice).await;
    let three = ask(&alice, "three").await.cost_usd;
    assert!(one > 0.0 && two > 0.0 && three > 0.0);
    let total = || alice.status().unwrap().total_cost_usd;
    eventually("the sum", || (total() - (one + two + three)).abs() < 1e-9).await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_shutdown_turns_are_refused() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let turn = alice.send("[[sleep:300]] finish me").await.unwrap();
    let pilot = bench.pilot.clone();
    let stopping = tokio::spawn(async move { pilot.shutdown(Duration::from_secs(5)).await });
    eventually("draining", || !bench.pilot.readiness().ready).await;
    assert_eq!(alice.send("too late").await.unwrap_err(), TurnError::Draining);
    assert!(turn.finish().await.is_ok(), "a running turn may finish");
    stopping.await.unwrap();
    bench.end().await;
}

#[test]
fn dropping_the_runtime_leaves_no_process() {
    let data = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let pilot = start(data.path(), |_| {}).await;
        say(&pilot.session("alice"), "[[fault:outlive]]").await;
        let busy = pilot.session("bob").send("[[sleep:60000]]").await.unwrap();
        std::mem::forget((busy, pilot));
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    let deadline = Instant::now() + Duration::from_secs(5);
    while !processes_in(data.path()).is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", processes_in(data.path()));
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_handles_stops_everything() {
    let data = tempfile::tempdir().unwrap();
    let pilot = start(data.path(), |_| {}).await;
    say(&pilot.session("alice"), "hello").await;
    drop(pilot);
    eventually("all stopped", || processes_in(data.path()).is_empty()).await;
    // The directory is free again.
    let mut config = Config::new(data.path());
    config.cli.program = "sim".to_owned();
    let began = SystemTime::now();
    loop {
        match Pilotlight::start(config.clone()).await {
            Ok(pilot) => break pilot.shutdown(Duration::from_secs(5)).await,
            Err(error) => assert!(began.elapsed().unwrap() < Duration::from_secs(10), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
