//! One warm process per user: the same one for every turn, with the context, whatever the turns bring.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::bench::Bench;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_turns_are_served_by_one_process() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    let mut pids = HashSet::new();
    for number in 1..=3 {
        let turn = client.turn("alice", &format!("[[say:answer {number}]]")).await;
        assert_eq!(turn.text(), format!("answer {number}"));
        pids.insert(client.pid().await);
    }
    assert_eq!(pids, HashSet::from([bench.only_cli().pid]));
    assert_eq!(bench.api.requests().len(), 3, "no call of the API but the turns' own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_context_is_carried_from_turn_to_turn() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    client.turn("alice", "the word is heliotrope").await.text();
    client.turn("alice", "the herb is marjoram").await.text();
    let recalled = client.turn("alice", "[[recall]]").await;
    assert_eq!(recalled.text(), "the word is heliotrope | the herb is marjoram");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_users_have_two_processes_and_two_contexts() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    client.turn("alice", "I am Alice").await.text();
    client.turn("bob", "I am Bob").await.text();
    assert_eq!(bench.clis().len(), 2);
    assert_eq!(client.turn("alice", "[[recall]]").await.text(), "I am Alice");
    assert_eq!(client.turn("bob", "[[recall]]").await.text(), "I am Bob");
    assert_eq!(client.active().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deltas_arrive_while_the_answer_is_being_written() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    let mut stream = client.stream("alice", "[[say:first]][[hold:rest]][[say:second]]").await;
    // The API goes on only after the first delta has come all the way.
    stream.until_text().await;
    bench.api.release("rest");
    assert_eq!(stream.rest().await.text(), "second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_first_messages_at_once_start_one_process() {
    const MESSAGES: usize = 50;
    let Some(bench) = Bench::new().await else { return };
    let bench = Arc::new(bench);
    let server = bench.serve("[session]\nturn_queue = 64\n").await;
    let done = Arc::new(AtomicBool::new(false));
    let mut observer = JoinSet::new();
    observer.spawn(observe(Arc::clone(&bench), Arc::clone(&done)));
    let mut turns = JoinSet::new();
    for number in 0..MESSAGES {
        let client = server.client();
        turns.spawn(async move {
            let turn = client.turn("alice", &format!("[[say:answer {number}.]]")).await;
            assert_eq!(turn.text(), format!("answer {number}."));
        });
    }
    turns.join_all().await;
    done.store(true, Ordering::Relaxed);
    let seen: HashSet<_> = observer.join_all().await.into_iter().flatten().collect();
    assert_eq!(seen, HashSet::from([bench.only_cli().pid]), "one process from the first message to the last");
    assert_eq!(bench.conversations().len(), 1);
    for number in 0..MESSAGES {
        assert_eq!(
            bench.api.count(&format!("answer {number}.")),
            1,
            "one call of the API for message {number}"
        );
    }
}

/// Every CLI seen until it is done.
async fn observe(bench: Arc<Bench>, done: Arc<AtomicBool>) -> HashSet<i32> {
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let mut seen = HashSet::new();
    while !done.load(Ordering::Relaxed) {
        looks.tick().await;
        seen.extend(bench.clis().iter().map(|process| process.pid));
    }
    seen
}
