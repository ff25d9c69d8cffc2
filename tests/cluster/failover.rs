//! No node's end loses a conversation.

use std::time::Duration;

use tokio::time::Instant;

use tokio::task::JoinSet;

use crate::asker::now;
use crate::common::{SOON, eventually, installed};
use crate::history;
use crate::nodes::{Nodes, SIM};
use crate::observer::Observer;
use crate::talk::{Talk, quantile, spread};

/// How soon the conversations of a node that was killed go on.
const GOES_ON_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversation_goes_on_after_its_node_is_killed() {
    let Some(mut cluster) = Nodes::start(3, SIM).await else { return };
    let client = cluster.client(0);
    for number in 0..3 {
        assert!(client.turn("alice", &format!("the word is word-{number}-end")).await.error().is_none());
    }
    let owner = cluster.owner(0, "alice").await;
    cluster.nodes[owner].kill().await;
    let killed = Instant::now();
    let other = (owner + 1) % 3;
    let recalled = cluster.client(other).turn("alice", "[[recall]]").await;
    assert!(killed.elapsed() < GOES_ON_WITHIN, "{:?}", killed.elapsed());
    for number in 0..3 {
        assert!(recalled.text().contains(&format!("word-{number}-end")), "{:?}", recalled.events);
    }
    assert!(!recalled.events.iter().any(|event| event["subtype"] == "context_lost"), "{:?}", recalled.events);
}

/// All users of a killed node come at the same moment, and come again until they are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p95_of_failovers_is_below_5_s() {
    const USERS: usize = 45;
    let Some(mut cluster) = Nodes::start(3, SIM).await else { return };
    let names: Vec<_> = (0..USERS).map(|number| format!("failed-over-{number}")).collect();
    let observer = Observer::start(&cluster, names.iter().map(|name| (name.as_str(), "default")));
    let sites = cluster.sites();
    let mut first = JoinSet::new();
    for (number, name) in names.iter().enumerate() {
        let (mut talk, site) = (Talk::new(name, "default"), sites[number % 3].clone());
        first.spawn(async move {
            // On a crowded machine a node may lose its lease while it starts all of them.
            while !talk.say(&site, "").await.is_good() {}
            talk
        });
    }
    let talks = first.join_all().await;
    let marks = cluster.marks();
    eventually("all children are seen", SOON, || {
        marks.iter().map(|it| observer.alive(it)).sum::<usize>() == USERS
    })
    .await;
    let had = observer.alive(&marks[0]);
    cluster.nodes[0].kill().await;
    let killed = now();
    let mut again = JoinSet::new();
    for (number, mut talk) in talks.into_iter().enumerate() {
        let site = sites[1 + number % 2].clone();
        again.spawn(async move {
            while !talk.recall(&site).await.is_good() {}
            (killed.elapsed(), talk)
        });
    }
    let mut took: Vec<_> = again.join_all().await.into_iter().map(|(took, _)| took).collect();
    installed::say(&format!("failover of {had} of {USERS} users: {}", spread(&mut took)));
    assert!(had > 0, "the node had users");
    assert!(quantile(&mut took, 0.95) < GOES_ON_WITHIN, "{}", spread(&mut took));
    observer.check();
    assert!(history::check(&cluster).await >= USERS);
}
