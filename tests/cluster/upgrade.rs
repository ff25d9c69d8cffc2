//! Nodes are replaced one after the other while users talk, as an upgrade and its rollback do it: no request fails, nothing is
//! lost, and both versions serve each other's users meanwhile.
//!
//! `PILOTLIGHT_FORMER` names the program of a former version. Without it both versions are the one that is tested.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::common::{SOON, eventually, installed};
use crate::etcd::Etcd;
use crate::history;
use crate::nodes::{Around, LONG_LEASE, Nodes, SIM, Started};
use crate::observer::Observer;
use crate::talk::Talk;

const USERS: usize = 12;
/// Pause of a client between two turns.
const THINKS: Duration = Duration::from_millis(100);

/// The nodes that a load balancer sends requests to; the others are not ready.
struct Balancer(Mutex<Vec<Option<String>>>);

impl Balancer {
    fn put(&self, node: usize, site: Option<String>) {
        self.0.lock().unwrap()[node] = site;
    }

    fn site(&self, turn: usize) -> String {
        let sites = self.0.lock().unwrap();
        let ready: Vec<_> = sites.iter().flatten().collect();
        ready[turn % ready.len()].clone()
    }
}

/// Users who talk until their end is asked for.
struct Users {
    balancer: Arc<Balancer>,
    end: Arc<AtomicBool>,
    good: Vec<Arc<AtomicUsize>>,
    talks: JoinSet<Talk>,
}

impl Users {
    fn begin(cluster: &Nodes, names: &[String]) -> Self {
        let balancer = Arc::new(Balancer(Mutex::new(cluster.sites().into_iter().map(Some).collect())));
        let mut users = Self { balancer, end: Arc::default(), good: Vec::new(), talks: JoinSet::new() };
        for (number, name) in names.iter().enumerate() {
            let (mut talk, good) = (Talk::new(name, "default"), Arc::new(AtomicUsize::new(0)));
            users.good.push(good.clone());
            let (balancer, end) = (users.balancer.clone(), users.end.clone());
            users.talks.spawn(async move {
                let mut at = number;
                while !end.load(Ordering::Acquire) {
                    at += 1;
                    let markers = ["", "[[sleep:300]]", "[[deltas:10]][[delay:40]]"][at % 3];
                    let answer = talk.say(&balancer.site(at), markers).await;
                    assert!(answer.is_good(), "a request failed: {answer:?}");
                    good.fetch_add(1, Ordering::AcqRel);
                    tokio::time::sleep(THINKS).await;
                }
                talk
            });
        }
        users
    }

    /// Until each user has had as many further turns as there are nodes, so that each node was asked.
    async fn go_on(&self) {
        let counts = || self.good.iter().map(|count| count.load(Ordering::Acquire)).collect::<Vec<_>>();
        let before = counts();
        eventually("all users go on", SOON, || {
            counts().iter().zip(&before).all(|(now, before)| *now > before + 3) || self.talks.is_empty()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_upgrade_and_rollback_fail_no_request() {
    let Some(etcd) = Etcd::start(1).await else { return };
    let former = installed::former();
    let started = vec![Started { version: former.clone(), ..Started::default() }; 3];
    let around = Around { started, ..Around::default() };
    let mut cluster = Nodes::around(around, etcd, 3, &format!("{SIM}{LONG_LEASE}")).await;
    let names: Vec<_> = (0..USERS).map(|number| format!("upgraded-{number}")).collect();
    let observer = Observer::start(&cluster, names.iter().map(|name| (name.as_str(), "default")));
    let mut users = Users::begin(&cluster, &names);
    users.go_on().await;
    // The second step takes the first one back.
    for (node, version) in [(0, None), (0, former), (0, None), (1, None), (2, None)] {
        users.balancer.put(node, None);
        let replaced = &mut cluster.nodes[node];
        replaced.stop().await;
        replaced.set_version(version);
        replaced.start().await;
        users.balancer.put(node, Some(replaced.client().http().to_owned()));
        users.go_on().await;
    }
    users.end.store(true, Ordering::Release);
    let (mut good, mut last) = (0, 0);
    while let Some(talk) = users.talks.join_next().await {
        let mut talk = talk.unwrap();
        good += talk.acknowledged();
        last += 1;
        assert!(talk.recall(&users.balancer.site(last)).await.is_good());
    }
    let versions = if installed::former().is_some() { "two versions" } else { "one version" };
    installed::say(&format!("five nodes of {versions} replaced: {good} good turns"));
    for node in 0..3 {
        let forwarded = cluster.client(node).metrics().await;
        let count = forwarded.sum("pilotlight_cluster_forwarded_total", &["result=\"answered\""]);
        assert!(count > 0.0, "node {node} has sent nothing to the others");
    }
    observer.check();
    assert!(history::check(&cluster).await >= good);
}
