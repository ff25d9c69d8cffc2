//! An actor that panics takes nothing with it: its turns end with an error, its children are stopped, the next turn
//! works and remembers.

use std::time::{Duration, Instant};

use pilotlight::{Config, Outcome, Pilotlight};

use crate::common::bench::{Bench, clis_of, eventually, is_childless, pid, say, written_down};

/// Panics an actor while one user's turn runs and another user's child idles; returns how the turn ended.
async fn panic_in(bench: &Bench, actor: &str) -> Outcome {
    let (alice, bob) = (bench.pilot.session("alice"), bench.pilot.session("bob"));
    say(&alice, "before").await;
    say(&bob, "bob was here").await;
    written_down(&alice, "before").await;
    let mut turn = alice.send("[[sleep:1500]] during").await.unwrap();
    assert!(turn.next().await.unwrap().is_ok(), "the turn has begun");
    bench.pilot.fail(actor, "alice").await;
    turn.finish().await
}

/// A session actor that panics is replaced and its child never doubled.
#[tokio::test(flavor = "multi_thread")]
async fn fault_44_panicked_session_is_replaced_one_child() {
    let bench = Bench::new().await;
    let old_bob = {
        let outcome = panic_in(&bench, "session").await;
        assert!(!outcome.is_ok(), "{outcome:?}");
        pid(&bench.pilot.session("bob"))
    };
    let alice = bench.pilot.session("alice");
    let watched = bench.data.path().to_owned();
    let watch = tokio::spawn(async move {
        // Two shims and two CLIs, and what the simulation starts: never two CLIs of one session.
        let mut most = 0;
        for _ in 0..200 {
            most = most.max(clis_of(&watched, "alice").len());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        most
    });
    assert!(say(&alice, "[[recall]]").await.starts_with("before"));
    assert!(watch.await.unwrap() <= 1, "two children of one session");
    assert_eq!(say(&bench.pilot.session("bob"), "[[recall]]").await, "bob was here");
    assert_eq!(pid(&bench.pilot.session("bob")), old_bob, "nobody else notices");
    bench.end().await;
}

/// A supervisor that panics is replaced with all its sessions.
#[tokio::test(flavor = "multi_thread")]
async fn fault_44_panicked_supervisor_is_replaced() {
    let bench = Bench::new().await;
    let outcome = panic_in(&bench, "supervisor").await;
    assert!(!outcome.is_ok(), "{outcome:?}");
    assert!(say(&bench.pilot.session("alice"), "[[recall]]").await.starts_with("before"));
    assert_eq!(say(&bench.pilot.session("bob"), "[[recall]]").await, "bob was here");
    bench.end().await;
}

/// A sampler or an evictor that panics disturbs no turn and works again.
#[tokio::test(flavor = "multi_thread")]
async fn fault_44_panicked_sampler_and_evictor_recover() {
    let bench = Bench::with(|config| {
        config.session.idle_timeout = Duration::from_secs(2);
        config.metrics.sample_interval = Duration::from_millis(100);
    })
    .await;
    for actor in ["sampler", "evictor"] {
        let outcome = panic_in(&bench, actor).await;
        assert!(outcome.is_ok(), "{actor}: {outcome:?}");
    }
    let alice = bench.pilot.session("alice");
    eventually("memory is measured", || alice.status().is_some_and(|status| status.memory_bytes > 0)).await;
    eventually("idle sessions are evicted", || is_childless(&alice)).await;
    bench.end().await;
}

/// A turn that comes while its actor fails is counted once.
#[tokio::test(flavor = "multi_thread")]
async fn fault_44_turn_during_panic_is_counted_once() {
    let data = tempfile::tempdir().unwrap();
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let mut config = Config::new(data.path());
    config.cli.program = "sim".to_owned();
    config.session.turn_queue = 64;
    let pilot = Pilotlight::start_with(config, &recorder).await.unwrap();
    let alice = pilot.session("alice");
    let rounds = 400;
    for round in 0..rounds {
        drop(alice.send("there is an actor now").await);
        pilot.fail("session", "alice").await;
        // Just before, while and just after it fails.
        let moment = Instant::now() + Duration::from_micros(round * 5);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        drop(alice.send("hello").await);
    }
    pilot.shutdown(Duration::from_secs(5)).await;
    let metrics = recorder.snapshotter().snapshot().into_vec();
    let turns = metrics.into_iter().filter(|(key, ..)| key.key().name() == "pilotlight_turns_total");
    let counted: u64 = turns
        .map(|(_, _, _, value)| match value {
            metrics_util::debugging::DebugValue::Counter(count) => count,
            _ => 0,
        })
        .sum();
    assert_eq!(counted, 2 * rounds);
}

/// A child whose actor has just failed is stopped in order, however long it takes, before a shutdown returns.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown_waits_for_the_child_of_a_failed_actor() {
    let bench = Bench::with(|config| {
        config.session.stop_eof = Duration::from_secs(4);
        config.session.stop_term = Duration::from_secs(4);
    })
    .await;
    let alice = bench.pilot.session("alice");
    say(&alice, "[[fault:ignore-eof]][[fault:ignore-term]] stubborn").await;
    bench.pilot.fail("session", "alice").await;
    eventually("the actor is gone", || alice.status().is_none()).await;
    bench.end().await;
}
