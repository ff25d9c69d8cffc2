//! A shim that is stopped ends no child at the deadline: its server does, and if that stands still as well, what the child does
//! later has no effect.

use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::asker::{Asker, End, now};
use crate::common::{SOON, UNTIL_GO, eventually, installed, layout};
use crate::etcd::Etcd;
use crate::fencing::eventually_busy;
use crate::history;
use crate::nodes::{Around, LEASE, Nodes, SIM};
use crate::observer::Observer;
use crate::talk::Talk;

/// How soon another node goes on.
const GOES_ON_WITHIN: Duration = Duration::from_secs(5);
/// What a look at the process table, and the kill of a tree, take on a busy machine.
const LOOKS: Duration = Duration::from_millis(300);
/// How soon a node that runs again has ended what it may not have.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// Of the node that loses a user, or while no node has it.
const EXPECTED: [&str; 3] = ["node_lost", "no_node", "not_owner"];

/// A user whose turn runs on a node while its shim is stopped.
struct Stopped {
    talk: Talk,
    running: JoinSet<End>,
    owner: usize,
    other: usize,
    mark: String,
}

impl Stopped {
    /// The turn runs.
    async fn start(cluster: &Nodes, turn: &str) -> Self {
        let sites = cluster.sites();
        let mut talk = Talk::new("alice", "default");
        assert!(talk.say(&sites[0], "").await.is_good());
        let owner = cluster.owner(0, "alice").await;
        let mark = cluster.marks().swap_remove(owner);
        let mut running = JoinSet::new();
        let (asker, site, turn) = (Asker::new("alice", "default"), sites[owner].clone(), turn.to_owned());
        running.spawn(async move { asker.ask(&site, &turn).await });
        eventually_busy(cluster, owner).await;
        Self { talk, running, owner, other: 1 - owner, mark }
    }

    async fn stop_shim(&self, observer: &Observer) {
        eventually("the child is seen", SOON, || observer.alive(&self.mark) == 1).await;
        observer.shims(&self.mark).iter().for_each(|shim| shim.signal(Signal::STOP));
    }

    /// Asks the other node until it has the whole conversation.
    async fn goes_on(&mut self, cluster: &Nodes) {
        let site = &cluster.sites()[self.other];
        loop {
            let end = self.talk.recall(site).await;
            if end.is_good() {
                break;
            }
            assert!(EXPECTED.contains(&end.code()), "{end:?}");
        }
        assert!(self.talk.say(site, "").await.is_good());
    }

    /// The turn that ran has ended without success, and nobody knows of it.
    async fn turn_counts_for_nothing(&mut self, cluster: &Nodes) {
        let ended = self.running.join_next().await.unwrap().unwrap();
        assert!(!ended.is_good(), "{ended:?}");
        let back = now();
        for site in cluster.sites() {
            let mut recalled = self.talk.asker.ask(&site, "[[recall]]").await;
            while !recalled.is_good() {
                assert!(EXPECTED.contains(&recalled.code()) && back.elapsed() < SOON, "{recalled:?}");
                recalled = self.talk.asker.ask(&site, "[[recall]]").await;
            }
            assert!(!recalled.text().contains("in-flight-word"), "{recalled:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_of_a_stopped_shim_is_ended_by_the_server() {
    let Some(etcd) = Etcd::start(1).await else { return };
    let around = Around { is_linked: true, ..Around::default() };
    let mut cluster = Nodes::around(around, etcd, 2, SIM).await;
    let observer = Observer::start(&cluster, [("alice", "default")]);
    // The child does nothing that it is asked for any more.
    let mut stopped = Stopped::start(&cluster, "in-flight-word[[fault:hang]]").await;
    stopped.stop_shim(&observer).await;
    cluster.nodes[stopped.owner].cut();
    let cut = now();
    stopped.goes_on(&cluster).await;
    let went_on = cut.elapsed();
    let died = observer.last_of(&stopped.mark, cut).expect("it had a child") - cut;
    installed::say(&format!("stopped shim: child gone after {died:?}, goes on after {went_on:?}"));
    assert!(died < LEASE + LOOKS, "{died:?}");
    assert!(went_on < GOES_ON_WITHIN, "{went_on:?}");
    cluster.nodes[stopped.owner].repair();
    stopped.turn_counts_for_nothing(&cluster).await;
    observer.check();
    history::check(&cluster).await;
}

/// Nobody on the node can end the child then: it outlives the lease, which the documentation says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_after_the_lease_counts_for_nothing() {
    let config = format!("{SIM}[permissions]\npolicy = \"allow\"\n");
    let Some(cluster) = Nodes::start(2, &config).await else { return };
    let mut stopped =
        Stopped::start(&cluster, &format!("in-flight-word{UNTIL_GO}[[say:in-flight-word]]")).await;
    let data = cluster.nodes[stopped.owner].place().data_dir();
    let work = layout::session_dir(&data, "alice", "default").join("work");
    eventually("the tool runs", SOON, || work.join("began").exists()).await;
    // Only now: a tool that is just being started looks like the child that starts it.
    let observer = Observer::start(&cluster, [("alice", "default")]);
    stopped.stop_shim(&observer).await;
    cluster.nodes[stopped.owner].pause();
    stopped.goes_on(&cluster).await;
    // The child answers when another node has its user, and nobody reads it.
    std::fs::write(work.join("go"), "").unwrap();
    eventually("the tool has ended", SOON, || !work.join("began").exists()).await;
    assert_eq!(observer.alive(&stopped.mark), 1, "the shim was not stopped");
    let before = history::head(&cluster, "alice").await.unwrap();
    // The end of the turn waits for the server.
    cluster.nodes[stopped.owner].resume();
    eventually("the child is ended", ENDS_WITHIN, || observer.alive(&stopped.mark) == 0).await;
    stopped.turn_counts_for_nothing(&cluster).await;
    let after = history::head(&cluster, "alice").await.unwrap();
    assert_eq!(after["fence"], before["fence"], "the owner is the same");
    assert!(stopped.talk.recall(&cluster.sites()[stopped.owner]).await.is_good());
    history::check(&cluster).await;
}
