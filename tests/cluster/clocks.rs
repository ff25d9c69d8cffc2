//! Clocks of nodes that differ by hours change nothing: no node tells another one a time.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::asker::now;
use crate::common::{SOON, installed};
use crate::etcd::Etcd;
use crate::history;
use crate::nodes::{Around, LEASE, Nodes, SIM, Started};
use crate::observer::Observer;
use crate::talk::Talk;

const USERS: usize = 6;
/// How soon users go on elsewhere.
const GOES_ON_WITHIN: Duration = Duration::from_secs(5);

/// A day, as answers have it.
const DAY: &str = "Sun, 29 Nov 2026";

/// A node that has been up for a day longer: its CLOCK_BOOTTIME and CLOCK_MONOTONIC are ahead.
fn up_for_longer() -> Started {
    let by = ["unshare", "--time", "--boottime", "86400", "--monotonic", "86400"];
    Started { by: by.map(OsString::from).into(), ..Started::default() }
}

/// A node whose clock on the wall is wrong.
fn hours_behind(library: String) -> Started {
    let variables = [
        ("LD_PRELOAD", library),
        ("FAKETIME", "-30h".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("NO_FAKE_STAT", "1".to_owned()),
    ];
    Started { variables: variables.into(), ..Started::default() }
}

/// The day that a node has.
async fn day(site: &str) -> String {
    let answer = reqwest::get(format!("{site}/readyz")).await.expect("an answer");
    answer.headers()["date"].to_str().expect("text")[..DAY.len()].to_owned()
}

/// The clocks of a process since the start of its machine.
fn up_clocks(process: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{process}/ns/time")).expect("a namespace of time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_differ_by_hours_change_nothing() {
    let Some(library) = installed::faketime() else { return };
    if !rustix::process::geteuid().is_root() {
        return installed::left_out("only root makes namespaces of time");
    }
    let Some(etcd) = Etcd::start(1).await else { return };
    let started = vec![up_for_longer(), hours_behind(library.display().to_string())];
    let mut cluster = Nodes::around(Around { started, ..Around::default() }, etcd, 2, SIM).await;
    let names: Vec<_> = (0..USERS).map(|number| format!("timeless-{number}")).collect();
    let observer = Observer::start(&cluster, names.iter().map(|name| (name.as_str(), "default")));
    let sites = cluster.sites();
    assert_ne!(day(&sites[0]).await, day(&sites[1]).await, "no clock on the wall is shifted");
    let [first, second] = [0, 1].map(|node| up_clocks(&cluster.nodes[node].process().pid.to_string()));
    assert_ne!(first, second, "no other clock is shifted");
    let mut talks: Vec<_> = names.iter().map(|name| Talk::new(name, "default")).collect();
    let began = now();
    let mut owners = Vec::new();
    // Longer than a lease, so that each node has renewed its own several times.
    while began.elapsed() < 2 * LEASE {
        for talk in &mut talks {
            for site in &sites {
                let end = talk.say(site, "").await;
                assert!(end.is_good(), "{end:?}");
            }
        }
        owners.clear();
        for name in &names {
            owners.push(cluster.owner(0, name).await);
        }
    }
    for node in 0..2 {
        assert!(owners.contains(&node), "all users are on one node");
        let metrics = cluster.client(node).metrics().await;
        for lost in ["pilotlight_cluster_lease_lost_total", "pilotlight_cluster_lost_users_total"] {
            assert_eq!(metrics.sum(lost, &[]), 0.0, "{lost} of node {node}");
        }
    }
    for node in [0, 1] {
        cluster.nodes[node].kill().await;
        let (killed, site) = (now(), cluster.sites().remove(0));
        // All at once: no user's time has that of the others in it.
        let mut again = JoinSet::new();
        for mut talk in talks.drain(..) {
            let site = site.clone();
            again.spawn(async move {
                let mut end = talk.recall(&site).await;
                while !end.is_good() {
                    assert!(killed.elapsed() < SOON, "{end:?}");
                    end = talk.recall(&site).await;
                }
                (killed.elapsed(), talk)
            });
        }
        for (took, talk) in again.join_all().await {
            assert!(took < GOES_ON_WITHIN, "{} went on after {took:?}", talk.asker.user);
            talks.push(talk);
        }
        cluster.nodes[node].start().await;
    }
    observer.check();
    history::check(&cluster).await;
}
