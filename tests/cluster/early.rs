//! `cluster.replication = "async"`: a turn that is lost with its node is reported.

use crate::asker::{Asker, End};
use crate::common::{SOON, eventually_some};
use crate::history;
use crate::nodes::{Nodes, SIM};

fn config() -> String {
    format!("{SIM}[cluster]replication = \"async\"\n")
}

/// The text and whether a loss is reported.
fn good(end: End) -> (String, bool) {
    match end {
        End::Good { text, is_context_lost } => (text, is_context_lost),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_turn_is_reported() {
    let Some(mut cluster) = Nodes::start(2, &config()).await else { return };
    let (alice, sites) = (Asker::new("alice", "default"), cluster.sites());
    assert!(alice.ask(&sites[0], "kept-word").await.is_good());
    eventually_some("the first turn is stored", SOON, async || {
        history::head(&cluster, "alice").await.map(drop)
    })
    .await;
    let owner = cluster.owner(0, "alice").await;
    // Nothing can be stored any more.
    cluster.take_store();
    assert!(alice.ask(&sites[owner], "lost-word").await.is_good());
    cluster.nodes[owner].kill().await;
    cluster.give_store_back();
    let (text, is_lost) = good(alice.ask(&sites[1 - owner], "[[recall]]").await);
    assert!(is_lost && text.contains("kept-word") && !text.contains("lost-word"), "{is_lost}: {text}");
    let (_, is_lost) = good(alice.ask(&sites[1 - owner], "next").await);
    assert!(!is_lost, "a loss is reported once");
    history::check(&cluster).await;
}

/// Killed at any moment after the end of a turn: the turn is known, or its loss is reported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_turn_is_lost_in_silence() {
    const ROUNDS: usize = 4;
    let Some(mut cluster) = Nodes::start(2, &config()).await else { return };
    let mut reported = 0;
    for round in 0..ROUNDS {
        let sites = cluster.sites();
        let users: Vec<_> =
            (0..4).map(|number| Asker::new(&format!("early-{round}-{number}"), "default")).collect();
        for user in &users {
            assert!(user.ask(&sites[0], "first-word").await.is_good());
        }
        let turns = users.iter().map(|user| user.ask(&sites[round % 2], "second-word"));
        let all = futures_util::future::join_all(turns);
        assert!(all.await.iter().all(End::is_good));
        cluster.nodes[round % 2].kill().await;
        for user in &users {
            let (text, is_lost) = good(user.ask(&cluster.sites()[0], "[[recall]]").await);
            let is_known = text.contains("first-word") && text.contains("second-word");
            assert!(is_known || is_lost, "lost in silence: {text}");
            reported += usize::from(is_lost);
        }
        cluster.nodes[round % 2].start().await;
    }
    crate::common::installed::say(&format!("{reported} of {} conversations reported a loss", ROUNDS * 4));
    history::check(&cluster).await;
}

/// A user who rested left nothing open: the next node would take what it finds for all there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_turn_after_a_rest_is_stored_first() {
    let config = format!("{}release_after = \"1s\"\ncommit_timeout = \"1s\"\n", config());
    let Some(cluster) = Nodes::start(2, &config).await else { return };
    let (alice, sites) = (Asker::new("alice", "default"), cluster.sites());
    assert!(alice.ask(&sites[0], "kept-word").await.is_good());
    eventually_some("alice has left", SOON, async || {
        history::head(&cluster, "alice").await.filter(|head| head["released"] == true).map(drop)
    })
    .await;
    // She comes back before the store is gone.
    let owner = cluster.owner(0, "alice").await;
    cluster.take_store();
    let end = alice.ask(&sites[owner], "lost-word").await;
    assert!(
        matches!(&end, End::Failed { code, .. } | End::Refused { code, .. } if code == "not_replicated"),
        "{end:?}"
    );
    cluster.give_store_back();
}

/// The node gets its own user back, whose latest turns nobody else has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_could_not_store_stays_there() {
    let Some(mut cluster) = Nodes::start(1, &format!("drain_timeout = \"1s\"\n{}", config())).await else {
        return;
    };
    let alice = Asker::new("alice", "default");
    assert!(alice.ask(&cluster.sites()[0], "kept-word").await.is_good());
    eventually_some("the first turn is stored", SOON, async || {
        history::head(&cluster, "alice").await.map(drop)
    })
    .await;
    cluster.take_store();
    assert!(alice.ask(&cluster.sites()[0], "late-word").await.is_good());
    cluster.nodes[0].stop().await;
    cluster.give_store_back();
    cluster.nodes[0].start().await;
    let (text, is_lost) = good(alice.ask(&cluster.sites()[0], "[[recall]]").await);
    assert!(text.contains("kept-word") && text.contains("late-word") && !is_lost, "{is_lost}: {text}");
    history::check(&cluster).await;
}
