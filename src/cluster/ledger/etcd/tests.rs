//! The client against a real etcd.

pub(crate) mod cluster;

use std::time::Duration;

use cluster::{Cluster, Options};
use tokio::time::{Instant, timeout};

use super::*;
use crate::cluster::ledger::kv::{Change, KeyValue, Reply};
use crate::cluster::ledger::{
    Claim, Commit, Compare, Fence, Head, Join, Keys, NodeId, NodeInfo, Operation, UserHash, Won, claim,
    commit, join, release, released,
};

const LONG: Duration = Duration::from_secs(30);
const TTL: u64 = 2;

fn keys() -> Keys {
    Keys::new("/p/")
}

fn user(n: u8) -> UserHash {
    UserHash::from_bytes([n; 16])
}

async fn try_claim(etcd: &Etcd, n: u8, node: &str, lease: LeaseId) -> Result<Claim, LedgerError> {
    let node: NodeId = node.parse().unwrap();
    let reply = etcd.txn(claim(&keys(), user(n), &node, lease).unwrap()).await?;
    Claim::of(reply, &node, lease)
}

async fn won(etcd: &Etcd, n: u8, node: &str, lease: LeaseId) -> Won {
    match try_claim(etcd, n, node, lease).await.unwrap() {
        Claim::Won(won) => won,
        other => panic!("{other:?}"),
    }
}

async fn grant(etcd: &Etcd) -> LeaseId {
    etcd.grant(TTL).await.unwrap().0
}

async fn compact(etcd: &Etcd, revision: Revision) {
    let body = format!(r#"{{"revision":"{revision}","physical":true}}"#);
    etcd.ask("/v3/kv/compaction", body.into_bytes()).await.unwrap();
}

async fn next(watch: &mut Box<dyn Watch>) -> Vec<Change> {
    timeout(LONG, watch.next()).await.unwrap().unwrap()
}

fn put(key: Vec<u8>, value: &str, lease: LeaseId) -> Txn {
    let put = Operation::Put { key, value: value.into(), lease };
    Txn { success: vec![put], ..Txn::default() }
}

#[tokio::test]
async fn transactions_have_the_same_results_in_etcd() {
    let Some(cluster) = Cluster::start(1, Options::default()).await else { return };
    let etcd = cluster.client();
    let (a, b) = (grant(&etcd).await, grant(&etcd).await);
    let id: NodeId = "a".parse().unwrap();
    let info = NodeInfo::new("http://a:1".into(), 1, "1".into());
    for (lease, expected) in [(a, Join::Done), (a, Join::Done), (b, Join::Taken)] {
        let reply = etcd.txn(join(&keys(), &id, &info, lease).unwrap()).await.unwrap();
        assert_eq!(Join::of(reply, lease), Ok(expected));
    }
    let first = won(&etcd, 1, "a", a).await;
    assert_eq!(try_claim(&etcd, 1, "b", b).await, Ok(Claim::Owned(id, first.fence)));
    assert_eq!(won(&etcd, 1, "a", a).await, first);
    let commit_it = async |fence, expected, head: &Head| {
        let txn = commit(&keys(), user(1), fence, expected, head).unwrap();
        Commit::of(etcd.txn(txn).await.unwrap(), head).unwrap()
    };
    let head = Head::snapshot(None, first.fence, 1);
    let Commit::Done(revision) = commit_it(first.fence, 0, &head).await else { panic!() };
    assert_eq!(commit_it(first.fence, 0, &head).await, Commit::Done(revision));
    let second = head.delta(first.fence, 1).unwrap();
    assert!(matches!(commit_it(first.fence, 0, &second).await, Commit::Conflict(_)));
    assert_eq!(etcd.revoke(a).await, Ok(()));
    assert_eq!(etcd.revoke(a).await, Ok(()));
    assert_eq!(etcd.remaining(a).await, Ok(None));
    assert_eq!(commit_it(first.fence, revision, &second).await, Commit::Fenced);
    assert_eq!(commit_it(first.fence, 0, &head).await, Commit::DoneThenFenced);
    assert_eq!(try_claim(&etcd, 1, "a", a).await, Err(LedgerError::LeaseGone));
    let next = won(&etcd, 1, "b", b).await;
    assert_eq!((next.stored.head.as_ref(), next.stored.revision), (Some(&head), revision));
    assert!(next.fence > first.fence);
    let third = head.delta(next.fence, 1).unwrap();
    assert!(matches!(commit_it(next.fence, revision, &third).await, Commit::Done(_)));
    let release_it = async |fence| {
        let reply = etcd.txn(release(&keys(), user(1), fence)).await;
        released(reply.unwrap(), fence)
    };
    for fence in [first.fence, next.fence, next.fence] {
        assert_eq!(release_it(fence).await, Ok(()));
    }
    assert_eq!(won(&etcd, 1, "b", b).await.stored.head, Some(third));
}

#[tokio::test]
async fn range_is_read_page_by_page() {
    let Some(cluster) = Cluster::start(1, Options::default()).await else { return };
    let etcd = cluster.client();
    let count = PAGE + 1;
    // etcd takes 128 steps in a transaction.
    for from in (0..count).step_by(100) {
        let put =
            |n: u64| Operation::Put { key: format!("k{n:05}").into(), value: b"v".into(), lease: LeaseId(0) };
        let success = (from..count.min(from + 100)).map(put).collect();
        etcd.txn(Txn { success, ..Txn::default() }).await.unwrap();
    }
    let page = etcd.range(b"k".to_vec(), b"l".to_vec(), 0).await.unwrap();
    assert!(page.more && page.keys.len() as u64 == PAGE);
    let last = page.keys.last().unwrap();
    // A change between the pages is not in the second.
    etcd.txn(put(b"k99999".to_vec(), "later", LeaseId(0))).await.unwrap();
    let from = [last.key.as_slice(), &[0]].concat();
    let rest = etcd.range(from, b"l".to_vec(), page.revision).await.unwrap();
    assert_eq!(rest.keys.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>(), [b"k01000".to_vec()]);
    assert!(!rest.more);
}

/// As after a SIGSTOP of the process that renews.
#[tokio::test]
async fn lease_that_is_not_renewed_ends_with_its_keys() {
    let Some(cluster) = Cluster::start(1, Options::default()).await else { return };
    let etcd = cluster.client();
    let lease = grant(&etcd).await;
    let fence = won(&etcd, 1, "a", lease).await.fence;
    let (start, end) = keys().watched();
    let mut watch = etcd.watch(start, end, fence.0 + 1).await.unwrap();
    let sent = Instant::now();
    assert_eq!(etcd.renew(lease).await, Ok(TTL));
    let changes = next(&mut watch).await;
    // Never before the time that the deadline counts on.
    assert!(sent.elapsed() >= Duration::from_secs(TTL), "{:?}", sent.elapsed());
    assert!(matches!(&changes[..], [Change::Deleted { key, .. }] if *key == keys().owner(user(1))));
    assert_eq!(etcd.renew(lease).await, Err(LedgerError::LeaseGone));
    assert_eq!(etcd.remaining(lease).await, Ok(None));
}

#[tokio::test]
async fn watch_goes_on_where_it_has_ended() {
    let Some(cluster) = Cluster::start(1, Options::default()).await else { return };
    let with = |silence: Duration| {
        let mut settings = cluster.settings();
        settings.silence = silence;
        Etcd::new(settings).unwrap()
    };
    // Only the watch that has to be silent has little patience.
    let (etcd, impatient) = (with(LONG), with(Duration::from_millis(300)));
    // Longer than the test: the end of a lease is a change as well.
    let (lease, _) = etcd.grant(600).await.unwrap();
    let (start, end) = keys().watched();
    let first = won(&etcd, 1, "a", lease).await.fence.0;
    let mut watch = etcd.watch(start.clone(), end.clone(), first).await.unwrap();
    let changes = next(&mut watch).await;
    assert_eq!(changes.last().map(Change::revision), Some(first));
    drop(watch);
    // Heads are no part of it.
    let mut watch = impatient.watch(start.clone(), end.clone(), first + 1).await.unwrap();
    let head = Head::snapshot(None, Fence(first), 1);
    etcd.txn(commit(&keys(), user(1), Fence(first), 0, &head).unwrap()).await.unwrap();
    assert_eq!(timeout(LONG, watch.next()).await.unwrap(), Err(LedgerError::Silent));
    drop(watch);
    for n in 2..5 {
        won(&etcd, n, "a", lease).await;
    }
    let mut watch = etcd.watch(start.clone(), end.clone(), first + 1).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(next(&mut watch).await);
    }
    let owners: Vec<_> = seen.iter().map(|change| change.key().to_vec()).collect();
    assert_eq!(owners, (2..5).map(|n| keys().owner(user(n))).collect::<Vec<_>>());
    let last = seen.last().unwrap().revision();
    compact(&etcd, last).await;
    let mut watch = etcd.watch(start, end, first + 1).await.unwrap();
    assert_eq!(timeout(LONG, watch.next()).await.unwrap(), Err(LedgerError::Compacted));
}

#[tokio::test]
async fn claims_go_on_after_the_leader_is_killed() {
    let Some(mut cluster) = Cluster::start(3, Options::default()).await else { return };
    let etcd = cluster.client();
    let lease = grant(&etcd).await;
    let before = won(&etcd, 1, "a", lease).await;
    let leader = cluster.leader().await;
    cluster.kill(leader);
    let began = Instant::now();
    // Requests last until there is a leader again, or a little longer than one request may.
    let after = loop {
        match etcd.grant(TTL).await {
            Ok((lease, _)) => break lease,
            Err(error) => assert!(error.is_unavailable() && began.elapsed() < LONG, "{error}"),
        }
    };
    println!("leader killed: {:?} without writes", began.elapsed());
    // The last lease may be over; what it owned has not got another owner by itself.
    match try_claim(&etcd, 1, "b", after).await.unwrap() {
        Claim::Won(won) => assert!(won.fence > before.fence),
        Claim::Owned(node, fence) => assert!(node.as_str() == "a" && fence == before.fence),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn paused_member_is_left_for_another() {
    let Some(cluster) = Cluster::start(3, Options::default()).await else { return };
    let leader = cluster.leader().await;
    // A follower first: the others go on without an election.
    let mut settings = cluster.settings();
    settings.endpoints.rotate_left((leader + 1) % 3);
    settings.silence = Duration::from_secs(1);
    let etcd = Etcd::new(settings).unwrap();
    // Longer than the test.
    let (lease, _) = etcd.grant(600).await.unwrap();
    let first = won(&etcd, 1, "a", lease).await.fence.0;
    let (start, end) = keys().watched();
    let mut watch = etcd.watch(start.clone(), end.clone(), first).await.unwrap();
    assert_eq!(next(&mut watch).await.len(), 1);
    let paused = cluster.pause((leader + 1) % 3);
    let began = Instant::now();
    won(&etcd, 2, "a", lease).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    println!("member paused: claim after {:?}", began.elapsed());
    // The stream of the paused member is dead without an error; the next one has what was missed.
    assert_eq!(timeout(LONG, watch.next()).await.unwrap(), Err(LedgerError::Silent));
    let mut watch = etcd.watch(start, end, first + 1).await.unwrap();
    assert!(matches!(&next(&mut watch).await[..], [Change::Put(kv)] if kv.key == keys().owner(user(2))));
    drop(paused);
    assert_eq!(etcd.renew(lease).await, Ok(600));
}

#[tokio::test]
async fn without_quorum_nothing_is_answered() {
    let Some(mut cluster) = Cluster::start(3, Options::default()).await else { return };
    let mut settings = cluster.settings();
    settings.total = Duration::from_secs(2);
    let etcd = Etcd::new(settings).unwrap();
    let lease = grant(&etcd).await;
    cluster.kill(0);
    cluster.kill(1);
    let began = Instant::now();
    // A serializable read would answer here.
    let (start, end) = keys().watched();
    assert!(etcd.range(start, end, 0).await.unwrap_err().is_unavailable());
    assert!(try_claim(&etcd, 1, "a", lease).await.unwrap_err().is_unavailable());
    assert!(etcd.renew(lease).await.unwrap_err().is_unavailable());
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn user_and_password_give_a_token() {
    let Some(mut cluster) = Cluster::start(1, Options::default()).await else { return };
    let plain = cluster.client();
    for (path, body) in [
        ("/v3/auth/user/add", r#"{"name":"root","password":"root-secret"}"#),
        ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("/v3/auth/role/add", r#"{"name":"pilotlight"}"#),
        // From "/p/" to "/p0".
        (
            "/v3/auth/role/grant",
            r#"{"name":"pilotlight","perm":{"permType":"READWRITE","key":"L3AvIA==","range_end":"L3Aw"}}"#,
        ),
        ("/v3/auth/user/add", r#"{"name":"pilotlight","password":"pilot-secret"}"#),
        ("/v3/auth/user/grant", r#"{"user":"pilotlight","role":"pilotlight"}"#),
        ("/v3/auth/enable", "{}"),
    ] {
        let body = body.replace("L3AvIA==", "L3Av");
        plain.ask(path, body.into_bytes()).await.unwrap();
    }
    assert_eq!(plain.range(b"/p/".to_vec(), b"/p0".to_vec(), 0).await, Err(LedgerError::Denied("no user")));
    let with = |password: &str| {
        let mut settings = cluster.settings();
        settings.credentials = Some(Credentials { user: "pilotlight".into(), password: password.into() });
        assert!(!format!("{settings:?}").contains("secret"));
        Etcd::new(settings).unwrap()
    };
    let wrong = with("wrong-secret").grant(TTL).await;
    assert_eq!(wrong, Err(LedgerError::Denied("user or password")));
    let etcd = with("pilot-secret");
    let lease = grant(&etcd).await;
    won(&etcd, 1, "a", lease).await;
    assert_eq!(etcd.renew(lease).await, Ok(TTL));
    // Outside of its role.
    let outside = etcd.txn(put(b"/other".to_vec(), "x", LeaseId(0))).await;
    assert_eq!(outside, Err(LedgerError::Denied("permission")));
    let (start, end) = keys().watched();
    let mut watch = etcd.watch(start, end, 1).await.unwrap();
    assert_eq!(next(&mut watch).await.len(), 1);
    // Tokens are in the memory of the server: a restart forgets them, as their time does.
    cluster.restart(0).await;
    let lease = grant(&etcd).await;
    won(&etcd, 2, "a", lease).await;
    let forged: Arc<str> = "forged.1".into();
    etcd.0.tokens.as_ref().unwrap().set(forged).await;
    assert_eq!(etcd.renew(lease).await, Ok(TTL));
}

#[tokio::test]
async fn tls_needs_the_authority_and_a_certificate() {
    let options = Options { tls: true, ..Options::default() };
    let Some(cluster) = Cluster::start(1, options).await else { return };
    let etcd = cluster.client();
    let lease = grant(&etcd).await;
    let fence = won(&etcd, 1, "a", lease).await.fence.0;
    let (start, end) = keys().watched();
    let mut watch = etcd.watch(start, end, fence).await.unwrap();
    assert_eq!(next(&mut watch).await.len(), 1);
    let refused = async |change: fn(&mut TlsFiles)| {
        let mut settings = cluster.settings();
        settings.total = Duration::from_secs(3);
        change(&mut settings.tls);
        Etcd::new(settings).unwrap().grant(TTL).await
    };
    // Without the client's certificate; with the authorities of the host.
    assert_eq!(refused(|tls| tls.client = None).await, Err(LedgerError::Unavailable("TLS")));
    assert_eq!(refused(|tls| tls.ca = None).await, Err(LedgerError::Unavailable("TLS")));
    let mut settings = cluster.settings();
    settings.tls.client = settings.tls.ca.clone();
    assert!(matches!(Etcd::new(settings), Err(SettingsError::Tls(TlsError::File { .. }))));
}

#[tokio::test]
async fn request_over_the_limit_is_not_sent() {
    let Some(cluster) = Cluster::start(1, Options::default()).await else { return };
    let etcd = cluster.client();
    let large = "x".repeat(MAX_REQUEST_BYTES);
    let reply = etcd.txn(put(b"k".to_vec(), &large, LeaseId(0))).await;
    assert_eq!(reply, Err(LedgerError::TooLarge("request")));
    let get = Txn { success: vec![Operation::Get { key: b"k".to_vec() }], ..Txn::default() };
    assert_eq!(etcd.txn(get).await.unwrap().replies, [Reply::Got(None)]);
    // The largest record passes.
    let compare = vec![Compare::Lease(b"k".to_vec(), LeaseId(0))];
    let largest = Txn { compare, ..put(b"k".to_vec(), &"x".repeat(256 << 10), LeaseId(0)) };
    assert!(etcd.txn(largest).await.unwrap().succeeded);
    let page = etcd.range(b"k".to_vec(), b"l".to_vec(), 0).await.unwrap();
    let sizes: Vec<_> = page.keys.iter().map(|KeyValue { value, .. }| value.len()).collect();
    assert_eq!(sizes, [256 << 10]);
}

/// Prints the latencies: `cargo test --lib etcd_latencies -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn etcd_latencies_are_measured() {
    for members in [1, 3] {
        let Some(cluster) = Cluster::start(members, Options::default()).await else { return };
        let etcd = cluster.client();
        let lease = grant(&etcd).await;
        let runs = 300_u16;
        let mut times: [Vec<Duration>; 5] = Default::default();
        for n in 0..runs {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&n.to_be_bytes());
            let user = UserHash::from_bytes(bytes);
            let node: NodeId = "a".parse().unwrap();
            let began = Instant::now();
            let reply = etcd.txn(claim(&keys(), user, &node, lease).unwrap()).await.unwrap();
            times[0].push(began.elapsed());
            let Ok(Claim::Won(won)) = Claim::of(reply, &node, lease) else { panic!() };
            let began = Instant::now();
            etcd.renew(lease).await.unwrap();
            times[1].push(began.elapsed());
            let head = Head::snapshot(None, won.fence, 1);
            let began = Instant::now();
            let reply = etcd.txn(commit(&keys(), user, won.fence, 0, &head).unwrap()).await.unwrap();
            times[2].push(began.elapsed());
            assert!(reply.succeeded);
            let began = Instant::now();
            etcd.range(keys().owner(user), [keys().owner(user), vec![0]].concat(), 0).await.unwrap();
            times[3].push(began.elapsed());
            let began = Instant::now();
            etcd.txn(release(&keys(), user, won.fence)).await.unwrap();
            times[4].push(began.elapsed());
        }
        for (name, times) in ["claim", "renewal", "commit", "read", "release"].iter().zip(&mut times) {
            times.sort();
            let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
            println!("{members} member(s): {name}: p50 {p50:.2?}, p99 {p99:.2?}");
        }
    }
}
