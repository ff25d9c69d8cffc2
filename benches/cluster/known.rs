//! A node with many users whose sessions are at rest: its memory, that of another node and of etcd, and requests at rest.

use std::time::{Duration, Instant};

use pilotlight_test_support::eventually_some;

use crate::etcd::Etcd;
use crate::nodes::Cluster;
use crate::server::Server;
use crate::table::{Row, row};

/// Users, each with a session and a file in it, which is in the store.
const USERS: usize = 10_000;
const QUICK_USERS: usize = 1000;
/// Connections that ask.
const AT_ONCE: usize = 8;
/// Attempts of a request, a second apart: on a busy machine etcd may be late.
const ATTEMPTS: usize = 60;
const CONFIG: &str =
    "[metrics]\nsample_interval = \"1h\"\n[http]\nrequests_per_minute = 0\n[limits]\nmax_sessions = 20_000\n";
/// No user leaves, and no lease ends while the users come: renewals come each quarter of the lease.
const STAYS: &str =
    "release_after = \"24h\"\nlease = \"60s\"\nroute_timeout = \"1m\"\ncommit_timeout = \"1m\"";
/// Time within which a gauge has followed.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(30);
/// Time in which requests at rest are counted.
const RESTS: Duration = Duration::from_secs(30);
pub(crate) async fn rows(is_quick: bool) -> Vec<Row> {
    let users = if is_quick { QUICK_USERS } else { USERS };
    let alone = Server::ours(CONFIG).await;
    let (alone_each, _) = known(&alone, users).await;
    alone.kill();

    let etcd = Etcd::start().await;
    let cluster = Cluster::new("known", &etcd);
    let node = cluster.node("node", CONFIG, STAYS).await;
    let other = cluster.node("other", CONFIG, &format!("room = 0\n{STAYS}")).await;
    let (memory, of_other) = (etcd.memory(), other.memory());
    let [database, _] = etcd.database().await;
    let (each, took) = known(&node, users).await;
    // The gauge follows each two seconds.
    eventually_some("the node has all users", FOLLOWS_WITHIN, async || {
        (node.metric("pilotlight_cluster_users").await == users as f64).then_some(())
    })
    .await;
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
        "{:.1} MiB for {users} users; {:.0} new users/s",
        node.memory() / 1024.0,
        users as f64 / took
    );
    // Nothing but the number of keys has a goal.
    let seen = |name: &str, value, note| {
        row(format!("known users: {name}"), value, f64::INFINITY, f64::INFINITY, note)
    };
    let grown_by = per_user(database, grown) * 1024.0;
    let database = format!("{grown:.1} MiB, {in_use:.1} MiB in use, with the history of 5 minutes");
    let more = per_user(memory, etcd.memory()) * 1024.0;
    let of_etcd = format!("{:.0} MiB, {memory:.0} MiB before", etcd.memory());
    let rows = vec![
        seen(
            "memory of the node for each, KiB",
            each,
            format!("{alone_each:.2} KiB without a cluster; {mib}"),
        ),
        seen("memory of another node for each, KiB", of_other, String::new()),
        row("known users: keys of etcd for each", keys, 2.01, 2.01, String::new()),
        seen("database of etcd for each, KiB", grown_by, database),
        seen("memory of etcd for each, KiB", more, of_etcd),
        seen("requests to etcd at rest, two nodes with a lease of 60 s, 1/s", rate, kinds.join(", ")),
    ];
    // An orderly stop would have each user leave.
    for node in [node, other] {
        std::sync::Arc::into_inner(node).expect("nothing else has it").kill();
    }
    rows
}

/// Has each user write a file, which needs no child. Memory for each user in KiB, and the seconds that it took.
async fn known(server: &Server, users: usize) -> (f64, f64) {
    let (before, begin, web) = (server.memory(), Instant::now(), reqwest::Client::new());
    let mut asking = tokio::task::JoinSet::new();
    for first in 0..AT_ONCE {
        let (web, url) = (web.clone(), format!("http://{}/v1/workspace/files/note.txt", server.address));
        asking.spawn(async move {
            for user in (first..users).step_by(AT_ONCE) {
                write(&web, &url, user).await;
            }
        });
    }
    asking.join_all().await;
    ((server.memory() - before) / users as f64, begin.elapsed().as_secs_f64())
}

async fn write(web: &reqwest::Client, url: &str, user: usize) {
    let mut refused = String::new();
    for _ in 0..ATTEMPTS {
        let request = web.put(url).header("x-pilotlight-user", user.to_string()).body("hello");
        let answer = request.send().await.unwrap();
        if answer.status().is_success() {
            return;
        }
        refused = answer.text().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("{refused}");
}
