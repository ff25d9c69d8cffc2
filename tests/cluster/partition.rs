//! Each node has a machine of its own with a member of etcd, and one of them is cut off.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::asker::now;
use crate::common::{SOON, eventually, installed};
use crate::etcd::Etcd;
use crate::history;
use crate::network::Network;
use crate::nodes::{LEASE, Nodes, SIM};
use crate::observer::Observer;
use crate::talk::{Talk, spread};

const USERS: usize = 15;
/// How soon the users of the node that is cut off go on elsewhere.
const GOES_ON_WITHIN: Duration = Duration::from_secs(5);
/// The same if etcd elects another leader meanwhile, which gives each lease its whole time again.
const GOES_ON_WITH_ELECTION_WITHIN: Duration = Duration::from_secs(8);
/// What a look at the process table, and the kill of a tree, take on a busy machine.
const LOOKS: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_cut_off_with_the_leader_of_etcd() {
    cut_off(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_cut_off_with_a_follower_of_etcd() {
    cut_off(false).await;
}

async fn cut_off(with_leader: bool) {
    let Some(network) = Network::new(3).await else { return };
    let Some(etcd) = Etcd::on(3, Some(&network)).await else { return };
    let Some(cluster) = Nodes::over(etcd, 3, SIM, Some(network)).await else { return };
    let network = cluster.network.as_ref().unwrap();
    let names: Vec<_> = (0..USERS).map(|number| format!("cut-off-{number}")).collect();
    let observer = Observer::start(&cluster, names.iter().map(|name| (name.as_str(), "default")));
    let (sites, marks) = (cluster.sites(), cluster.marks());
    let mut talks: Vec<_> = names.iter().map(|name| Talk::new(name, "default")).collect();
    for (number, talk) in talks.iter_mut().enumerate() {
        let end = talk.say(&sites[number % 3], "").await;
        assert!(end.is_good(), "{end:?}");
    }
    let all = || marks.iter().map(|mark| observer.alive(mark)).sum::<usize>() == USERS;
    eventually("all children are seen", SOON, all).await;
    let leader = cluster.etcd.leader().await;
    let away = if with_leader { leader } else { (leader + 1) % 3 };
    let limit = if with_leader { GOES_ON_WITH_ELECTION_WITHIN } else { GOES_ON_WITHIN };
    let had = observer.alive(&marks[away]);
    network.cut(away);
    let cut = now();
    let mut again = JoinSet::new();
    for (number, mut talk) in talks.into_iter().enumerate() {
        let site = sites[(away + 1 + number % 2) % 3].clone();
        again.spawn(async move {
            let mut end = talk.recall(&site).await;
            while !end.is_good() {
                let is_expected = ["node_lost", "node_fenced", "no_node", "not_owner"].contains(&end.code());
                assert!(is_expected && cut.elapsed() < SOON, "{end:?}");
                end = talk.recall(&site).await;
            }
            (cut.elapsed(), talk)
        });
    }
    let (mut took, talks): (Vec<_>, Vec<_>) = again.join_all().await.into_iter().unzip();
    let died = observer.last_of(&marks[away], cut).map_or(Duration::ZERO, |last| last - cut);
    installed::say(&format!(
        "cut off with etcd's {}: {had} children gone after {died:?}, {USERS} users go on: {}",
        if with_leader { "leader" } else { "follower" },
        spread(&mut took)
    ));
    assert!(had > 0, "the node had users");
    assert!(died < LEASE + LOOKS, "{died:?}");
    assert!(took.iter().all(|it| *it < limit), "{took:?}");
    // It comes back, and sends requests on.
    network.plug_in(away);
    let mut back = JoinSet::new();
    let healed = now();
    for mut talk in talks {
        let site = sites[away].clone();
        back.spawn(async move {
            let mut end = talk.say(&site, "").await;
            while !end.is_good() {
                assert!(healed.elapsed() < SOON, "{end:?}");
                end = talk.say(&site, "").await;
            }
            assert!(talk.recall(&site).await.is_good());
            healed.elapsed()
        });
    }
    let mut took = back.join_all().await;
    installed::say(&format!("back: {}", spread(&mut took)));
    observer.check();
    history::check(&cluster).await;
}
