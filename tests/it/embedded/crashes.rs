//! What a child may do wrong without anything being lost.

use super::*;

/// A turn whose child exits before any output goes to the next child, once.
#[tokio::test(flavor = "multi_thread")]
async fn turn_without_output_is_retried_once() {
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
async fn broken_lines_do_not_break_the_session() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    assert!(ask(&alice, "[[fault:garbage-line]]").await.is_ok());
    assert!(ask(&alice, "[[fault:invalid-utf8]]").await.is_ok());
    say(&alice, "fine").await;
    assert_eq!(alice.status().unwrap().generation, 1);
    bench.end().await;
}
