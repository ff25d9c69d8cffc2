//! A child that is started ahead, and becomes that of a user who was not known.

use pilotlight::{Session, TurnOptions};
use tokio::time::{Duration, Instant, sleep};

use super::bench::Bench;
use super::embedded::{Embedded, child, finish, say};
use crate::common::process::Process;
use crate::common::{SOON, eventually, eventually_some};

/// First turns that are timed for each way, with `tests/run --long`; else one.
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
    let Some(bench) = Bench::of_newest().await else { return };
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
    let Some(bench) = Bench::of_newest().await else { return };
    let running = with_spares(&bench, 1).await;
    let spare = bench.only_cli();
    spare.kill();
    let alice = running.alice();
    say(&alice, "the word is heliotrope").await;
    assert_ne!(child(&alice), spare);
    assert_eq!(say(&alice, "[[recall]]").await, "the word is heliotrope");
    running.end().await;
}

/// Reported, not judged: the machine of a test run has its moods. A spare that has rested is what a newcomer usually
/// gets; one that has just answered its first ping still works on its own start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spare_first_turn_is_timed() {
    let Some(bench) = Bench::to_measure().await else { return };
    let running = bench.embed(|config| config.spares.min = 1).await;
    let (mut cold, mut fresh, mut rested, mut warm) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for (way, times) in [("fresh", &mut fresh), ("rested", &mut rested)] {
            ready(&running, 1).await;
            if way == "rested" {
                at_rest(bench.only_cli()).await;
            }
            let newcomer = running.pilot.session(format!("{way} {round}"));
            times.push(turn(&newcomer).await);
            // The next spare starts meanwhile.
            ready(&running, 1).await;
            for child in bench.clis() {
                at_rest(child).await;
            }
            warm.push(turn(&newcomer).await);
            if way == "rested" {
                // A user with a child gets no spare.
                let second = running.pilot.conversation(format!("{way} {round}"), "second");
                cold.push(turn(&second).await);
                second.evict().await.unwrap();
            }
            newcomer.evict().await.unwrap();
        }
    }
    let [cold, fresh, rested, warm] = [cold, fresh, rested, warm].map(|mut times| {
        times.sort();
        times
    });
    let of = |times: &[Duration]| (times[times.len() / 2], times[times.len() - 1]);
    println!("{}: cold {:?}, warm {:?} (median, greatest)", super::version(), of(&cold), of(&warm));
    for (way, times) in [("rested", &rested), ("just ready", &fresh)] {
        let (median, greatest) = of(times);
        println!(
            "{}: first turn on a spare, {way}: {median:?} ({greatest:?}), {:.2} of cold, {:.2} of warm",
            super::version(),
            median.as_secs_f64() / of(&cold).0.as_secs_f64(),
            median.as_secs_f64() / of(&warm).0.as_secs_f64(),
        );
    }
    running.end().await;
}

/// Waits until the process has needed no more than a tick within a second.
async fn at_rest(process: Process) {
    let mut before = None;
    eventually_some("it is at rest", SOON, async || {
        sleep(Duration::from_secs(1)).await;
        let now = process.ticks();
        let rests = before.replace(now).is_some_and(|before| now <= before + 1);
        rests.then_some(())
    })
    .await;
}

async fn turn(session: &Session) -> Duration {
    let began = Instant::now();
    say(session, "hello").await;
    began.elapsed()
}
