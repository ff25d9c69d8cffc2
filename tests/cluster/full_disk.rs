//! The disk of a node is full for a while: turns end well or with a clear error, and nothing that was acknowledged is lost.

use std::collections::BTreeMap;

use crate::asker::now;
use crate::common::{SOON, eventually_some, installed};
use crate::etcd::Etcd;
use crate::history;
use crate::nodes::{Around, Nodes, SIM};
use crate::talk::Talk;

const USERS: usize = 6;
/// Turns of each user while the disk is full.
const ROUNDS: usize = 2;
/// What a turn may end with meanwhile.
const EXPECTED: [&str; 4] = ["not_replicated", "no_node", "not_owner", "storage"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_loses_no_acknowledged_turn() {
    if !rustix::process::geteuid().is_root() {
        return installed::left_out("only root mounts");
    }
    let config = format!("{SIM}[cluster]\ncommit_timeout = \"1s\"\nroute_timeout = \"2s\"\n");
    let Some(etcd) = Etcd::start(1).await else { return };
    let around = Around { disk: Some("8m"), ..Around::default() };
    let mut cluster = Nodes::around(around, etcd, 2, &config).await;
    let sites = cluster.sites();
    let mut talks: Vec<_> = (0..USERS).map(|user| Talk::new(&format!("full-{user}"), "default")).collect();
    for talk in &mut talks {
        assert!(talk.say(&sites[0], "").await.is_good());
    }
    let filler = cluster.nodes[0].fill_disk();
    // Those who come now as well.
    talks.extend((USERS..2 * USERS).map(|user| Talk::new(&format!("full-{user}"), "default")));
    for round in 0..ROUNDS {
        let site = &sites[round % 2];
        let turns = talks.iter_mut().map(async |talk| {
            let end = talk.say(site, "").await;
            assert!(end.is_good() || EXPECTED.contains(&end.code()), "{end:?}");
        });
        futures_util::future::join_all(turns).await;
    }
    let ready = async |cluster: &Nodes| {
        reqwest::get(format!("{}/readyz", cluster.client(0).http())).await.expect("an answer").status()
    };
    eventually_some("the balancer sees it", SOON, async || (ready(&cluster).await == 503).then_some(()))
        .await;
    let mut codes = BTreeMap::new();
    for (code, _) in talks.iter().flat_map(|talk| &talk.errors) {
        *codes.entry(code.clone()).or_insert(0) += 1;
    }
    let good: usize = talks.iter().map(Talk::acknowledged).sum();
    installed::say(&format!("while the disk is full: {} good turns, errors {codes:?}", good - USERS));
    assert!(codes.contains_key("not_replicated"), "the disk was not full");

    std::fs::remove_file(filler).expect("removed");
    let room = now();
    eventually_some("the node is ready", SOON, async || (ready(&cluster).await == 200).then_some(())).await;
    for talk in &mut talks {
        let mut end = talk.say(&sites[0], "").await;
        while !end.is_good() {
            assert!(room.elapsed() < SOON, "{end:?}");
            end = talk.say(&sites[0], "").await;
        }
    }
    installed::say(&format!("all users are answered {:?} after there is room", room.elapsed()));
    cluster.nodes[0].kill().await;
    for talk in &mut talks {
        let mut end = talk.recall(&sites[1]).await;
        while !end.is_good() {
            assert!(room.elapsed() < 2 * SOON, "{end:?}");
            end = talk.recall(&sites[1]).await;
        }
    }
    history::check(&cluster).await;
}
