//! A caller that hangs up ends its turn, and nothing else.

use super::bench::Bench;

/// Hanging up interrupts the turn and keeps the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hang_up_interrupts_turn_keeps_process() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    client.turn("alice", "the word is heliotrope").await.text();
    let before = client.pid().await;
    let mut stream = client.stream("alice", "[[say:beginning]][[hang]]").await;
    stream.until_text().await;
    drop(stream);
    bench.api.aborted("[[hang]]").await;
    let next = client.turn("alice", "[[recall]]").await;
    assert!(next.text().contains("heliotrope"), "{}", next.text());
    assert_eq!(client.pid().await, before);
    assert_eq!(bench.clis().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_up_before_the_first_word_does_the_same() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    client.turn("alice", "hello").await.text();
    let before = client.pid().await;
    let stream = client.stream("alice", "[[hold:never]]").await;
    bench.api.entered("never", 1).await;
    drop(stream);
    bench.api.aborted("[[hold:never]]").await;
    assert_eq!(client.turn("alice", "[[say:fine]]").await.text(), "fine");
    assert_eq!(client.pid().await, before);
}

/// One that hangs up does not end the turn of the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hang_up_spares_the_next_turn() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    let running = client.stream("alice", "[[hold:first]][[say:one]]").await;
    bench.api.entered("first", 1).await;
    // It waits behind the running turn when its caller goes away: it is never asked.
    drop(client.stream("alice", "[[say:nobody waits for this]]").await);
    bench.api.release("first");
    assert_eq!(running.rest().await.text(), "one");
    assert_eq!(client.turn("alice", "[[say:two]]").await.text(), "two");
}
