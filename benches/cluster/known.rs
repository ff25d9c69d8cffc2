//! A node with many users whose children have ended: its memory, that of another node and of etcd, and requests at rest.

use std::time::{Duration, Instant};

use crate::client::{Client, keepalive};
use crate::etcd::Etcd;
use crate::nodes::Cluster;
use crate::server::Server;
use crate::table::{Row, row};

/// Users, each with a session and a turn.
const USERS: usize = 10_000;
const QUICK_USERS: usize = 1000;
/// Connections that take the turns.
const AT_ONCE: usize = 32;
/// Children end soon after their turn; no user leaves.
const CONFIG: &str = "[session]\nidle_timeout = \"1s\"\n[http]\nrequests_per_minute = 0\n[limits]\nmax_children = 256\nmax_sessions = 20_000\n";
const STAYS: &str = "release_after = \"24h\"";
/// Time in which requests at rest are counted.
const RESTS: Duration = Duration::from_secs(30);
/// States of sessions that have a child, or are about to.
const LIVELY: [&str; 4] = ["starting", "idle", "busy", "stopping"];

pub(crate) async fn rows(is_quick: bool) -> Vec<Row> {
    let users = if is_quick { QUICK_USERS } else { USERS };
    let alone = Server::ours(CONFIG).await;
    let (alone_each, _) = known(&alone, users).await;
    alone.kill();

    let etcd = Etcd::start().await;
    let cluster = Cluster::new("known", &etcd);
    let node = cluster.node("node", CONFIG, STAYS).await;
    let other = cluster.node("other", CONFIG, "room = 0").await;
    let (memory, of_other) = (etcd.memory(), other.memory());
    let [database, _] = etcd.database().await;
    let (each, took) = known(&node, users).await;
    let has = node.metric("pilotlight_cluster_users").await;
    assert_eq!(has, users as f64, "the node has all users");
    let per_user = |before: f64, after: f64| (after - before) / users as f64;
    let of_other = per_user(of_other, other.memory());
    let [grown, in_use] = etcd.database().await;
    let keys = etcd.keys(&cluster.prefix()).await / users as f64;
    let (before, begin) = (etcd.answered().await, Instant::now());
    tokio::time::sleep(RESTS).await;
    let seconds = begin.elapsed().as_secs_f64();
    let mut calls: Vec<(String, f64)> = etcd.answered().await.into_iter().collect();
    for (kind, count) in &mut calls {
        *count = (*count - before.get(kind).copied().unwrap_or(0.0)) / seconds;
    }
    calls.retain(|(_, rate)| *rate > 0.0);
    let rate: f64 = calls.iter().map(|(_, rate)| rate).sum();
    let kinds: Vec<String> = calls.iter().map(|(kind, rate)| format!("{kind} {rate:.2}")).collect();
    let mib = format!(
        "{:.1} MiB for {users} users; first turns at {:.0}/s",
        node.memory() / 1024.0,
        users as f64 / took
    );
    let rows = vec![
        row(
            "known users: memory of the node for each, KiB",
            each,
            alone_each + 4.0,
            alone_each + 2.0,
            format!("{alone_each:.2} KiB without a cluster; {mib}"),
        ),
        row("known users: memory of another node for each, KiB", of_other, 0.5, 0.25, String::new()),
        row("known users: keys of etcd for each", keys, 2.01, 2.01, String::new()),
        row(
            "known users: database of etcd for each, KiB",
            per_user(database, grown) * 1024.0,
            8.0,
            4.0,
            format!("{grown:.1} MiB, {in_use:.1} MiB in use, history of 5 minutes included"),
        ),
        row(
            "known users: memory of etcd for each, KiB",
            per_user(memory, etcd.memory()) * 1024.0,
            20.0,
            10.0,
            format!("{:.0} MiB, {memory:.0} MiB before", etcd.memory()),
        ),
        row("known users: requests to etcd at rest, two nodes, 1/s", rate, 5.0, 4.5, kinds.join(", ")),
    ];
    // An orderly stop would have each user leave.
    for node in [node, other] {
        std::sync::Arc::into_inner(node).expect("nothing else has it").kill();
    }
    rows
}

/// Has each user take a turn, and waits until no child is left. Memory for each user in KiB, and the seconds that the turns took.
async fn known(server: &Server, users: usize) -> (f64, f64) {
    let (before, begin) = (server.memory(), Instant::now());
    let mut asking = tokio::task::JoinSet::new();
    for first in 0..AT_ONCE {
        let address = server.address;
        asking.spawn(async move {
            let mut client = Client::connect(address).await;
            for user in (first..users).step_by(AT_ONCE) {
                client.turn(&keepalive(user, "hello")).await;
            }
        });
    }
    asking.join_all().await;
    let took = begin.elapsed().as_secs_f64();
    while lively(server).await > 0.0 {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    ((server.memory() - before) / users as f64, took)
}

async fn lively(server: &Server) -> f64 {
    let mut sum = 0.0;
    for state in LIVELY {
        sum += server.metric(&format!("pilotlight_sessions{{state=\"{state}\"}}")).await;
    }
    sum
}
