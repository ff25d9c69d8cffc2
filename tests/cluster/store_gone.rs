//! The object storage is away for a while: what is said meanwhile depends on `cluster.replication`, and nothing is lost.

use std::time::Duration;

use crate::asker::{Asker, now};
use crate::common::{SOON, eventually_some, installed};
use crate::etcd::Etcd;
use crate::history;
use crate::nodes::{Around, Nodes, SIM, fill};

const COMMIT_TIMEOUT: Duration = Duration::from_secs(2);
/// What a turn takes beside the wait, on a busy machine.
const TURN: Duration = Duration::from_millis(1500);

fn config(replication: &str) -> String {
    format!(
        "{SIM}[cluster]replication = \"{replication}\"\ncommit_timeout = \"{}s\"\n",
        COMMIT_TIMEOUT.as_secs()
    )
}

/// Said while the store is away, and when it is back; at the end the node is killed.
async fn turns_without_store(take: impl AsyncFn(&Nodes), give: impl AsyncFn(&Nodes)) {
    let Some(cluster) = Nodes::start(2, &config("turn")).await else { return };
    turns_of(cluster, take, give).await;
}

async fn turns_of(mut cluster: Nodes, take: impl AsyncFn(&Nodes), give: impl AsyncFn(&Nodes)) {
    let alice = Asker::new("alice", "default");
    let sites = cluster.sites();
    assert!(alice.ask(&sites[0], "before-word").await.is_good());
    let owner = cluster.owner(0, "alice").await;
    take(&cluster).await;
    let (end, took, _) = alice.asked(&sites[owner], "away-word").await;
    assert_eq!(end.code(), "not_replicated", "{end:?}");
    assert!((COMMIT_TIMEOUT..COMMIT_TIMEOUT + TURN).contains(&took), "{took:?}");
    give(&cluster).await;
    // The conversation has what was answered, and what is stored now takes it along.
    let recalled = alice.ask(&sites[1 - owner], "[[recall]]").await;
    assert!(["before-word", "away-word"].iter().all(|word| recalled.text().contains(word)), "{recalled:?}");
    assert!(alice.ask(&sites[owner], "back-word").await.is_good());
    cluster.nodes[owner].kill().await;
    let recalled = alice.ask(&sites[1 - owner], "[[recall]]").await;
    let words = ["before-word", "away-word", "back-word"];
    assert!(words.iter().all(|word| recalled.text().contains(word)), "{recalled:?}");
    history::check(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unmounted_store_is_no_store() {
    turns_without_store(async |cluster| cluster.take_store(), async |cluster| cluster.give_store_back())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_store_loses_no_turn() {
    if !rustix::process::geteuid().is_root() {
        return installed::left_out("only root mounts");
    }
    turns_without_store(
        async |cluster| cluster.mount_store_read_only(),
        async |cluster| cluster.unmount_store(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_store_loses_no_turn() {
    if !rustix::process::geteuid().is_root() {
        return installed::left_out("only root mounts");
    }
    let Some(etcd) = Etcd::start(1).await else { return };
    let around = Around { store: Some("4m"), ..Around::default() };
    let cluster = Nodes::around(around, etcd, 2, &config("turn")).await;
    let filler = cluster.store().join("filler");
    turns_of(cluster, async |_| fill(&filler), async |_| std::fs::remove_file(&filler).expect("removed"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_end_of_a_turn_waits_for_no_store() {
    let Some(mut cluster) = Nodes::start(2, &config("async")).await else { return };
    let alice = Asker::new("alice", "default");
    let sites = cluster.sites();
    assert!(alice.ask(&sites[0], "before-word").await.is_good());
    let owner = cluster.owner(0, "alice").await;
    let seq = async |cluster: &Nodes| {
        history::head(cluster, "alice").await.map_or(0, |head| head["seq"].as_u64().unwrap())
    };
    eventually_some("the first turn is stored", SOON, async || (seq(&cluster).await >= 1).then_some(()))
        .await;
    cluster.take_store();
    let (end, took, _) = alice.asked(&sites[owner], "away-word").await;
    assert!(end.is_good() && took < COMMIT_TIMEOUT, "{end:?} after {took:?}");
    let stored = seq(&cluster).await;
    cluster.give_store_back();
    let back = now();
    eventually_some("the turn is stored", SOON, async || (seq(&cluster).await > stored).then_some(())).await;
    installed::say(&format!("stored {:?} after the store is back", back.elapsed()));
    cluster.nodes[owner].kill().await;
    let end = alice.ask(&sites[1 - owner], "[[recall]]").await;
    let crate::asker::End::Good { text, .. } = end else { panic!("{end:?}") };
    assert!(["before-word", "away-word"].iter().all(|word| text.contains(word)), "{text}");
    history::check(&cluster).await;
}
