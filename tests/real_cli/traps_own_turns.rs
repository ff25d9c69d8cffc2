//! Turns that the CLI starts by itself when a tool ends that ran in the background: nobody's answer, nobody's turn.

use std::time::Duration;

use pilotlight::config::PermissionPolicy;
use pilotlight::{Config, SessionState};
use tokio::time::sleep;

use super::bench::Bench;
use super::embedded::{ask, child, read, say, send, until_turns};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_03_a_turn_of_the_clis_own_shifts_no_answer_and_is_no_turn_of_its_user() {
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
