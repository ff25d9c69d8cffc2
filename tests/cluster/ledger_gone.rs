//! etcd stands still or loses its leader: running turns end, nobody gets a second owner, and everything goes on afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::asker::now;
use crate::common::{SOON, installed};
use crate::etcd::Etcd;
use crate::history;
use crate::nodes::{LEASE, LONG_LEASE, Nodes, SIM};
use crate::observer::Observer;
use crate::talk::{Talk, spread};

const USERS: usize = 12;
/// How soon every user is answered again once etcd is back.
const GOES_ON_WITHIN: Duration = Duration::from_secs(8);
/// What a turn may end with meanwhile.
const EXPECTED: [&str; 8] = [
    "node_fenced",
    "node_lost",
    "no_node",
    "not_owner",
    "not_replicated",
    "session_lost",
    "replication_failed",
    "draining",
];

/// Users that talk to all nodes until their end is asked for.
struct Load {
    end: Arc<AtomicBool>,
    talks: JoinSet<Talk>,
    sites: Vec<String>,
}

impl Load {
    async fn begin(cluster: &Nodes, names: &[String]) -> Self {
        let (end, sites) = (Arc::new(AtomicBool::new(false)), cluster.sites());
        let mut talks = JoinSet::new();
        let begun = Arc::new(tokio::sync::Barrier::new(names.len() + 1));
        for (number, name) in names.iter().enumerate() {
            let (mut talk, sites, end, begun) =
                (Talk::new(name, "default"), sites.clone(), end.clone(), begun.clone());
            talks.spawn(async move {
                // On a crowded machine a node may lose its lease while it starts all of them.
                let since = now();
                loop {
                    let first = talk.say(&sites[number % sites.len()], "").await;
                    if first.is_good() {
                        break;
                    }
                    assert!(EXPECTED.contains(&first.code()) && since.elapsed() < SOON, "{first:?}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                begun.wait().await;
                let mut at = number;
                while !end.load(Ordering::Acquire) {
                    at += 1;
                    let markers = ["", "[[sleep:400]]", "[[deltas:10]][[delay:60]]"][at % 3];
                    let answer = talk.say(&sites[at % sites.len()], markers).await;
                    assert!(answer.is_good() || EXPECTED.contains(&answer.code()), "{answer:?}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                talk
            });
        }
        begun.wait().await;
        Self { end, talks, sites }
    }

    /// Everybody is answered soon, with everything that was acknowledged.
    async fn end(mut self, what: &str) {
        let began = now();
        self.end.store(true, Ordering::Release);
        let (mut good, mut codes, mut took) = (0, std::collections::BTreeMap::new(), Vec::new());
        let mut back = JoinSet::new();
        let mut number = 0;
        while let Some(talk) = self.talks.join_next().await {
            let mut talk = talk.unwrap();
            good += talk.acknowledged();
            for (code, _) in &talk.errors {
                *codes.entry(code.clone()).or_insert(0) += 1;
            }
            number += 1;
            let site = self.sites[number % self.sites.len()].clone();
            back.spawn(async move {
                let mut end = talk.recall(&site).await;
                while !end.is_good() {
                    assert!(EXPECTED.contains(&end.code()), "{end:?}");
                    assert!(began.elapsed() < GOES_ON_WITHIN, "{end:?}");
                    end = talk.recall(&site).await;
                }
                began.elapsed()
            });
        }
        took.extend(back.join_all().await);
        installed::say(&format!("{what}: {good} good turns, errors {codes:?}; back: {}", spread(&mut took)));
        assert!(took.iter().all(|it| *it < GOES_ON_WITHIN), "{took:?}");
    }
}

fn names(of: &str) -> Vec<String> {
    (0..USERS).map(|number| format!("{of}-{number}")).collect()
}

/// How long etcd stands still: longer than the lease, and a minute where tests run in full.
fn away() -> Duration {
    if installed::is_long() { Duration::from_secs(60) } else { 2 * LEASE }
}

/// etcd of that number of members stands still for longer than the lease.
async fn frozen(members: usize) {
    let Some(etcd) = Etcd::start(members).await else { return };
    let Some(cluster) = Nodes::on(etcd, 3, SIM).await else { return };
    let names = names(&format!("frozen-{members}"));
    let observer = Observer::start(&cluster, names.iter().map(|name| (name.as_str(), "default")));
    let load = Load::begin(&cluster, &names).await;
    cluster.etcd.freeze();
    tokio::time::sleep(away()).await;
    for mark in cluster.marks() {
        assert_eq!(observer.alive(&mark), 0, "children live on without a lease");
    }
    cluster.etcd.thaw();
    load.end(&format!("{members} members frozen for {:?}", away())).await;
    observer.check();
    history::check(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_single_etcd_loses_nothing() {
    frozen(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_etcd_of_three_loses_nothing() {
    frozen(3).await;
}

/// A pause shorter than what is left of every lease is no event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_pause_of_etcd_fails_no_turn() {
    let Some(cluster) = Nodes::start(3, &format!("{SIM}{LONG_LEASE}")).await else { return };
    let names = names("paused");
    let observer = Observer::start(&cluster, names.iter().map(|name| (name.as_str(), "default")));
    let mut talks: Vec<_> = names.iter().map(|name| Talk::new(name, "default")).collect();
    for talk in &mut talks {
        assert!(talk.say(&cluster.sites()[0], "").await.is_good());
    }
    cluster.etcd.freeze();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut turns = JoinSet::new();
    for (number, mut talk) in talks.into_iter().enumerate() {
        let site = cluster.sites()[number % 3].clone();
        turns.spawn(async move {
            let end = talk.say(&site, "").await;
            assert!(end.is_good(), "{end:?}");
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.etcd.thaw();
    turns.join_all().await;
    observer.check();
    history::check(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_leader_of_etcd_loses_nothing() {
    let Some(etcd) = Etcd::start(3).await else { return };
    let Some(cluster) = Nodes::on(etcd, 3, SIM).await else { return };
    let names = names("led");
    let observer = Observer::start(&cluster, names.iter().map(|name| (name.as_str(), "default")));
    let load = Load::begin(&cluster, &names).await;
    let leader = cluster.etcd.leader().await;
    cluster.etcd.kill(leader);
    // Turns go on all the time; each of the rest of the test's turns is one of the new leader.
    tokio::time::sleep(2 * LEASE).await;
    load.end("leader of etcd killed").await;
    observer.check();
    history::check(&cluster).await;
}
