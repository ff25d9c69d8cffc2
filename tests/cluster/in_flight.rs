//! A turn in flight when its node ends.

use std::time::Duration;
use tokio::task::JoinSet;

use crate::asker::{Asker, End, now};
use crate::common::{SOON, eventually_some};
use crate::history;
use crate::nodes::{Nodes, SIM};
use crate::observer::Observer;

/// With markers for the turn that is in flight.
async fn killed_in_flight(markers: &str) {
    let Some(mut cluster) = Nodes::start(3, SIM).await else { return };
    let observer = Observer::start(&cluster, [("alice", "default")]);
    let (alice, sites) = (Asker::new("alice", "default"), cluster.sites());
    assert!(alice.ask(&sites[0], "first-word").await.is_good());
    let owner = cluster.owner(0, "alice").await;
    let [one, other] = [1, 2].map(|step| (owner + step) % 3);
    let mut running = JoinSet::new();
    {
        let (alice, site, text) = (alice.clone(), sites[one].clone(), format!("flying-word{markers}"));
        running.spawn(async move { (alice.ask(&site, &text).await, now()) });
    }
    let client = cluster.client(owner);
    eventually_some("the turn runs", SOON, async || {
        let busy = client.metrics().await.sum("pilotlight_sessions", &["state=\"busy\""]);
        (busy == 1.0).then_some(())
    })
    .await;
    let killed = now();
    cluster.nodes[owner].kill().await;
    // `kill` also looks for what the node has left, which is none of the caller's time.
    let (ended, at) = running.join_next().await.unwrap().unwrap();
    let took = at - killed;
    assert!(["node_lost", "session_lost"].contains(&ended.code()), "{ended:?}");
    assert!(!matches!(ended, End::Cut(_)), "{ended:?}");
    assert!(took < Duration::from_secs(2), "the end came after {took:?}");
    // It was not begun again behind the caller's back.
    let recalled = alice.ask(&sites[other], "[[recall]]").await;
    assert!(recalled.text().contains("first-word"), "{recalled:?}");
    assert!(!recalled.text().contains("flying-word"), "{recalled:?}");
    observer.check();
    history::check(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_turn_of_a_killed_node_ends_once() {
    killed_in_flight("[[sleep:20000]]").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streaming_turn_of_a_killed_node_ends_once() {
    killed_in_flight("[[deltas:900]][[delay:20]]").await;
}
