//! Turns that the CLI starts by itself when a tool ends that ran in the background: nobody's answer, nobody's turn.

use std::time::Duration;

use pilotlight::config::PermissionPolicy;
use pilotlight::model::SessionState;
use pilotlight::telemetry::events::EventKind;
use pilotlight::{Config, Pilotlight};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::bench::Bench;
use super::embedded::{ask, child, finish, read, say, send, until, until_turns};
use crate::common::{SOON, eventually, shown};

/// Messages to hit the CLI's own turns with.
const ROUNDS: u64 = 30;

fn in_the_background(config: &mut Config) {
    config.permissions.policy = PermissionPolicy::Allow;
    config.cli.background_tasks = true;
}

fn background(command: &str) -> String {
    format!(r#"[[tool:Bash {{"command":"{command}","run_in_background":true}}]]"#)
}

/// A turn of the CLI's own shifts no answer and is no turn of its user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_03_unsolicited_turn_shifts_no_answer() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(in_the_background).await;
    let alice = system.alice();
    // The message comes at all kinds of instants of the CLI's own turn, before it and after it.
    for round in 0..ROUNDS {
        let began = ask(&alice, &background("sleep 0.2 # [[delay:40]][[say:of my own accord]]")).await;
        assert_eq!(began.text, "TOOLS:ok");
        sleep(Duration::from_millis(80 + 5 * round)).await;
        let (events, turn) = read(send(&alice, &format!("[[say:answer {round}]]")).await).await;
        assert_eq!(turn.text, format!("answer {round}"), "{turn:?}: {}", shown(&events));
        assert_eq!(events.iter().filter(|event| event["type"] == "result").count(), 1, "{}", shown(&events));
    }
    let by_itself = || bench.api.count("of my own accord") >= ROUNDS as usize;
    eventually("the CLI's own turns", SOON, by_itself).await;
    until_turns(&alice, 2 * ROUNDS).await;
    system.end().await;
}

/// What a turn of the CLI's own says in these tests.
const OWN_WORDS: &str = "of my own accord";

/// What the deltas of a turn's events say.
fn streamed(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["event"]["delta"]["text"].as_str()).collect()
}

/// Waits for this number of turns of the CLI's own; gives what they cost.
async fn own_turns(pilot: &Pilotlight, wanted: usize) -> f64 {
    let mut events = pilot.events();
    let (mut seen, mut cost) = (0, 0.0);
    while seen < wanted {
        let event = timeout(SOON, events.next()).await.expect("a turn of the CLI's own");
        if let EventKind::OwnTurn { cost_usd } = event.kind {
            (seen, cost) = (seen + 1, cost + cost_usd);
        }
    }
    cost
}

/// The tasks end while a turn runs, and the next message is there before the CLI comes to its own turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_turn_pending_reaches_no_answer() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(in_the_background).await;
    let alice = system.alice();
    let mut costs = Vec::new();
    for _ in 0..2 {
        let command = format!("until test -e ended; do sleep 0.05; done # [[say:{OWN_WORDS}]]");
        costs.push(ask(&alice, &background(&command)).await.cost_usd);
    }
    let work = alice.workspace().await.expect("directories").work;
    let mut busy = send(&alice, "[[hold:busy]][[say:mine]]").await;
    bench.api.entered("busy", 1).await;
    std::fs::write(work.join("ended"), "").expect("the tasks end");
    for _ in 0..2 {
        until(&mut busy, "the end of a task", |event| event["subtype"] == "task_updated").await;
    }
    bench.api.release("busy");
    let busy = finish(busy).await;
    assert_eq!(busy.text, "mine");
    costs.push(busy.cost_usd);
    let (events, next) = read(send(&alice, "[[deltas:3]]").await).await;
    costs.push(next.cost_usd);
    let shown = shown(&events);
    assert_eq!((next.text.as_str(), streamed(&events).as_str()), (" 0 1 2", " 0 1 2"), "{shown}");
    assert!(!shown.contains(OWN_WORDS), "{shown}");
    assert_eq!(events.iter().filter(|event| event["type"] == "result").count(), 1, "{shown}");
    let own = own_turns(&system.pilot, 2).await;
    assert!(own > 0.0);
    let total = alice.status().expect("in memory").total_cost_usd;
    assert!((total - own - costs.iter().sum::<f64>()).abs() < 1e-9, "{total} of {own} and {costs:?}");
    system.end().await;
}

/// A turn of the CLI's own uses a tool: a message would be put into it, and would get no answer of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_turn_with_a_tool_takes_no_message() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(in_the_background).await;
    let alice = system.alice();
    let work = alice.workspace().await.expect("directories").work;
    let mut busy = {
        let own = r#"[[tool:Bash {\"command\":\"touch own; until test -e go; do sleep 0.05; done\"}]]"#;
        let command = format!("until test -e ended; do sleep 0.05; done # {own}");
        assert_eq!(ask(&alice, &background(&command)).await.text, "TOOLS:ok");
        send(&alice, "[[hold:busy]][[say:mine]]").await
    };
    bench.api.entered("busy", 1).await;
    std::fs::write(work.join("ended"), "").expect("the task ends");
    until(&mut busy, "the end of the task", |event| event["subtype"] == "task_updated").await;
    bench.api.release("busy");
    assert_eq!(finish(busy).await.text, "mine");
    let next = send(&alice, "[[say:next]]").await;
    eventually("its own turn uses a tool", SOON, || work.join("own").exists()).await;
    std::fs::write(work.join("go"), "").expect("the tool ends");
    let (events, next) = read(next).await;
    let shown = shown(&events);
    assert_eq!((next.text.as_str(), streamed(&events).as_str()), ("next", "next"), "{shown}");
    assert!(!shown.contains(r#""type":"tool_use""#) && !shown.contains("TOOLS"), "{shown}");
    own_turns(&system.pilot, 1).await;
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_24_a_task_in_the_background_keeps_its_process() {
    let Some(bench) = Bench::new().await else { return };
    let quick = |config: &mut Config| {
        in_the_background(config);
        config.session.idle_timeout = Duration::from_millis(500);
    };
    let system = bench.embed(quick).await;
    let alice = system.alice();
    let file = alice.workspace().await.expect("directories").work.join("made-late");
    let begun = ask(&alice, &background("sleep 5; touch made-late")).await;
    assert_eq!(begun.text, "TOOLS:ok");
    let cli = child(&alice);
    let is_left_alone = || alice.status().is_some_and(|status| status.state == SessionState::Idle);
    eventually("the task ends", SOON, || file.exists() || !is_left_alone()).await;
    assert!(file.exists(), "the process was taken for idle: {:?}", alice.status());
    // After the task, and what the CLI says of it, it is idle.
    eventually("the idle process is stopped", SOON, || !cli.is_alive()).await;
    let said: Vec<_> = bench.api.requests().iter().map(|request| request.user_texts.clone()).collect();
    assert_eq!(bench.api.count("task-notification"), 1, "{said:#?}");
    assert!(say(&alice, "[[recall]]").await.contains("task-notification"));
    system.end().await;
}
