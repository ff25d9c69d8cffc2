//! A child that is started ahead, and becomes that of a user who was not known.

use pilotlight::{Session, TurnOptions};
use tokio::time::{Duration, Instant};

use super::bench::Bench;
use super::embedded::{Embedded, child, finish, say};
use crate::common::{SOON, eventually};

/// First turns that are timed for each way.
const ROUNDS: usize = 7;

async fn with_spares(bench: &Bench, min: usize) -> Embedded {
    let running = bench.embed(|config| config.spares.min = min).await;
    ready(&running, min).await;
    running
}

async fn ready(running: &Embedded, count: usize) {
    eventually("the spares are ready", SOON, || running.pilot.spares_ready() == count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spare_serves_a_newcomer_without_a_start() {
    let Some(bench) = Bench::new().await else { return };
    let running = with_spares(&bench, 1).await;
    assert_eq!(bench.api.requests().len(), 0, "warming costs nothing at the API");
    let spare = bench.only_cli();
    let alice = running.alice();
    let options = TurnOptions::default().system_prompt("You are a lighthouse.");
    let outcome = finish(alice.send_with("the word is heliotrope", options).await.unwrap()).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(child(&alice), spare, "no process was started for it");
    let requests = bench.api.requests();
    assert_eq!(requests.len(), 1);
    // Bound by the handshake, which comes with the user.
    assert!(requests[0].system.contains("You are a lighthouse."), "{}", requests[0].system);
    assert_eq!(say(&alice, "[[recall]]").await, "the word is heliotrope");
    assert_eq!(child(&alice), spare);
    alice.evict().await.unwrap();
    assert!(say(&alice, "[[recall]]").await.starts_with("the word is heliotrope"));
    assert_ne!(child(&alice), spare, "resumed in the directory of the spare");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_spare_does_not_reach_a_newcomer() {
    let Some(bench) = Bench::new().await else { return };
    let running = with_spares(&bench, 1).await;
    let spare = bench.only_cli();
    spare.kill();
    let alice = running.alice();
    say(&alice, "the word is heliotrope").await;
    assert_ne!(child(&alice), spare);
    assert_eq!(say(&alice, "[[recall]]").await, "the word is heliotrope");
    running.end().await;
}

/// Reported, not judged: the machine of a test run has its moods.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spare_first_turn_is_timed() {
    let Some(bench) = Bench::for_long().await else { return };
    let running = bench.embed(|config| config.spares.min = 1).await;
    let (mut cold, mut on_spare, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        ready(&running, 1).await;
        let newcomer = running.pilot.session(format!("newcomer {round}"));
        on_spare.push(turn(&newcomer).await);
        warm.push(turn(&newcomer).await);
        newcomer.evict().await.unwrap();
        // The next spare is ready: nothing else starts beside it.
        ready(&running, 1).await;
        // A user with a child gets no spare.
        let other = running.pilot.conversation(format!("newcomer {round}"), "second");
        say(&newcomer, "again").await;
        cold.push(turn(&other).await);
        other.evict().await.unwrap();
        newcomer.evict().await.unwrap();
    }
    let of = |times: &mut Vec<Duration>| {
        times.sort();
        (times[times.len() / 2], times[times.len() - 1])
    };
    let ((cold, _), (spare, worst), (warm, _)) = (of(&mut cold), of(&mut on_spare), of(&mut warm));
    println!(
        "{}: first turn on a spare {spare:?} (p95 {worst:?}), cold {cold:?}, warm {warm:?}: {:.2} of cold, {:.2} of warm",
        super::version(),
        spare.as_secs_f64() / cold.as_secs_f64(),
        spare.as_secs_f64() / warm.as_secs_f64(),
    );
    running.end().await;
}

async fn turn(session: &Session) -> Duration {
    let began = Instant::now();
    say(session, "hello").await;
    began.elapsed()
}
