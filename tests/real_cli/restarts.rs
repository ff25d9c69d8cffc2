//! The server's own end: nothing is left of it, and the next one on the same directory knows the conversations.

use std::time::Duration;

use tokio::task::JoinSet;

use super::bench::Bench;
use crate::common::eventually;

/// How long after the server's end anything of it may still be there.
const GONE_WITHIN: Duration = Duration::from_secs(1);

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

/// After SIGKILL nothing is left and the next server goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_server_leaves_nothing_next_continues() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    server.client().turn("alice", "the word is heliotrope").await.text();
    bench.on_disk(1).await;
    server.kill().await;
    let server = bench.serve("").await;
    assert_eq!(server.client().turn("alice", "[[recall]]").await.text(), "the word is heliotrope");
    assert_eq!(bench.conversations().len(), 1, "it is the same conversation");
}

/// After SIGKILL in the first turns nothing is left and the prompts are known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_killed_in_first_turns_keeps_prompts() {
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

/// After SIGKILL nothing goes on and nothing is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_17_killed_server_stops_and_keeps_all() {
    const SAID: [(&str, &str, &str); 3] = [
        ("busy", "heliotrope", "[[deltas:50]][[hang]]"),
        ("held", "marjoram", "[[hold:never]]"),
        ("at work", "bergamot", r#"[[tool:Bash {"command":"setsid sleep 86405 & sleep 86406"}]]"#),
    ];
    let Some(bench) = Bench::new().await else { return };
    let allowed = "[permissions]\npolicy = \"allow\"\n";
    let server = bench.serve(allowed).await;
    let client = server.client();
    let mut streams = JoinSet::new();
    for (user, word, _) in SAID {
        client.turn(user, &format!("the word is {word}")).await.text();
    }
    bench.on_disk(SAID.len()).await;
    for (user, _, message) in SAID {
        let client = client.clone();
        // One that is held gets no answer, so none is waited for.
        streams.spawn(async move { client.stream(user, message).await.until_text().await });
    }
    bench.api.entered("never", 1).await;
    bench.tool(&["sleep", "86405"]).await;
    bench.tool(&["sleep", "86406"]).await;
    let is_busy = |entries: &crate::common::api::Entries| {
        entries.requests.iter().any(|request| request.last().contains("[[deltas:50]]"))
    };
    bench.api.until("the busy one is asked", is_busy).await;
    // Left to itself a process with a turn goes on, and spends tokens, though nobody reads its output.
    server.process().kill();
    eventually("nothing is left", GONE_WITHIN, || bench.place.processes().is_empty()).await;
    for (_, _, message) in [SAID[0], SAID[1]] {
        bench.api.aborted(message).await;
    }
    streams.shutdown().await;
    server.kill().await;
    let server = bench.serve(allowed).await;
    for (user, word, _) in SAID {
        let recalled = server.client().turn(user, "[[recall]]").await;
        assert!(recalled.text().contains(&format!("the word is {word}")), "{user}: {}", recalled.text());
    }
    assert_eq!(bench.conversations().len(), SAID.len(), "they are the same conversations");
}
