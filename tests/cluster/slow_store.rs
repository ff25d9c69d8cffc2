//! A bucket that is slow, or fails for a while: the end of a turn waits for it or does not, as `cluster.replication` says.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::asker::{Asker, End, now};
use crate::common::s3::{Fault, S3};
use crate::common::{SOON, eventually, eventually_some, installed};
use crate::etcd::Etcd;
use crate::history;
use crate::nodes::{Around, Nodes, SIM};
use crate::observer::Observer;

const COMMIT_TIMEOUT: Duration = Duration::from_secs(2);
/// What a turn takes beside the wait, on a busy machine.
const TURN: Duration = Duration::from_millis(1500);
/// A turn that does not wait for the store would have ended by then.
const WAITS_FOR: Duration = Duration::from_millis(700);

/// Two nodes with their users' data in the bucket.
async fn on(bucket: &S3, replication: &str) -> Option<Nodes> {
    let limit = COMMIT_TIMEOUT.as_secs();
    let config = format!("{SIM}[cluster]replication = \"{replication}\"\ncommit_timeout = \"{limit}s\"\n");
    let around = Around { bucket: Some(bucket.endpoint()), ..Around::default() };
    Some(Nodes::around(around, Etcd::start(1).await?, 2, &config).await)
}

/// What happens to requests that write, from now on; the number of them counts from here.
fn puts(bucket: &S3, fault: impl Fn(usize) -> Fault + Send + 'static) {
    let mut number = 0;
    let count = std::sync::Mutex::new(move || {
        number += 1;
        number - 1
    });
    bucket.set(move |method, _, _| match method.as_str() {
        "PUT" => fault((count.lock().unwrap())()),
        _ => Fault::None,
    });
}

fn asking(asker: &Asker, site: &str, text: &str) -> JoinSet<(End, Duration)> {
    let (asker, site, text) = (asker.clone(), site.to_owned(), text.to_owned());
    let mut turn = JoinSet::new();
    turn.spawn(async move {
        let (end, took, _) = asker.asked(&site, &text).await;
        (end, took)
    });
    turn
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_of_a_turn_waits_for_a_slow_bucket() {
    let bucket = S3::start().await;
    let Some(mut cluster) = on(&bucket, "turn").await else { return };
    let (alice, sites) = (Asker::new("alice", "default"), cluster.sites());
    assert!(alice.ask(&sites[0], "first-word").await.is_good());
    let owner = cluster.owner(0, "alice").await;
    let site = &sites[owner];

    // The turn is answered once its object is stored, and not before.
    puts(&bucket, |_| Fault::Held);
    let mut turn = asking(&alice, site, "held-word");
    eventually("the object is on its way", SOON, || bucket.held() == 1).await;
    assert!(timeout(WAITS_FOR, turn.join_next()).await.is_err(), "it does not wait for the store");
    bucket.let_go();
    assert!(turn.join_next().await.unwrap().unwrap().0.is_good());

    // Errors of the store, connections that break, and answers that are lost are none of the caller's business.
    puts(&bucket, |number| match number {
        0 => Fault::Status(503),
        1 => Fault::Cut,
        2 => Fault::LostAnswer,
        _ => Fault::Slow(Duration::from_millis(200)),
    });
    assert!(alice.ask(site, "tried-word").await.is_good());

    // It is waited for no longer than `cluster.commit_timeout`.
    puts(&bucket, |_| Fault::Held);
    let (end, took) = asking(&alice, site, "late-word").join_next().await.unwrap().unwrap();
    assert_eq!(end.code(), "not_replicated", "{end:?}");
    assert!((COMMIT_TIMEOUT..COMMIT_TIMEOUT + TURN).contains(&took), "{took:?}");
    puts(&bucket, |_| Fault::None);
    bucket.let_go();
    assert!(alice.ask(site, "last-word").await.is_good());

    // Reading fails at first, and is slow: the other node has everything.
    cluster.nodes[owner].kill().await;
    bucket.set(|method, _, number| match (method.as_str(), number) {
        ("GET", 0) => Fault::Status(503),
        ("GET", 1) => Fault::HalfAnswer,
        _ => Fault::Slow(Duration::from_millis(100)),
    });
    let recalled = alice.ask(&sites[1 - owner], "[[recall]]").await;
    let words = ["first-word", "held-word", "tried-word", "late-word", "last-word"];
    assert!(words.iter().all(|word| recalled.text().contains(word)), "{recalled:?}");
    history::check(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_end_of_a_turn_waits_for_no_bucket() {
    let bucket = S3::start().await;
    let Some(mut cluster) = on(&bucket, "async").await else { return };
    let (alice, sites) = (Asker::new("alice", "default"), cluster.sites());
    assert!(alice.ask(&sites[0], "first-word").await.is_good());
    let owner = cluster.owner(0, "alice").await;
    let lag = async |cluster: &Nodes| {
        cluster.client(owner).metrics().await.sum("pilotlight_cluster_lag_seconds", &[])
    };
    let seq = async |cluster: &Nodes| {
        history::head(cluster, "alice").await.map_or(0, |head| head["seq"].as_u64().unwrap())
    };
    eventually_some("the first turn is stored", SOON, async || (seq(&cluster).await >= 1).then_some(()))
        .await;
    let stored = seq(&cluster).await;
    puts(&bucket, |_| Fault::Held);
    let began = now();
    assert!(alice.ask(&sites[owner], "early-word").await.is_good());
    assert!(began.elapsed() < COMMIT_TIMEOUT, "it waits for the store");
    eventually("the object is on its way", SOON, || bucket.held() == 1).await;
    let longest = eventually_some("the lag rises", SOON, async || {
        let lag = lag(&cluster).await;
        (lag > 1.0).then_some(lag)
    })
    .await;
    installed::say(&format!("lag {longest:.1} s after {:?}", began.elapsed()));
    assert!(longest <= began.elapsed().as_secs_f64());
    assert_eq!(seq(&cluster).await, stored, "nothing was stored");
    puts(&bucket, |_| Fault::None);
    bucket.let_go();
    eventually_some("the turn is stored", SOON, async || (seq(&cluster).await > stored).then_some(())).await;
    eventually_some("the lag is over", SOON, async || (lag(&cluster).await == 0.0).then_some(())).await;
    cluster.nodes[owner].kill().await;
    let End::Good { text, .. } = alice.ask(&sites[1 - owner], "[[recall]]").await else {
        panic!("no answer")
    };
    assert!(["first-word", "early-word"].iter().all(|word| text.contains(word)), "{text}");
    history::check(&cluster).await;
}

/// A snapshot becomes due with the last change but one: it must not look at the files while they are removed here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_who_leaves_with_a_snapshot_due_loses_nothing() {
    const LARGE: usize = 9 << 20;
    let bucket = S3::start().await;
    let Some(mut cluster) = on(&bucket, "async").await else { return };
    let observer = Observer::start(&cluster, [("alice", "default")]);
    let (alice, sites) = (Asker::new("alice", "default"), cluster.sites());
    assert!(alice.ask(&sites[0], "first-word").await.is_good());
    let owner = cluster.owner(0, "alice").await;
    let mark = cluster.nodes[owner].place().id().to_owned();
    let file = |site: &str, name: &str| format!("{site}/v1/workspace/files/{name}?session=default");
    let web = reqwest::Client::builder().no_proxy().build().unwrap();

    puts(&bucket, |_| Fault::Held);
    for name in ["one", "two"] {
        let put = web.put(file(&sites[owner], name)).header("x-pilotlight-user", "alice");
        assert!(put.body(vec![b'x'; LARGE]).send().await.unwrap().status().is_success());
        eventually("the first file is on its way", SOON, || bucket.held() == 1).await;
    }
    let mut leaving = cluster.nodes.remove(owner);
    tokio::join!(leaving.stop(), async {
        eventually("the child has ended", SOON, || observer.alive(&mark) == 0).await;
        // The last change waits behind the files. Nothing shows it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        puts(&bucket, |_| Fault::None);
        bucket.let_go();
    });

    let other = &sites[1 - owner];
    let recalled = alice.ask(other, "[[recall]]").await;
    assert!(recalled.text().contains("first-word"), "{recalled:?}");
    for name in ["one", "two"] {
        let found = web.get(file(other, name)).header("x-pilotlight-user", "alice").send().await.unwrap();
        assert_eq!(found.bytes().await.unwrap().len(), LARGE);
    }
    history::check(&cluster).await;
}
