//! A child that goes while its session stays.

use super::*;

/// An idle session is evicted and resumed by the next message.
#[tokio::test(flavor = "multi_thread")]
async fn idle_session_is_evicted_then_resumed() {
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
async fn a_session_that_was_warmed_is_not_evicted_at_once() {
    let bench = Bench::with(|config| config.session.idle_timeout = Duration::from_millis(700)).await;
    let alice = bench.pilot.session("alice");
    say(&alice, "hello").await;
    eventually("evicted", || alice.status().is_none_or(|status| status.pid.is_none())).await;
    let warmed = Instant::now();
    alice.warm().await.unwrap();
    eventually("evicted again", || alice.status().is_none_or(|status| status.pid.is_none())).await;
    assert!(warmed.elapsed() >= Duration::from_millis(650), "{:?}", warmed.elapsed());
    bench.end().await;
}
