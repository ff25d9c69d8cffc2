//! One warm child, its turns, its readers.

use pilotlight::model::{Block, History, Message, Role};

use super::*;
use crate::common::UNTIL_GO;

/// For turns that end with [`go_on`].
async fn gated() -> Bench {
    Bench::with(|config| {
        config.permissions.policy = PermissionPolicy::Allow;
        config.session.turn_queue = 2;
    })
    .await
}

async fn go_on(session: &Session) {
    eventually("the turn runs", || state(session) == SessionState::Busy).await;
    let work = session.workspace().await.unwrap().work;
    std::fs::write(work.join("go"), "").unwrap();
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
async fn a_full_queue_refuses_at_once() {
    let bench = gated().await;
    let alice = bench.pilot.session("alice");
    let mut held = Vec::new();
    for text in [UNTIL_GO, "second", "third"] {
        held.push(alice.send(text).await.unwrap());
    }
    assert_eq!(alice.send("one too many").await.unwrap_err(), TurnError::QueueFull { limit: 3 });
    go_on(&alice).await;
    for turn in held {
        assert!(turn.finish().await.is_ok());
    }
    say(&alice, "room again").await;
    bench.end().await;
}

/// A dropped turn is interrupted and its child stays warm.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_turn_is_interrupted_child_stays_warm() {
    let bench = gated().await;
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
    let running = alice.send(UNTIL_GO).await.unwrap();
    drop(alice.send("never said").await.unwrap());
    go_on(&alice).await;
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

/// A change of launch settings restarts the child, which keeps its context.
#[tokio::test(flavor = "multi_thread")]
async fn changed_launch_settings_restart_with_context() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "before").await;
    let old = pid(&alice);
    let options = || TurnOptions::default().system_prompt("be brief");
    let turn = alice.send_with("[[recall]]", options()).await.unwrap();
    assert_eq!(turn.finish().await.text, "before");
    let new = pid(&alice);
    assert_ne!(new, old);
    alice.send_with("same", options()).await.unwrap().finish().await;
    say(&alice, "and without asking").await;
    assert_eq!(pid(&alice), new);
    let status = alice.status().unwrap();
    assert_eq!((status.restarts, status.generation), (0, 2), "nothing crashed");
    let other = TurnOptions::default().model("haiku");
    let turn = alice.send_with("[[recall]]", other).await.unwrap().finish().await;
    assert!(turn.text.contains("before"), "{turn:?}");
    assert_ne!(pid(&alice), new, "a model is bound at the start as well");
    let status = alice.status().unwrap();
    assert_eq!((status.restarts, status.generation, status.model.as_deref()), (0, 3, Some("haiku")));
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_the_model_at_work_restarts_nothing() {
    for configured in [None, Some("haiku")] {
        let bench = Bench::with(|config| config.cli.model = configured.map(str::to_owned)).await;
        let alice = bench.pilot.session("alice");
        let mut turn = alice.send("hello").await.unwrap();
        let mut announced: Option<String> = None;
        while let Some(event) = turn.next().await {
            let line: serde_json::Value = serde_json::from_slice(event.unwrap().as_bytes()).unwrap();
            announced = announced.or(line["model"].as_str().map(str::to_owned));
        }
        let child = pid(&alice);
        let model = configured.map(str::to_owned).or(announced).unwrap();
        for _ in 0..2 {
            let options = TurnOptions::default().model(&model);
            let turn = alice.send_with("again", options).await.unwrap().finish().await;
            assert!(turn.is_ok(), "{turn:?}");
            assert_eq!(pid(&alice), child, "{model} was at work already");
        }
        bench.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_brought_in_where_there_is_no_context() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let said = |role, text: &str| Message { role, content: vec![Block::Text(text.into())] };
    let options = |text: &str| {
        let history = History::new(vec![said(Role::User, text), said(Role::Assistant, "yes")]);
        TurnOptions::default().history(history)
    };
    let first = alice.send_with("[[recall]]", options("EARLIER")).await.unwrap().finish().await;
    assert_eq!(first.text, "EARLIER");
    let second = alice.send_with("[[recall]]", options("OTHER")).await.unwrap().finish().await;
    assert!(!second.text.contains("OTHER"), "{second:?}");
    assert!(!first.context_lost && !second.context_lost);
    bench.end().await;
}

/// Warming starts the child without a turn and purging forgets everything.
#[tokio::test(flavor = "multi_thread")]
async fn warm_starts_child_purge_deletes_everything() {
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

/// An interrupt behind a slow reader does not cost the child.
#[tokio::test(flavor = "multi_thread")]
async fn interrupt_behind_slow_reader_keeps_child() {
    let bench = Bench::with(|config| {
        config.session.event_buffer = 1;
        config.session.event_buffer_bytes = 1024;
        config.session.stop_interrupt = Duration::from_millis(100);
    })
    .await;
    let alice = bench.pilot.session("alice");
    let mut turn = alice.send("[[deltas:100000]]").await.unwrap();
    assert!(turn.next().await.unwrap().is_ok());
    let child = pid(&alice);
    assert!(alice.interrupt().await.unwrap());
    // Its reader takes nothing, and still the next turn is served, by the same child.
    let answer = say(&alice, "next").await;
    assert!(answer.ends_with("next"), "{answer}");
    assert_eq!(pid(&alice), child);
    drop(turn);
    bench.end().await;
}

/// Who kills the whole program in the instant after must not make a turn forgotten in silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_on_file_before_its_reader_hears_the_end() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let file = crate::common::layout::record_dir(bench.data.path(), "alice", "default").join("journal");
    for number in 1..=300_u64 {
        assert_eq!(say(&alice, "again").await, format!("echo {number}: again"));
        // The last mark: a frame of 512 bytes with a head of 16.
        let noted = std::fs::read(&file).unwrap();
        let noted: serde_json::Value = serde_json::from_slice(&noted[noted.len() - 496..]).unwrap();
        assert_eq!(noted["turns"], number, "{noted}");
    }
    bench.end().await;
}
