//! An idle process is stopped; the conversation is not.

use super::bench::Bench;
use crate::common::{SOON, eventually, eventually_some};

const ONE_SECOND: &str = "[session]\nidle_timeout = \"1s\"\n";

/// An idle process is stopped and the conversation goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_process_is_stopped_conversation_continues() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve(ONE_SECOND).await;
    let client = server.client();
    client.turn("alice", "the word is heliotrope").await.text();
    let evicted = bench.only_cli();
    eventually("the idle CLI is stopped", SOON, || !evicted.is_alive()).await;
    let is_empty = async || client.active().await.is_empty().then_some(());
    eventually_some("the pool has no active session", SOON, is_empty).await;
    assert_eq!(client.turn("alice", "[[recall]]").await.text(), "the word is heliotrope");
    assert_ne!(bench.only_cli(), evicted);
    assert_eq!(bench.conversations().len(), 1, "it is the same conversation");
    assert!(client.metrics().await.sum("pilotlight_evictions_total", &["reason=\"idle\""]) >= 1.0);
}

/// A busy process is not idle however long its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_24_busy_process_is_never_idle() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve(ONE_SECOND).await;
    let client = server.client();
    // Three times the idle timeout, without a sign of life.
    assert_eq!(client.turn("alice", "[[delay:3000]][[say:slow]]").await.text(), "slow");
    assert_eq!(bench.api.requests().len(), 1);
}
