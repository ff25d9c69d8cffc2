//! Ends that were wanted, and what must not survive them.

use std::time::Duration;

use pilotlight::Config;
use pilotlight::config::PermissionPolicy;
use pilotlight::model::SessionState;
use tokio::time::{Instant, sleep};

use super::bench::Bench;
use super::embedded::{ask, child, failure, finish, say, send, until_state, until_text};
use crate::common::installed::is_long;
use crate::common::{SOON, eventually};

/// How long after an end anything of it may still be there.
const GONE_WITHIN: Duration = Duration::from_secs(1);

fn allowed(config: &mut Config) {
    config.permissions.policy = PermissionPolicy::Allow;
}

/// A busy process is stopped in steps and its turn has an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_08_busy_process_stops_in_steps_turn_ends() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    say(&alice, "the word is heliotrope").await;
    // The end of its input alone would leave it waiting for the API for ever, and SIGTERM would give no end of the turn.
    let mut turn = send(&alice, "[[say:beginning]][[hang]]").await;
    until_text(&mut turn).await;
    let cli = child(&alice);
    let begun = Instant::now();
    alice.evict().await.expect("it is stopped");
    assert!(!cli.is_alive() && begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let outcome = finish(turn).await;
    assert!(failure(&outcome).interrupted, "{outcome:?}");
    bench.api.aborted("[[hang]]").await;
    let recalled = ask(&alice, "[[recall]]").await;
    assert!(recalled.text.contains("heliotrope") && !recalled.context_lost, "{recalled:?}");
    system.end().await;
}

/// A stopped process with a running tool leaves none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_09_stopped_process_leaves_no_tool() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(allowed).await;
    let alice = system.alice();
    let turn = send(&alice, r#"[[tool:Bash {"command":"trap '' TERM INT; sleep 86410"}]]"#).await;
    let tool = bench.tool(&["sleep", "86410"]).await;
    let cli = child(&alice);
    alice.evict().await.expect("it is stopped");
    assert!(!cli.is_alive());
    eventually("the tool is gone", GONE_WITHIN, || !tool.is_alive()).await;
    assert!(!finish(turn).await.is_ok());
    assert_eq!(say(&alice, "[[say:fine]]").await, "fine");
    system.end().await;
}

/// A frozen process with a running tool leaves none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_09_frozen_process_leaves_no_tool() {
    let Some(bench) = Bench::new().await else { return };
    let impatient = |config: &mut Config| {
        allowed(config);
        config.session.stop_interrupt = Duration::from_millis(300);
        config.session.stop_eof = Duration::from_millis(300);
        config.session.stop_term = Duration::from_millis(300);
    };
    let system = bench.embed(impatient).await;
    let alice = system.alice();
    let turn = send(&alice, r#"[[tool:Bash {"command":"setsid sleep 86411 & sleep 86412"}]]"#).await;
    let tools = [bench.tool(&["sleep", "86411"]).await, bench.tool(&["sleep", "86412"]).await];
    let cli = child(&alice);
    // It hears nothing of what it is asked: only the last step is left.
    cli.signal(rustix::process::Signal::STOP);
    alice.evict().await.expect("it is stopped");
    assert!(!cli.is_alive());
    eventually("the tools are gone", GONE_WITHIN, || !tools.iter().any(|tool| tool.is_alive())).await;
    assert!(!finish(turn).await.is_ok());
    assert_eq!(say(&alice, "[[say:fine]]").await, "fine");
    system.end().await;
}

/// Messages that race with an interrupt have an answer or an end each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_racing_interrupt_each_end() {
    const TIMINGS: u64 = 30;
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    say(&alice, "hello").await;
    let cli = child(&alice);
    let mut interrupted = 0;
    for round in 0..TIMINGS {
        let (one, two) = (format!("one {round}."), format!("two {round}."));
        let first = send(&alice, &format!("[[delay:15]][[say:{one}]]")).await;
        let second = send(&alice, &format!("[[say:{two}]]")).await;
        sleep(Duration::from_millis(round * 3)).await;
        alice.interrupt().await.expect("it can be reached");
        for (turn, answer) in [(first, one), (second, two)] {
            let outcome = finish(turn).await;
            if outcome.is_ok() {
                assert_eq!(outcome.text, answer, "{outcome:?}");
            } else {
                assert!(failure(&outcome).interrupted, "{outcome:?}");
                interrupted += 1;
            }
            assert!(bench.api.count(&format!("[[say:{answer}]]")) <= 1, "{answer} was asked twice");
        }
    }
    assert!((1..=TIMINGS).contains(&interrupted), "{interrupted} of {TIMINGS} interrupts ended a turn");
    assert_eq!(say(&alice, "[[say:fine]]").await, "fine");
    assert_eq!(child(&alice), cli);
    system.end().await;
}

/// An interrupt in the last instant leaves no answer without its text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_interrupt_leaves_no_answer_without_text() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    say(&alice, "hello").await;
    for round in 0..120 {
        let answer = format!("answer {round}");
        let mut turn = send(&alice, &format!("[[say:{answer}]][[delay:8]]")).await;
        until_text(&mut turn).await;
        // About when the model has ended, and the CLI not quite.
        sleep(Duration::from_millis(6 + round % 6)).await;
        alice.interrupt().await.expect("it can be reached");
        let outcome = finish(turn).await;
        let is_whole = outcome.is_ok() && outcome.text == answer;
        assert!(is_whole || failure(&outcome).interrupted, "{outcome:?}");
    }
    system.end().await;
}

/// Sixty turns in the instant of an eviction, or two hundred in a long run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_racing_eviction_are_answered() {
    let Some(bench) = Bench::for_long().await else { return };
    let turns: u64 = if is_long() { 50 } else { 15 };
    let system = bench.embed(|config| config.session.idle_timeout = Duration::from_millis(40)).await;
    let users = ["alice", "bob", "carol", "dave"].map(|user| system.pilot.session(user));
    let all = users.map(|user| async move {
        for number in 0..turns {
            let outcome = ask(&user, &format!("[[say:answer {number}]]")).await;
            assert!(outcome.is_ok() && !outcome.context_lost, "{number}: {outcome:?}");
            assert_eq!(outcome.text, format!("answer {number}"));
            // Around the instant at which it is found idle.
            sleep(Duration::from_millis(29 + number % 14)).await;
        }
        user.status().map_or(0, |status| status.generation)
    });
    let [one, two, three, four] = all;
    let generations = tokio::join!(one, two, three, four);
    let evictions = generations.0 + generations.1 + generations.2 + generations.3;
    assert!((10..=4 * turns).contains(&evictions), "{evictions} processes: the instant was not met");
    assert_eq!(bench.api.requests().len() as u64, 4 * turns, "each message was asked once");
    system.end().await;
}

/// A CLI that exits at once is not restarted forever; fixing it is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_cli_opens_circuit_until_fixed() {
    let Some(bench) = Bench::new().await else { return };
    let program = bench.place.path().join("cli");
    let put = |swap: &dyn Fn()| {
        std::fs::remove_file(&program).ok();
        swap();
    };
    let write = |script: &str| {
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).expect("made executable");
    };
    // Replaced in place: there is no earlier version to go back to.
    let real = || write(&format!("exec '{}' \"$@\"", bench.cli.display()));
    let broken = || write("echo 'out of order' >&2\nexit 1");
    put(&real);
    let careful = |config: &mut Config| {
        config.cli.program = program.display().to_string();
        // The script stands for a CLI whose own files are elsewhere.
        config.isolation.rungs.clear();
        config.restart.intensity = 2;
        config.restart.circuit_pause = Duration::from_secs(2);
    };
    let system = bench.embed(careful).await;
    let alice = system.alice();
    say(&alice, "the word is heliotrope").await;
    bench.on_disk(1).await;
    put(&broken);
    child(&alice).kill();
    until_state(&alice, SessionState::Failed).await;
    let status = alice.status().expect("in memory");
    assert!(status.generation <= 4, "it was tried too often: {status:?}");
    let outcome = ask(&alice, "[[recall]]").await;
    let text = format!("{:?}", outcome.status);
    assert!(text.contains("CircuitOpen") && text.contains("out of order"), "{text}");
    assert_eq!(
        alice.status().map(|status| status.generation),
        Some(status.generation),
        "nothing was started"
    );
    put(&real);
    let recalled = async || {
        let outcome = ask(&alice, "[[recall]]").await;
        outcome.is_ok().then_some(outcome.text)
    };
    let recalled = crate::common::eventually_some("the circuit closes", SOON, recalled).await;
    assert_eq!(recalled, "the word is heliotrope");
    system.end().await;
}
