//! A CLI may be killed at any instant: the conversation goes on with the next message, or the loss is said aloud.

use super::bench::Bench;
use crate::common::{SOON, eventually, shown};

/// Killed while idle the next turn knows what was said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_idle_process_resumes_with_context() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    client.turn("alice", "the word is heliotrope").await.text();
    bench.on_disk(1).await;
    let killed = bench.only_cli();
    killed.kill();
    eventually("the CLI is gone", SOON, || !killed.is_alive()).await;
    assert_eq!(client.turn("alice", "[[recall]]").await.text(), "the word is heliotrope");
    assert_ne!(bench.only_cli(), killed);
    assert_eq!(client.pid().await, bench.only_cli().pid);
    assert_eq!(bench.conversations().len(), 1, "it is the same conversation");
}

/// A message sent in the instant of the kill is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_racing_kill_is_answered() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    client.turn("alice", "the word is heliotrope").await.text();
    bench.on_disk(1).await;
    // Whether the death or the message is noticed first is left to chance.
    bench.only_cli().kill();
    assert_eq!(client.turn("alice", "[[recall]]").await.text(), "the word is heliotrope");
}

/// Killed right after an answer nothing is lost in silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_07_kill_after_answer_loses_nothing_silently() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    client.turn("alice", "the word is heliotrope").await.text();
    bench.on_disk(1).await;
    let cli = bench.only_cli();
    let mut stream = client.stream("alice", "the herb is marjoram").await;
    stream.until("the result", |event| event["type"] == "result").await;
    // The CLI writes this turn to its transcript some 75 ms from now.
    cli.kill();
    stream.rest().await.text();
    let next = client.turn("alice", "[[recall]]").await;
    let is_said = next.events.iter().any(|event| event.to_string().contains("context_lost"));
    assert!(next.text().contains("heliotrope"), "what was on disk is known: {}", next.text());
    assert!(next.text().contains("marjoram") || is_said, "lost in silence: {}", shown(&next.events));
}

/// Killed before a word came out the turn is asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turn_killed_before_output_is_retried() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    client.turn("alice", "the word is heliotrope").await.text();
    bench.on_disk(1).await;
    let stream = client.stream("alice", "[[hold:gate]][[say:after all]]").await;
    bench.api.entered("gate", 1).await;
    bench.only_cli().kill();
    bench.api.entered("gate", 2).await;
    bench.api.release("gate");
    assert_eq!(stream.rest().await.text(), "after all");
    assert!(client.turn("alice", "[[recall]]").await.text().contains("heliotrope"));
}

/// A kill in mid-answer is reported to the caller; the next turn has the context.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_in_mid_answer_is_reported_context_stays() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    client.turn("alice", "the word is heliotrope").await.text();
    bench.on_disk(1).await;
    let mut stream =
        client.stream("alice", "the herb is marjoram [[say:beginning]][[hold:gate]][[say:end]]").await;
    stream.until_text().await;
    bench.prompt_on_disk("marjoram").await;
    bench.only_cli().kill();
    let broken = stream.rest().await;
    let (code, _) = broken.error().expect("an error event");
    assert_eq!(code, "session_lost");
    assert!(broken.done, "a lost turn ends its stream like any other");
    let recalled = client.turn("alice", "[[recall]]").await;
    assert!(recalled.text().contains("heliotrope"), "{}", recalled.text());
    assert!(recalled.text().contains("marjoram"), "the interrupted prompt is kept too: {}", recalled.text());
    assert_eq!(bench.api.count("marjoram"), 1, "an answer that had begun is not asked for again");
}
