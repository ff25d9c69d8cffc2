//! Members over a ledger in memory, on a paused clock.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::time::sleep;

use super::*;
use crate::cluster::ledger::Etcd;
use crate::cluster::ledger::etcd::tests::cluster::{Cluster, Options};
use crate::cluster::ledger::memory::{Fault, Memory, Store};
use crate::cluster::ledger::{Compare, Operation, Txn};

const LIMITS: Limits = Limits { users: 100, requests: 50 };
const LONG: Duration = Duration::from_secs(60);

/// Counts what it is asked for. Restores and closes take a while.
#[derive(Default)]
struct Children {
    restored: AtomicUsize,
    closed: AtomicUsize,
    stopped: AtomicUsize,
    fails: AtomicBool,
    panics: AtomicBool,
    hangs: AtomicBool,
    events: Notify,
}

#[derive(Clone, Default)]
struct TestHost(Arc<Children>);

impl Host for TestHost {
    fn restore(&self, _: UserHash, _: Fence, _: Stored) -> HostWork<bool> {
        let children = Arc::clone(&self.0);
        Box::pin(async move {
            children.restored.fetch_add(1, Ordering::SeqCst);
            children.events.notify_one();
            if children.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            assert!(!children.panics.load(Ordering::SeqCst), "a panic of the test");
            sleep(Duration::from_millis(20)).await;
            !children.fails.load(Ordering::SeqCst)
        })
    }

    fn close(&self, _: UserHash, _: Fence) -> HostWork<()> {
        let children = Arc::clone(&self.0);
        Box::pin(async move {
            assert!(!children.panics.load(Ordering::SeqCst), "a panic of the test");
            sleep(Duration::from_millis(20)).await;
            children.closed.fetch_add(1, Ordering::SeqCst);
        })
    }

    fn stop(&self, _: UserHash, _: Fence) -> HostWork<()> {
        let children = Arc::clone(&self.0);
        Box::pin(async move {
            sleep(Duration::from_millis(20)).await;
            children.stopped.fetch_add(1, Ordering::SeqCst);
        })
    }
}

struct Node<L = Memory> {
    member: Membership,
    host: TestHost,
    ledger: L,
}

fn user(n: u8) -> UserHash {
    UserHash::from_bytes([n; 16])
}

/// Longer than a lease.
fn later() -> Instant {
    Instant::now() + Duration::from_secs(3)
}

fn settings(id: &str) -> MemberSettings {
    MemberSettings {
        id: id.parse().unwrap(),
        info: NodeInfo::new(format!("http://{id}:1"), 10, "1".into()),
        prefix: "/p/".into(),
        ttl: Duration::from_secs(2),
        limits: LIMITS,
        max_owners: 1000,
        clock: Clock::Runtime(Instant::now() - Duration::from_secs(5)),
    }
}

async fn try_join(id: &str, store: &Memory) -> Result<Node, JoinError> {
    let (host, ledger) = (TestHost::default(), store.connect());
    let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
    let member =
        Membership::join(Arc::new(ledger.clone()), Arc::new(host.clone()), settings(id), tasks, end).await?;
    Ok(Node { member, host, ledger })
}

async fn join(id: &str, store: &Memory) -> Node {
    try_join(id, store).await.unwrap()
}

impl<L> Node<L> {
    async fn here(&self, n: u8) -> Granted {
        match self.member.claim(user(n), later()).await.unwrap() {
            Claimed::Here(granted) => granted,
            Claimed::Elsewhere(node) => panic!("at {node}"),
        }
    }

    async fn elsewhere(&self, n: u8) -> String {
        match self.member.claim(user(n), later()).await.unwrap() {
            Claimed::Here(granted) => panic!("here: {granted:?}"),
            Claimed::Elsewhere(node) => node.to_string(),
        }
    }

    /// Waits for a state of this node.
    async fn until(&self, is_so: impl Fn(&State) -> bool) {
        assert!(self.member.0.until(LONG, is_so).await);
    }

    fn count(&self, of: impl Fn(&Children) -> &AtomicUsize) -> usize {
        of(&self.host.0).load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn requests_of_a_user_share_one_claim() {
    let store = Memory::new();
    let (a, b) = (join("a", &store).await, join("b", &store).await);
    let before = store.with(|store| Store::revision(store));
    let claims = (0..20).map(|_| {
        let member = a.member.clone();
        a.member.0.tasks.spawn(async move { member.claim(user(1), later()).await })
    });
    let mut granted = Vec::new();
    for claim in claims.collect::<Vec<_>>() {
        granted.push(claim.await.unwrap().unwrap());
    }
    assert_eq!(store.with(|store| Store::revision(store)), before + 1);
    assert_eq!(a.count(|children| &children.restored), 1);
    assert_eq!(b.elsewhere(1).await, "a");
    assert_eq!(b.member.locate(user(1)).await, Ok(Some("a".parse().unwrap())));
    assert_eq!(b.member.locate(user(2)).await, Ok(None));
    assert!(b.member.0.until(LONG, |_| b.member.owner_of(user(1)).is_some()).await);
    assert_eq!(b.member.node(&"a".parse().unwrap()).unwrap().address, "http://a:1");
}

#[tokio::test(start_paused = true)]
async fn head_goes_with_the_user_to_the_next_node() {
    let store = Memory::new();
    let (a, b) = (join("a", &store).await, join("b", &store).await);
    let granted = a.here(1).await;
    let fence = granted.fence();
    let first = Head::snapshot(None, fence, 1);
    assert_eq!(a.member.commit(user(1), fence, first.clone()).await, CommitEnd::Done);
    let CommitEnd::Behind(stored) = a.member.commit(user(1), fence, first.clone()).await else { panic!() };
    assert_eq!(stored.head.as_ref(), Some(&first));
    let second = first.delta(fence, 1).unwrap();
    assert_eq!(a.member.commit(user(1), Fence(fence.0 + 1), second.clone()).await, CommitEnd::Fenced);
    // Not while a request works with it.
    assert!(!a.member.release(user(1), Duration::from_secs(1)).await);
    drop(granted);
    assert!(a.member.release(user(1), LONG).await);
    assert_eq!(a.count(|children| &children.closed), 1);
    let granted = b.here(1).await;
    assert_eq!(b.member.stored(user(1)).unwrap().head, Some(first));
    let next = second.clone();
    assert_eq!(a.member.commit(user(1), fence, next).await, CommitEnd::Fenced);
    drop(granted);
}

#[tokio::test(start_paused = true)]
async fn lost_answer_of_a_commit_is_recognised() {
    let store = Memory::new();
    let a = join("a", &store).await;
    let granted = a.here(1).await;
    let head = Head::snapshot(None, granted.fence(), 1);
    a.ledger.set_fault(Fault::NoAnswers);
    let member = a.member.clone();
    let (fence, next) = (granted.fence(), head.clone());
    let commit = a.member.0.tasks.spawn(async move { member.commit(user(1), fence, next).await });
    let key = a.member.0.keys.head(user(1));
    while store.with(|store| store.get(&key).is_none()) {
        sleep(Duration::from_millis(10)).await;
    }
    a.ledger.set_fault(Fault::None);
    assert_eq!(commit.await.unwrap(), CommitEnd::Done);
    let revision = store.with(|store| store.get(&key).unwrap().modified);
    assert_eq!(a.member.stored(user(1)).unwrap(), Stored { head: Some(head), revision });
}

#[tokio::test(start_paused = true)]
async fn cut_off_node_stops_before_another_may_claim() {
    let store = Memory::new();
    let (a, b) = (join("a", &store).await, join("b", &store).await);
    let granted = a.here(1).await;
    let mut deadline = a.member.deadline();
    let old = (*deadline.borrow_and_update()).unwrap();
    a.ledger.set_fault(Fault::Cut);
    let head = Head::snapshot(None, granted.fence(), 1);
    // The commit ends with the deadline, not later.
    assert_eq!(a.member.commit(user(1), granted.fence(), head).await, CommitEnd::Unknown);
    assert!(a.member.0.clock.now() >= old && deadline.borrow_and_update().is_none());
    assert_eq!(b.elsewhere(1).await, "a");
    a.until(|state| state.machine.len() == 0).await;
    assert_eq!(a.count(|children| &children.stopped), 1);
    assert_eq!(b.elsewhere(1).await, "a");
    assert_eq!(a.member.claim(user(2), later()).await.unwrap_err(), Refusal::Unavailable);
    // Its lease ends, and the other node takes over.
    let key = a.member.0.keys.owner(user(1));
    while store.with(|store| store.get(&key).is_some()) {
        sleep(Duration::from_millis(50)).await;
    }
    let taken = b.here(1).await;
    assert!(taken.fence() > granted.fence());
    // Back again with a lease of its own.
    a.ledger.set_fault(Fault::None);
    a.until(|state| state.machine.deadline().is_some()).await;
    assert_eq!(a.elsewhere(1).await, "b");
    drop(a.here(2).await);
}

/// A stop takes longer than the rest of the lease: no new lease before its end.
#[tokio::test(start_paused = true)]
async fn restore_is_dropped_when_the_lease_is_lost() {
    let store = Memory::new();
    let a = join("a", &store).await;
    a.host.0.hangs.store(true, Ordering::SeqCst);
    let member = a.member.clone();
    let claim = a.member.0.tasks.spawn(async move { member.claim(user(1), later()).await.map(|_| ()) });
    a.host.0.events.notified().await;
    let lease = (*a.member.0.lease.borrow()).unwrap();
    store.with(|store| store.revoke(lease));
    assert_eq!(claim.await.unwrap(), Err(Refusal::Unavailable));
    a.until(|state| state.machine.len() == 0 && state.machine.deadline().is_some()).await;
    assert_eq!(a.count(|children| &children.stopped), 1);
    a.host.0.hangs.store(false, Ordering::SeqCst);
    drop(a.here(1).await);
}

#[tokio::test(start_paused = true)]
async fn failed_host_work_does_not_keep_the_user() {
    let store = Memory::new();
    let (a, b) = (join("a", &store).await, join("b", &store).await);
    a.host.0.fails.store(true, Ordering::SeqCst);
    assert_eq!(a.member.claim(user(1), later()).await.unwrap_err(), Refusal::NotRestored);
    a.host.0.panics.store(true, Ordering::SeqCst);
    assert_eq!(a.member.claim(user(1), later()).await.unwrap_err(), Refusal::NotRestored);
    a.until(|state| state.machine.len() == 0).await;
    drop(b.here(1).await);
    assert!(b.member.release(user(1), LONG).await);
    a.host.0.fails.store(false, Ordering::SeqCst);
    a.host.0.panics.store(false, Ordering::SeqCst);
    drop(a.here(1).await);
    // A close that panics may have left children: they are stopped before the release.
    a.host.0.panics.store(true, Ordering::SeqCst);
    assert!(a.member.release(user(1), LONG).await);
    assert_eq!(a.count(|children| &children.stopped), 1);
    drop(b.here(1).await);
}

#[tokio::test(start_paused = true)]
async fn draining_node_lets_its_users_go() {
    let store = Memory::new();
    let (a, b) = (join("a", &store).await, join("b", &store).await);
    drop(a.here(1).await);
    let working = a.here(2).await;
    a.member.drain(Drain::Now);
    assert_eq!(a.member.claim(user(3), later()).await.unwrap_err(), Refusal::Draining);
    a.until(|state| state.machine.len() == 1).await;
    drop(b.here(1).await);
    assert!(
        b.member
            .0
            .until(LONG, |_| b.member.node(&"a".parse().unwrap()).is_some_and(|info| info.draining))
            .await
            || b.member.node(&"a".parse().unwrap()).unwrap().draining
    );
    assert_eq!(b.member.place(user(9), &[]), Some("b".parse().unwrap()));
    assert!(!a.member.drained(Duration::from_secs(1)).await);
    // A request that waits for a draining user is sent on when the user has left.
    let member = a.member.clone();
    let waits = a.member.0.tasks.spawn(async move { member.claim(user(2), later()).await.map(|_| ()) });
    sleep(Duration::from_millis(100)).await;
    drop(working);
    assert_eq!(waits.await.unwrap(), Err(Refusal::Draining));
    assert!(a.member.drained(LONG).await);
    assert_eq!(a.member.leave(LONG).await, Ok(()));
    let key = a.member.0.keys.node(&"a".parse().unwrap());
    assert!(store.with(|store| store.get(&key).is_none()));
    // The name is free at once.
    drop(join("a", &store).await);
}

#[tokio::test(start_paused = true)]
async fn name_of_a_live_node_is_refused() {
    let store = Memory::new();
    let a = join("a", &store).await;
    assert_eq!(try_join("a", &store).await.err(), Some(JoinError::NameTaken));
    // Of a dead one, the name is free when its lease is over.
    a.member.0.end.cancel();
    drop(join("a", &store).await);
}

#[tokio::test(start_paused = true)]
async fn compaction_does_not_lose_an_owner() {
    let store = Memory::new();
    let (a, b) = (join("a", &store).await, join("b", &store).await);
    b.ledger.set_fault(Fault::Cut);
    drop(a.here(1).await);
    store.with(Store::compact);
    b.ledger.set_fault(Fault::None);
    while b.member.owner_of(user(1)).is_none() {
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(b.member.owners()[&"a".parse().unwrap()], 1);
}

/// As after the operator has restored a backup: its numbers begin again from there.
#[tokio::test(start_paused = true)]
async fn ledger_that_went_back_is_read_again() {
    let store = Memory::new();
    let a = join("a", &store).await;
    let backup = store.with(|store| store.clone());
    for n in 1..=9 {
        drop(a.here(n).await);
    }
    let seen = store.with(|store| store.revision());
    a.until(|_| a.member.owners()[&"a".parse().unwrap()] == 9).await;
    store.with(|store| *store = backup);
    let b = join("b", &store).await;
    assert!(store.with(|store| store.revision()) < seen);
    // Its users are not the node's any more, whatever their numbers are.
    a.until(|state| state.machine.len() == 0).await;
    assert_eq!(a.count(|children| &children.stopped), 9);
    a.until(|_| a.member.node(&"b".parse().unwrap()).is_some()).await;
    drop(b.here(1).await);
    assert_eq!(a.elsewhere(1).await, "b");
}

/// A node reads everything again after a compaction, and has no room for all owners.
#[tokio::test(start_paused = true)]
async fn full_cache_does_not_end_own_users() {
    let store = Memory::new();
    let a = join("a", &store).await;
    let settings = MemberSettings { max_owners: 2, ..settings("b") };
    let (host, ledger) = (TestHost::default(), store.connect());
    let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
    let member = Membership::join(Arc::new(ledger.clone()), Arc::new(host.clone()), settings, tasks, end)
        .await
        .unwrap();
    let b = Node { member, host, ledger };
    for n in 1..=5 {
        drop(a.here(n).await);
    }
    b.until(|_| b.member.owner_of(user(1)).is_some() && b.member.owner_of(user(2)).is_some()).await;
    let granted = b.here(9).await;
    b.ledger.set_fault(Fault::Cut);
    store.with(Store::compact);
    b.ledger.set_fault(Fault::None);
    drop(a.here(6).await);
    // The new node is seen by a fresh reading only.
    let c = join("c", &store).await;
    b.until(|_| b.member.node(c.member.id()).is_some()).await;
    assert_eq!(b.member.fence(user(9)), Some(granted.fence()));
    assert_eq!(b.count(|children| &children.stopped), 0);
    assert_eq!(b.member.owner_of(user(9)), Some("b".parse().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn lost_key_ends_the_ownership() {
    let store = Memory::new();
    let a = join("a", &store).await;
    let granted = a.here(1).await;
    let key = a.member.0.keys.owner(user(1));
    let remove = Txn { success: vec![Operation::Delete { key }], ..Txn::default() };
    store.with(|store| store.txn(&remove)).unwrap();
    a.until(|state| state.machine.len() == 0).await;
    assert_eq!(a.count(|children| &children.stopped), 1);
    let again = a.here(1).await;
    assert!(again.fence() > granted.fence());
}

#[tokio::test(start_paused = true)]
async fn only_a_dead_node_is_forgotten() {
    let store = Memory::new();
    let (a, b) = (join("a", &store).await, join("b", &store).await);
    drop(a.here(1).await);
    let id: NodeId = "a".parse().unwrap();
    assert!(matches!(b.member.forget(&id).await, Err(ForgetError::Alive(_))));
    assert_eq!(b.member.forget(&"c".parse().unwrap()).await, Err(ForgetError::Unknown));
    // Keys without a lease, as a restored copy of the ledger has them.
    let keys = b.member.0.keys.clone();
    let put = |key, value: &str| Operation::Put { key, value: value.into(), lease: LeaseId(0) };
    let left = vec![
        put(keys.node(&"c".parse().unwrap()), r#"{"address":"http://c:1"}"#),
        put(keys.owner(user(7)), r#"{"node":"c"}"#),
    ];
    let compare = vec![Compare::Created(keys.owner(user(7)), 0)];
    store.with(|store| store.txn(&Txn { compare, success: left, failure: vec![] })).unwrap();
    assert_eq!(b.elsewhere(7).await, "c");
    let forgotten = b.member.forget(&"c".parse().unwrap()).await;
    assert_eq!(forgotten, Ok(Forgotten { node: true, owners: 1 }));
    drop(b.here(7).await);
}

/// A user who is here is granted whatever the time.
#[tokio::test(start_paused = true)]
async fn claim_waits_no_longer_than_its_deadline() {
    let a = join("a", &Memory::new()).await;
    drop(a.here(1).await);
    a.host.0.hangs.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + Duration::from_millis(700);
    assert_eq!(a.member.claim(user(2), deadline).await.unwrap_err(), Refusal::Late);
    let past = Instant::now() - deadline;
    assert!(past < Duration::from_millis(10), "{past:?}");
    assert!(matches!(a.member.claim(user(1), deadline).await, Ok(Claimed::Here(_))));
}

#[tokio::test(start_paused = true)]
async fn abandoned_request_takes_back_its_ticket() {
    let store = Memory::new();
    let a = join("a", &store).await;
    a.host.0.hangs.store(true, Ordering::SeqCst);
    let member = a.member.clone();
    let claim = a.member.0.tasks.spawn(async move { member.claim(user(1), later()).await.map(|_| ()) });
    a.host.0.events.notified().await;
    claim.abort();
    assert!(claim.await.is_err());
    // The wait for a restore that hangs is bounded as well.
    assert_eq!(a.member.claim(user(1), later()).await.unwrap_err(), Refusal::Late);
    assert!(a.member.0.state().tickets.is_empty());
    drop(a);
}

/// Counted from the answer, the deadline would be later than the end of the lease allows.
#[tokio::test(start_paused = true)]
async fn deadline_counts_from_the_sending() {
    let store = Memory::new();
    let (host, ledger) = (TestHost::default(), store.connect());
    let settings = MemberSettings { clock: Clock::Runtime(store.began()), ..settings("a") };
    let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
    let member =
        Membership::join(Arc::new(ledger.clone()), Arc::new(host), settings, tasks, end).await.unwrap();
    let lease = (*member.0.lease.borrow()).unwrap();
    let mut deadline = member.deadline();
    ledger.set_fault(Fault::Slow(Duration::from_millis(200)));
    for _ in 0..5 {
        deadline.changed().await.unwrap();
        let at = (*deadline.borrow_and_update()).unwrap();
        let lease_end = Moment { nanos: store.with(|store| store.end(lease)).unwrap() };
        assert!(at.after(MARGIN) <= lease_end, "{at:?} {lease_end:?}");
        // And not earlier than the sending of a renewal makes it.
        assert!(at.after(MARGIN + Duration::from_millis(200)) >= lease_end, "{at:?} {lease_end:?}");
    }
}

/// The node ends although requests work: they are stopped, and the name and the users are free at once.
#[tokio::test(start_paused = true)]
async fn leaving_stops_what_does_not_end() {
    let store = Memory::new();
    let (a, b) = (join("a", &store).await, join("b", &store).await);
    let working = a.here(1).await;
    assert_eq!(a.member.users(), (1, 1));
    assert_eq!(a.member.fence(user(1)), Some(working.fence()));
    let began = Instant::now();
    assert_eq!(a.member.leave(Duration::from_secs(1)).await, Ok(()));
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(a.count(|children| &children.stopped), 1);
    assert_eq!(a.member.fence(user(1)), None);
    drop(b.here(1).await);
    // It does not come back with another lease.
    sleep(LONG).await;
    let key = a.member.0.keys.node(&"a".parse().unwrap());
    assert!(store.with(|store| store.get(&key).is_none()));
    assert_eq!(a.member.claim(user(2), later()).await.unwrap_err(), Refusal::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn commit_ends_with_the_node() {
    let store = Memory::new();
    let a = join("a", &store).await;
    let granted = a.here(1).await;
    a.ledger.set_fault(Fault::Cut);
    let head = Head::snapshot(None, granted.fence(), 1);
    let (member, fence) = (a.member.clone(), granted.fence());
    let commit = a.member.0.tasks.spawn(async move { member.commit(user(1), fence, head).await });
    a.until(|state| !state.commits.is_empty()).await;
    a.member.0.end.cancel();
    assert_eq!(commit.await.unwrap(), CommitEnd::Unknown);
}

/// Nothing is kept of users that are gone.
#[tokio::test(start_paused = true)]
async fn state_of_released_users_is_freed() {
    let store = Memory::new();
    let a = join("a", &store).await;
    for n in 0..50 {
        drop(a.here(n).await);
        assert!(a.member.release(user(n), LONG).await);
    }
    let state = a.member.0.state();
    let left = (state.machine.len(), state.tickets.len(), state.commits.len(), state.host.len());
    assert_eq!(left, (0, 0, 0, 0));
}

async fn join_etcd(id: &str, cluster: &Cluster) -> Node<Etcd> {
    let (host, ledger) = (TestHost::default(), cluster.client());
    let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
    let settings = MemberSettings { clock: Clock::Boot, ..settings(id) };
    let member = Membership::join(Arc::new(ledger.clone()), Arc::new(host.clone()), settings, tasks, end);
    Node { member: member.await.unwrap(), host, ledger }
}

/// Asks until the user is here.
async fn taken_over(node: &Node<Etcd>, n: u8) -> Duration {
    let began = Instant::now();
    loop {
        match node.member.claim(user(n), later()).await {
            Ok(Claimed::Here(_)) => return began.elapsed(),
            Ok(Claimed::Elsewhere(_)) | Err(Refusal::Unavailable | Refusal::Late) => {}
            Err(other) => panic!("{other}"),
        }
        assert!(began.elapsed() < LONG);
        sleep(Duration::from_millis(20)).await;
    }
}

/// Two nodes, three members of etcd: a turn is stored, the node vanishes, the other goes on with its head.
#[tokio::test]
async fn user_moves_between_nodes_over_etcd() {
    let Some(mut cluster) = Cluster::start(3, Options { quick: true, ..Options::default() }).await else {
        return;
    };
    let (a, b) = (join_etcd("a", &cluster).await, join_etcd("b", &cluster).await);
    let granted = a.here(1).await;
    let head = Head::snapshot(None, granted.fence(), 1);
    assert_eq!(a.member.commit(user(1), granted.fence(), head.clone()).await, CommitEnd::Done);
    assert_eq!(b.elsewhere(1).await, "a");
    // The leader of etcd dies: at most the lease is lost, and with it no head.
    let leader = cluster.leader().await;
    cluster.kill(leader);
    a.until(|state| state.machine.deadline().is_some()).await;
    // As if killed: nothing is given back.
    a.member.0.end.cancel();
    let time = taken_over(&b, 1).await;
    println!("taken over after {time:?}");
    assert_eq!(b.member.stored(user(1)).unwrap().head, Some(head));
    drop(granted);
    assert_eq!(b.member.leave(LONG).await, Ok(()));
}

/// Prints how long a user has no owner: `cargo test --lib takeover -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn takeover_is_measured() {
    for (quick, leader) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut times = Vec::new();
        for _ in 0..5 {
            let options = Options { quick, ..Options::default() };
            let Some(mut cluster) = Cluster::start(3, options).await else { return };
            let (a, b) = (join_etcd("a", &cluster).await, join_etcd("b", &cluster).await);
            drop(a.here(1).await);
            a.member.0.end.cancel();
            if leader {
                let leader = cluster.leader().await;
                cluster.kill(leader);
            }
            times.push(taken_over(&b, 1).await);
            b.member.0.end.cancel();
        }
        times.sort();
        println!("quick elections {quick}, leader killed {leader}: {times:.2?}");
    }
}
