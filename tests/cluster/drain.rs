//! A node that is stopped in order hands over what it has, without one failed request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::asker::{Asker, End, now};
use crate::common::{SOON, eventually, eventually_some, installed};
use crate::history;
use crate::nodes::{LONG_LEASE, Nodes, SIM};
use crate::observer::Observer;
use crate::talk::{Talk, spread};

const USERS: usize = 20;
const CONVERSATIONS: usize = 5;
/// Pause of a client between two turns.
const THINKS: Duration = Duration::from_millis(1200);
/// Handing over a third of 100 sessions takes this time at most, on a busy machine.
const DRAINS_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_of_100_sessions_fails_no_request() {
    let Some(mut cluster) = Nodes::start(3, &format!("{SIM}{LONG_LEASE}")).await else { return };
    let names: Vec<_> = (0..USERS * CONVERSATIONS)
        .map(|number| (format!("drained-{}", number / CONVERSATIONS), format!("c{}", number % CONVERSATIONS)))
        .collect();
    let observer = Observer::start(
        &cluster,
        names.iter().map(|(user, conversation)| (user.as_str(), conversation.as_str())),
    );
    let sites = cluster.sites();
    let (end, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (acknowledging, mut acknowledged) = mpsc::channel(names.len());
    let mut talks = JoinSet::new();
    for (number, (user, conversation)) in names.iter().enumerate() {
        let (mut talk, sites) = (Talk::new(user, conversation), sites.clone());
        let mut first = Some(acknowledging.clone());
        let (end, ended) = (Arc::clone(&end), Arc::clone(&ended));
        talks.spawn(async move {
            let mut at = number;
            while !end.load(Ordering::Acquire) || talk.acknowledged() < 2 {
                at += 1;
                let markers = ["", "[[sleep:300]]", "[[deltas:20]][[delay:15]]"][at % 3];
                let answer = talk.say(&sites[at % sites.len()], markers).await;
                let is_closed = matches!(answer, End::Unreached)
                    && ended.load(Ordering::Acquire)
                    && at % sites.len() == 0;
                assert!(answer.is_good() || is_closed, "a request failed: {answer:?}");
                if let Some(first) = first.take() {
                    first.send(()).await.expect("the test waits for it");
                }
                tokio::time::sleep(THINKS).await;
            }
            talk
        });
    }
    // All starts take as long as the machine needs; each turn has a bound of its own, and one that fails drops its sender.
    drop(acknowledging);
    let mut begun = 0;
    while acknowledged.recv().await.is_some() {
        begun += 1;
    }
    assert_eq!(begun, names.len(), "a first turn failed");
    // Every session is there, and every third of them on the node that is drained.
    let (first, marks) = (&cluster.nodes[0], cluster.marks());
    eventually("every session has a child", SOON, || {
        marks.iter().map(|mark| observer.alive(mark)).sum::<usize>() == names.len()
    })
    .await;
    let had = observer.alive(&marks[0]);
    assert!(had > 0, "the node has users");
    assert!(first.is_running());
    // A turn of another node that goes through this one, and takes longer than the rest.
    let mut passing = JoinSet::new();
    for number in 0..6 {
        let (asker, site) = (Asker::new(&format!("passing-{number}"), "default"), sites[0].clone());
        passing.spawn(async move { asker.ask(&site, "[[deltas:100]][[delay:50]]").await });
    }
    eventually_some("they run", SOON, async || {
        let mut busy = 0.0;
        for node in 1..3 {
            busy += cluster.client(node).metrics().await.sum("pilotlight_sessions", &["state=\"busy\""]);
        }
        (busy >= 1.0).then_some(())
    })
    .await;
    // A client sees that it closes.
    ended.store(true, Ordering::Release);
    let began = now();
    cluster.nodes[0].stop().await;
    let took = began.elapsed();
    end.store(true, Ordering::Release);
    while let Some(passed) = passing.join_next().await {
        let passed = passed.unwrap();
        assert!(passed.is_good(), "a turn through the node failed: {passed:?}");
    }
    let mut all = Vec::new();
    while let Some(talk) = talks.join_next().await {
        all.push(talk.unwrap());
    }
    let mut taken: Vec<_> = all.iter().flat_map(|talk| talk.took.iter().copied()).collect();
    installed::say(&format!("drain: {had} sessions in {took:?}; turns: {}", spread(&mut taken)));
    assert!(took < DRAINS_WITHIN, "{took:?}");
    for (number, talk) in all.iter_mut().enumerate() {
        let recalled = talk.recall(&sites[1 + number % 2]).await;
        assert!(recalled.is_good(), "{recalled:?}");
    }
    observer.check();
    assert!(history::check(&cluster).await >= names.len());
}

/// A node that is drained by an operator gives its users away and takes others again on request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_node_takes_users_again() {
    let Some(cluster) = Nodes::start(2, &format!("{SIM}{LONG_LEASE}")).await else { return };
    let asker = Asker::new("alice", "default");
    let sites = cluster.sites();
    assert!(asker.ask(&sites[0], "first-word").await.is_good());
    let owner = cluster.owner(0, "alice").await;
    cluster.post(owner, "drain").await;
    assert!(asker.ask(&sites[owner], "[[recall]]").await.text().contains("first-word"));
    assert_eq!(cluster.owner(owner, "alice").await, 1 - owner, "the other node has the user");
    cluster.post(owner, "resume").await;
    cluster.post(1 - owner, "drain").await;
    assert!(asker.ask(&sites[owner], "[[recall]]").await.text().contains("first-word"));
    assert_eq!(cluster.owner(1 - owner, "alice").await, owner, "the user is back");
    history::check(&cluster).await;
}
