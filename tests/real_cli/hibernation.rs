//! An idle CLI that is frozen and thawed.

use std::time::Duration;

use tokio::time::Instant;

use super::bench::Bench;
use super::embedded::{child, say, send, until};
use crate::common::{SOON, eventually};

/// Each answer comes from the same process, and a frozen one ends in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_cli_answers_the_next_message() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(|config| config.session.hibernate_after = Duration::from_millis(200)).await;
    let session = system.alice();
    say(&session, "the word is abacus").await;
    let cli = child(&session);
    for _ in 0..5 {
        eventually("frozen", SOON, || session.status().is_some_and(|status| status.frozen)).await;
        let sent = Instant::now();
        let mut turn = send(&session, "[[recall]]").await;
        until(&mut turn, "the announcement", |event| event["subtype"] == "init").await;
        println!("announced {:?} after the message to a frozen process", sent.elapsed());
        assert!(super::embedded::finish(turn).await.text.contains("abacus"));
        assert_eq!(child(&session), cli);
    }
    eventually("frozen", SOON, || session.status().is_some_and(|status| status.frozen)).await;
    session.evict().await.expect("it is stopped");
    assert!(!cli.is_alive());
    assert!(say(&session, "[[recall]]").await.contains("abacus"));
    system.end().await;
}
