//! A node that stands still: its children end without it, another node goes on, and what it does later has no effect.

use std::time::Duration;
use tokio::task::JoinSet;

use crate::asker::{Asker, End, now};
use crate::common::{SOON, eventually, installed};
use crate::history;
use crate::nodes::{LEASE, Nodes, SIM};
use crate::observer::Observer;
use crate::talk::Talk;

/// How soon another node goes on.
const GOES_ON_WITHIN: Duration = Duration::from_secs(5);
/// What a look at the process table, and the kill of a tree, take on a busy machine.
const LOOKS: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_server_is_fenced_and_commits_nothing() {
    let Some(cluster) = Nodes::start(3, SIM).await else { return };
    let observer = Observer::start(&cluster, [("alice", "default")]);
    let (sites, marks) = (cluster.sites(), cluster.marks());
    let mut talk = Talk::new("alice", "default");
    assert!(talk.say(&sites[0], "").await.is_good());
    let owner = cluster.owner(0, "alice").await;
    let other = (owner + 1) % 3;
    // A turn runs when the server stops.
    let mut running = JoinSet::new();
    {
        let (asker, site) = (Asker::new("alice", "default"), sites[owner].clone());
        running.spawn(async move { asker.ask(&site, "in-flight-word[[sleep:4000]]").await });
    }
    eventually_busy(&cluster, owner).await;
    // The observer may be behind on a busy machine.
    eventually("the child is seen", SOON, || observer.alive(&marks[owner]) == 1).await;
    cluster.nodes[owner].pause();
    let stopped = now();
    // Each caller that asks meanwhile is answered, in the end with the whole conversation.
    loop {
        let end = talk.recall(&sites[other]).await;
        if end.is_good() {
            break;
        }
        assert!(["node_lost", "no_node", "not_owner"].contains(&end.code()), "{end:?}");
    }
    let went_on = stopped.elapsed();
    let died = observer.last_of(&marks[owner], stopped).expect("it had a child") - stopped;
    installed::say(&format!("stopped server: children gone after {died:?}, goes on after {went_on:?}"));
    assert!(died < LEASE + LOOKS, "{died:?}");
    assert!(went_on < GOES_ON_WITHIN, "{went_on:?}");
    assert!(talk.say(&sites[other], "").await.is_good());

    let before = history::head(&cluster, "alice").await.unwrap();
    cluster.nodes[owner].resume();
    // The turn that it had has one end, which is none of success.
    let ended = running.join_next().await.unwrap().unwrap();
    assert!(matches!(ended, End::Failed { .. } | End::Refused { .. }), "{ended:?}");
    let (recalled, _, node) = talk.asker.asked(&sites[owner], "[[recall]]").await;
    assert!(recalled.is_good() && !recalled.text().contains("in-flight-word"), "{recalled:?}");
    assert_ne!(node.as_deref(), Some(cluster.nodes[owner].name.as_str()), "the old node forwards");
    let after = history::head(&cluster, "alice").await.unwrap();
    assert!(after["fence"] == before["fence"], "the owner is the same: {before} {after}");
    assert!(talk.say(&sites[owner], "").await.is_good());
    assert!(talk.recall(&sites[owner]).await.is_good());
    observer.check();
    history::check(&cluster).await;
}

/// Waits until the node has a running turn.
pub async fn eventually_busy(cluster: &Nodes, node: usize) {
    let client = cluster.client(node);
    crate::common::eventually_some("a turn runs", SOON, async || {
        let busy = client.metrics().await.sum("pilotlight_sessions", &["state=\"busy\""]);
        (busy >= 1.0).then_some(())
    })
    .await;
}

/// Shims end their trees also while the server is stopped, and while nobody asks for the user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shims_end_children_without_their_server() {
    const USERS: usize = 8;
    let Some(cluster) = Nodes::start(1, SIM).await else { return };
    let names: Vec<_> = (0..USERS).map(|number| format!("fenced-{number}")).collect();
    let observer = Observer::start(&cluster, names.iter().map(|name| (name.as_str(), "default")));
    let site = cluster.sites().remove(0);
    let mut talks: Vec<_> = names.iter().map(|name| Talk::new(name, "default")).collect();
    for talk in &mut talks {
        assert!(talk.say(&site, "").await.is_good());
    }
    let mark = cluster.marks().remove(0);
    eventually("all children are seen", SOON, || observer.alive(&mark) == USERS).await;
    cluster.nodes[0].pause();
    let stopped = now();
    eventually("no child is left", LEASE + LOOKS, || observer.alive(&mark) == 0).await;
    installed::say(&format!("{USERS} children gone after {:?}", stopped.elapsed()));
    cluster.nodes[0].resume();
    for talk in &mut talks {
        let mut end = talk.recall(&site).await;
        while !end.is_good() {
            assert!(stopped.elapsed() < SOON, "{end:?}");
            end = talk.recall(&site).await;
        }
    }
    observer.check();
    history::check(&cluster).await;
}
