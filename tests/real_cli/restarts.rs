//! The server's own end: nothing is left of it, and the next one on the same directory knows the conversations.

use crate::bench::Bench;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_orderly_stop_the_next_server_goes_on() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    server.client().turn("alice", "the word is heliotrope").await.text();
    // At once: the turn may not be on disk yet.
    server.stop().await;
    let server = bench.serve("").await;
    assert_eq!(server.client().turn("alice", "[[recall]]").await.text(), "the word is heliotrope");
    assert_eq!(bench.conversations().len(), 1, "it is the same conversation");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_stop_lets_the_running_turn_finish() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let stream = server.client().stream("alice", "[[hold:gate]][[say:finished]]").await;
    bench.api.entered("gate", 1).await;
    let stop = server.stop();
    let answer = async {
        bench.api.release("gate");
        stream.rest().await
    };
    let ((), turn) = tokio::join!(stop, answer);
    assert_eq!(turn.text(), "finished");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_sigkill_nothing_is_left_and_the_next_server_goes_on() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    server.client().turn("alice", "the word is heliotrope").await.text();
    bench.on_disk(1).await;
    server.kill().await;
    let server = bench.serve("").await;
    assert_eq!(server.client().turn("alice", "[[recall]]").await.text(), "the word is heliotrope");
    assert_eq!(bench.conversations().len(), 1, "it is the same conversation");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_sigkill_in_the_first_turns_nothing_is_left_and_the_prompts_are_known() {
    // Several, for each is a race between the kill and what is written about a conversation at its beginning.
    const SAID: [(&str, &str); 3] = [("alice", "heliotrope"), ("bob", "marjoram"), ("carol", "bergamot")];
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let mut streams = Vec::new();
    for (user, word) in SAID {
        let message = format!("the word is {word} [[say:beginning]][[hold:{word}]]");
        let mut stream = server.client().stream(user, &message).await;
        stream.until_text().await;
        bench.prompt_on_disk(word).await;
        streams.push(stream);
    }
    server.kill().await;
    drop(streams);
    let server = bench.serve("").await;
    for (user, word) in SAID {
        bench.api.aborted(word).await;
        let recalled = server.client().turn(user, "[[recall]]").await;
        assert!(recalled.text().contains(word), "{user}: {}", recalled.text());
    }
}
