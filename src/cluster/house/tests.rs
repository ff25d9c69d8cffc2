//! A node's users over a ledger in memory and a store over loopback. Nothing here is repeated by the store: what waits, waits.

use std::sync::atomic::AtomicUsize;

use hyper::Method;
use metrics::NoopRecorder;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;

use pilotlight_test_support::SOON;

use super::*;
use crate::cluster::Later;
use crate::cluster::bring_in::unknown_users;
use crate::cluster::ledger::memory::Memory;
use crate::cluster::ledger::{Keys, NodeInfo, Operation, Txn};
use crate::cluster::membership::{Claimed, Clock, Granted, MemberSettings};
use crate::cluster::ownership::Limits;
use crate::cluster::replica::ReplicaConfig;
use crate::cluster::replica::store::tests::{Bucket as _, Fault, S3};
use crate::cluster::replica::testing::{Node, Session};
use crate::workspace::UserFiles;

/// More files than a first object has.
const MANY_FILES: usize = 150;

/// What is noted of a user when its files are to be removed or a loss is to be reported, which waits until `go_on`.
struct Held {
    mark: Mark,
    go_on: oneshot::Sender<()>,
}

/// The files of a user, without children.
struct Files {
    data_dir: PathBuf,
    /// Asked before files are removed and losses reported, where a test wants to.
    holds: Option<mpsc::Sender<Held>>,
    /// Notified when a user is lost.
    stopped: mpsc::Sender<()>,
    losses: AtomicUsize,
}

impl Files {
    /// Waits until the test says so.
    async fn ask(&self, user: &UserId) {
        let Some(holds) = &self.holds else { return };
        let (go_on, may_go_on) = oneshot::channel();
        let mark = Mark::read(&self.data_dir, UserHash::of(user)).await.unwrap();
        holds.send(Held { mark, go_on }).await.ok();
        may_go_on.await.ok();
    }
}

impl Residents for Files {
    fn rest<'a>(&'a self, _: &'a UserId) -> Later<'a, bool> {
        Box::pin(async { true })
    }

    fn end<'a>(&'a self, _: &'a UserId) -> Later<'a, ()> {
        self.stopped.try_send(()).ok();
        Box::pin(async {})
    }

    fn forget<'a>(&'a self, user: &'a UserId) -> Later<'a, bool> {
        Box::pin(async move {
            self.ask(user).await;
            UserFiles::of(&self.data_dir, user).delete_all_but_tokens().is_ok()
        })
    }

    fn named<'a>(&'a self, _: &'a str) -> Later<'a, Option<UserId>> {
        Box::pin(async { None })
    }

    fn has_no_files<'a>(&'a self, user: &'a UserId) -> Later<'a, bool> {
        Box::pin(async move { UserFiles::of(&self.data_dir, user).is_empty().unwrap() })
    }

    fn report_loss<'a>(&'a self, user: &'a UserId) -> Later<'a, ()> {
        self.losses.fetch_add(1, Ordering::SeqCst);
        Box::pin(self.ask(user))
    }
}

/// A node of the cluster with a user's files.
struct Here {
    node: Arc<Node>,
    house: Arc<House>,
    member: Membership,
    end: CancellationToken,
    held: mpsc::Receiver<Held>,
    stopped: mpsc::Receiver<()>,
    files: Arc<Files>,
}

/// What a test's nodes share.
struct Shared {
    ledger: Memory,
    bucket: S3,
    started: AtomicUsize,
}

impl Shared {
    async fn new() -> Self {
        Self { ledger: Memory::new(), bucket: S3::start().await, started: AtomicUsize::new(0) }
    }

    /// A node on this data directory. With `asks`, removals and reports wait for the test.
    async fn start(&self, node: &Arc<Node>, asks: bool) -> Here {
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        let long = Duration::from_secs(3600);
        let mut store = self.bucket.config();
        (store.try_for, store.give_up_after) = (long, long);
        let config = ReplicaConfig { store, credentials: false, workspace_bytes: None };
        let data_dir = node.path().to_owned();
        let replica = Replica::open(&config, &data_dir, tasks.clone()).unwrap();
        let metrics = Arc::new(ClusterMetrics::register(&NoopRecorder, "test"));
        let house = House::new(config::Cluster::default(), data_dir.clone(), replica, metrics, tasks.clone());
        let house = Arc::new(house);
        let number = self.started.fetch_add(1, Ordering::SeqCst);
        let settings = MemberSettings {
            id: format!("node-{number}").parse().unwrap(),
            info: NodeInfo::new("127.0.0.1:1".to_owned(), 10, "1".to_owned()),
            prefix: "/p/".to_owned(),
            ttl: Duration::from_secs(60),
            limits: Limits { users: 10, requests: 10 },
            max_owners: 10,
            clock: Clock::Boot,
        };
        let (ledger, steward) = (Arc::new(self.ledger.connect()), Arc::new(Steward(house.clone())));
        let member = Membership::join(ledger, steward, settings, tasks, end.clone()).await.unwrap();
        house.joined(member.clone());
        let ((asked, held), (ended, stopped)) = (mpsc::channel(1), mpsc::channel(1));
        let holds = asks.then_some(asked);
        let files = Arc::new(Files { data_dir, holds, stopped: ended, losses: AtomicUsize::new(0) });
        house.inhabit(files.clone());
        Here { node: node.clone(), house, member, end, held, stopped, files }
    }
}

impl Here {
    fn hash(&self) -> UserHash {
        UserHash::of(&self.node.user)
    }

    /// Brings the user here for a request.
    async fn claim(&self) -> (Arc<Resident>, Granted) {
        let resident = self.house.admit(&self.node.user, self.hash());
        match self.member.claim(self.hash(), Instant::now() + SOON).await.unwrap() {
            Claimed::Here(granted) => (resident, granted),
            Claimed::Elsewhere(node) => panic!("at {node}"),
        }
    }

    fn head(&self) -> Head {
        self.member.stored(self.hash()).unwrap().head.unwrap()
    }

    /// Whether the user has left this node.
    async fn lets_go(&self) -> bool {
        self.member.release(self.hash(), SOON).await
    }

    /// A turn of a session, which is stored.
    async fn turn(&self, resident: &Arc<Resident>, session: &Session, said: &str) {
        std::fs::write(session.work.join(said), said).unwrap();
        resident.touch(&session.hash);
        self.house.commit(resident, Extent::Turn).await.unwrap();
    }

    /// Snapshots in the background wait as long as the result is held.
    async fn hold_snapshots(&self) -> OwnedSemaphorePermit {
        let places = self.house.replica.snapshots.clone();
        let all = places.available_permits() as u32;
        places.acquire_many_owned(all).await.unwrap()
    }

    /// What was set aside of the user.
    fn set_aside(&self) -> usize {
        std::fs::read_dir(self.node.path().join("replaced")).map_or(0, Iterator::count)
    }

    /// What waits for the test.
    async fn held(&mut self) -> Held {
        timeout(SOON, self.held.recv()).await.unwrap().unwrap()
    }

    /// The user is nobody's from one moment to the other, and the node knows.
    async fn disown(&mut self, ledger: &Memory) {
        let owner = Keys::new("/p/").owner(self.hash());
        let remove = Txn { success: vec![Operation::Delete { key: owner }], ..Txn::default() };
        ledger.with(|store| store.txn(&remove)).unwrap();
        assert!(timeout(SOON, self.stopped.recv()).await.unwrap().is_some());
    }

    /// The node is gone from one moment to the other, and its lease with it.
    fn kill(self, ledger: &Memory) -> Arc<Node> {
        let lease = self.member.lease().unwrap();
        self.end.cancel();
        ledger.with(|store| store.revoke(lease));
        self.node
    }
}

/// A user from before the cluster, of whom a first object has a part.
fn large_user() -> (Arc<Node>, Session) {
    let node = Arc::new(Node::new());
    let session = node.session("a");
    for number in 0..MANY_FILES {
        std::fs::write(session.work.join(format!("file {number}")), "x").unwrap();
    }
    (node, session)
}

/// Has the store hold up the first object of this number. The result is notified when it comes.
fn hold_up(bucket: &S3, seq: u64, fault: Fault) -> Arc<Notify> {
    let came = Arc::new(Notify::new());
    let (tell, number) = (came.clone(), format!("/{seq:020}"));
    let is_first = AtomicBool::new(true);
    bucket.set(move |method, key, _| {
        if *method == Method::PUT && key.ends_with(&number) && is_first.swap(false, Ordering::SeqCst) {
            tell.notify_one();
            return fault;
        }
        Fault::None
    });
    came
}

#[tokio::test]
async fn due_snapshot_ends_when_its_user_leaves() {
    // The object may be there all the same, or not.
    for fault in [Fault::Silent, Fault::Held] {
        let shared = Shared::new().await;
        let (node, session) = large_user();
        let here = shared.start(&node, false).await;
        let places = here.house.replica.snapshots.available_permits();
        let came = hold_up(&shared.bucket, 2, fault);
        let (resident, granted) = here.claim().await;
        here.turn(&resident, &session, "one").await;
        assert_eq!(here.head().seq, 1);
        timeout(SOON, came.notified()).await.expect("a snapshot follows");
        let before = node.tree();
        drop((resident, granted));
        assert!(here.lets_go().await, "{fault:?}: it waits for nothing");
        assert_eq!(here.house.replica.snapshots.available_permits(), places);
        assert_eq!(node.tree().len(), 0);
        let there = shared.start(&Arc::new(Node::new()), false).await;
        let (_resident, granted) = there.claim().await;
        assert!(there.head().released);
        assert_eq!(there.node.tree(), before, "{fault:?}");
        drop(granted);
    }
}

#[tokio::test]
async fn waiting_snapshot_ends_when_its_user_leaves() {
    let shared = Shared::new().await;
    let (node, session) = large_user();
    let here = shared.start(&node, false).await;
    let places = here.hold_snapshots().await;
    let (resident, granted) = here.claim().await;
    here.turn(&resident, &session, "one").await;
    let before = node.tree();
    drop((resident, granted));
    assert!(here.lets_go().await);
    drop(places);
    let there = shared.start(&Arc::new(Node::new()), false).await;
    let (_resident, _granted) = there.claim().await;
    assert_eq!(there.node.tree(), before);
}

/// The files of a user who has left are removed after the last change is stored, and the node may be killed in the middle.
#[tokio::test]
async fn rest_of_files_in_removal_is_not_the_latest() {
    for is_large in [true, false] {
        let shared = Shared::new().await;
        let (node, session) = large_user();
        if !is_large {
            std::fs::remove_dir_all(&session.work).unwrap();
            std::fs::create_dir(&session.work).unwrap();
        }
        let mut here = shared.start(&node, true).await;
        let _places = here.hold_snapshots().await;
        let (resident, granted) = here.claim().await;
        here.turn(&resident, &session, "one").await;
        here.turn(&resident, &session, "two").await;
        let before = node.tree();
        drop((resident, granted));
        here.member.evict(here.hash());
        let Held { mark, go_on } = here.held().await;
        let head = here.head();
        assert!(head.released && !mark.is_latest(Some(&head)), "{mark:?} {head:?}");
        // Half of it is gone.
        node.delete("a");
        let node = here.kill(&shared.ledger);
        let again = shared.start(&node, false).await;
        let (_resident, granted) = again.claim().await;
        assert_eq!((node.tree(), again.set_aside()), (before, 0));
        drop((granted, go_on));
    }
}

/// The ownership ends while files of the user are removed, and the user comes back at once.
#[tokio::test]
async fn user_who_is_back_waits_for_the_removal() {
    let shared = Shared::new().await;
    let (node, session) = large_user();
    let mut here = shared.start(&node, true).await;
    let (resident, granted) = here.claim().await;
    here.turn(&resident, &session, "one").await;
    let before = node.tree();
    drop((resident, granted));
    here.member.evict(here.hash());
    let Held { go_on, .. } = here.held().await;
    here.disown(&shared.ledger).await;
    let back = here.claim();
    tokio::pin!(back);
    assert!(timeout(Duration::from_millis(300), &mut back).await.is_err(), "it waits");
    go_on.send(()).unwrap();
    let (_resident, _granted) = timeout(SOON, back).await.unwrap();
    assert_eq!((node.tree(), here.set_aside()), (before, 0));
}

/// A request that is dropped while it waits for the claim leaves its place behind.
#[tokio::test]
async fn users_who_have_not_come_are_forgotten() {
    let shared = Shared::new().await;
    let (node, _) = large_user();
    let here = shared.start(&node, false).await;
    let waiting = here.house.admit(&node.user, here.hash());
    here.house.look_once(&here.member);
    assert_eq!(here.house.users.len(), 1, "a request has it");
    drop(waiting);
    here.house.look_once(&here.member);
    assert_eq!(here.house.users.len(), 0);
    let (resident, granted) = here.claim().await;
    drop(resident);
    here.house.look_once(&here.member);
    assert_eq!(here.house.users.len(), 1, "the user is here");
    drop(granted);
}

/// The lease ends, and the house is looked after before the children are stopped.
#[tokio::test]
async fn a_look_before_the_stop_keeps_the_place() {
    let shared = Shared::new().await;
    let node = Arc::new(Node::new());
    let session = node.session("a");
    let mut here = shared.start(&node, false).await;
    let (resident, granted) = here.claim().await;
    here.turn(&resident, &session, "one").await;
    drop((resident, granted));
    here.member.lose_lease();
    here.house.look_once(&here.member);
    timeout(SOON, here.stopped.recv()).await.expect("the children are ended");
}

/// The ownership ends while files of the user are put in their place, and the user comes back at once.
#[tokio::test]
async fn user_who_is_back_waits_for_its_files() {
    let shared = Shared::new().await;
    let (node, session) = large_user();
    let here = shared.start(&node, false).await;
    let (resident, granted) = here.claim().await;
    here.turn(&resident, &session, "one").await;
    let before = node.tree();
    drop((resident, granted));
    assert!(here.lets_go().await);
    // All is lost at first, which is reported once the files, none, are in their place.
    shared.bucket.set(|method, _, _| match *method {
        Method::GET => Fault::Status(404),
        _ => Fault::None,
    });
    let mut there = shared.start(&Arc::new(Node::new()), true).await;
    let resident = there.house.admit(&there.node.user, there.hash());
    let (member, hash) = (there.member.clone(), there.hash());
    let first =
        there.house.tasks.spawn(async move { member.claim(hash, Instant::now() + SOON).await.map(drop) });
    let Held { go_on, .. } = there.held().await;
    shared.bucket.set(|_, _, _| Fault::None);
    there.disown(&shared.ledger).await;
    let second = there.claim();
    tokio::pin!(second);
    assert!(timeout(Duration::from_millis(300), &mut second).await.is_err(), "it waits");
    assert!(resident.files.try_lock().is_err());
    go_on.send(()).unwrap();
    let (_resident, _granted) = timeout(SOON, second).await.unwrap();
    assert_eq!((there.node.tree(), there.set_aside()), (before, 0));
    assert!(resident.files.lock().await.is_some());
    first.await.unwrap().err();
}

#[tokio::test]
async fn restart_keeps_what_a_partial_first_object_left_out() {
    // After the first object, after more turns, and before the node could note that an object was there.
    for (turns, noted) in [(1, 1), (3, 3), (1, 0), (3, 2)] {
        let shared = Shared::new().await;
        let (node, session) = large_user();
        let here = shared.start(&node, false).await;
        let _places = here.hold_snapshots().await;
        let (resident, granted) = here.claim().await;
        for turn in 0..turns {
            here.turn(&resident, &session, &format!("turn {turn}")).await;
        }
        let before = node.tree();
        let mark = Mark::read(node.path(), here.hash()).await.unwrap();
        assert_eq!(mark, Mark::Newer { fence: granted.fence().0, seq: turns });
        let mark = Mark::Newer { fence: granted.fence().0, seq: noted };
        mark.write(node.path(), here.hash()).await.unwrap();
        drop(resident);
        let node = here.kill(&shared.ledger);
        drop(granted);
        let again = shared.start(&node, false).await;
        assert_eq!(unknown_users(node.path()).unwrap(), [again.hash()], "the next start goes on with it");
        let (resident, granted) = again.claim().await;
        assert_eq!((node.tree(), again.set_aside()), (before.clone(), 0));
        assert!(resident.files.lock().await.as_ref().unwrap().are_missing());
        again.house.commit(&resident, Extent::Snapshot).await.unwrap();
        assert_eq!(unknown_users(node.path()).unwrap(), []);
        let there = shared.start(&Arc::new(Node::new()), false).await;
        drop((resident, granted));
        assert!(again.lets_go().await);
        let (_resident, _granted) = there.claim().await;
        assert_eq!(there.node.tree(), before, "{turns} {noted}");
        assert_eq!(there.files.losses.load(Ordering::SeqCst), 0);
    }
}

/// A partial copy is of no use to a node whose user another one has had since.
#[tokio::test]
async fn rest_of_a_user_who_went_on_elsewhere_is_set_aside() {
    let shared = Shared::new().await;
    let (node, session) = large_user();
    let here = shared.start(&node, false).await;
    let _places = here.hold_snapshots().await;
    let (resident, granted) = here.claim().await;
    here.turn(&resident, &session, "one").await;
    drop(resident);
    let node = here.kill(&shared.ledger);
    drop(granted);
    let there = shared.start(&Arc::new(Node::new()), false).await;
    let (resident, granted) = there.claim().await;
    there.turn(&resident, &there.node.known("a"), "two").await;
    let after = there.node.tree();
    drop((resident, granted));
    assert!(there.lets_go().await);
    let again = shared.start(&node, false).await;
    let (_resident, _granted) = again.claim().await;
    assert_eq!((node.tree(), again.set_aside()), (after, 1));
}

/// Changes that came before give way: they would be tried for two minutes.
#[tokio::test]
async fn changes_of_a_user_who_leaves_hold_up_nothing() {
    let shared = Shared::new().await;
    let (node, session) = large_user();
    let here = shared.start(&node, false).await;
    let _places = here.hold_snapshots().await;
    let (resident, granted) = here.claim().await;
    here.turn(&resident, &session, "one").await;
    // The next one, as the store does not take it, and others that wait for it.
    let is_away = Arc::new(AtomicBool::new(true));
    let (away, asked) = (is_away.clone(), Arc::new(Notify::new()));
    let tell = asked.clone();
    shared.bucket.set(move |method, _, _| {
        if *method == Method::PUT && away.load(Ordering::SeqCst) {
            tell.notify_one();
            return Fault::Status(403);
        }
        Fault::None
    });
    std::fs::write(session.work.join("two"), "two").unwrap();
    let changes: Vec<_> = (0..5)
        .map(|_| {
            resident.touch(&session.hash);
            let (house, resident) = (here.house.clone(), resident.clone());
            here.house.tasks.spawn(async move { house.commit(&resident, Extent::Turn).await })
        })
        .collect();
    timeout(SOON, asked.notified()).await.unwrap();
    let stay = resident.stay();
    drop((resident, granted));
    let before = node.tree();
    here.member.evict(here.hash());
    timeout(SOON, stay.cancelled()).await.unwrap();
    for change in changes {
        change.await.unwrap().unwrap_err();
    }
    is_away.store(false, Ordering::SeqCst);
    assert!(here.lets_go().await);
    let there = shared.start(&Arc::new(Node::new()), false).await;
    let (_resident, _granted) = there.claim().await;
    assert_eq!(there.node.tree(), before);
}

/// What was changed before the user was lost is not in the files with which it comes back.
#[tokio::test]
async fn change_of_a_former_stay_is_not_called_stored() {
    let shared = Shared::new().await;
    let node = Arc::new(Node::new());
    let session = node.session("a");
    let mut here = shared.start(&node, false).await;
    let (resident, granted) = here.claim().await;
    here.turn(&resident, &session, "one").await;
    let stay = resident.stay();
    here.disown(&shared.ledger).await;
    drop((resident, granted));
    let (resident, granted) = here.claim().await;
    resident.changes_wait.store(true, Ordering::SeqCst);
    let late = here.house.commit_during(&resident, Extent::Changes, stay).await;
    assert!(matches!(late, Err(TurnError::Moved)), "{late:?}");
    assert!(!resident.changes_wait.load(Ordering::SeqCst), "later ones are stored");
    here.house.commit(&resident, Extent::Changes).await.unwrap();
    drop((resident, granted));
}

#[tokio::test]
async fn waiting_changes_of_a_user_are_bounded() {
    let shared = Shared::new().await;
    let (node, session) = large_user();
    let here = shared.start(&node, false).await;
    let (resident, granted) = here.claim().await;
    let locked = resident.files.lock().await;
    let taken = resident.commits.clone().acquire_many_owned(MAX_COMMITS as u32).await.unwrap();
    resident.touch(&session.hash);
    here.house.commit(&resident, Extent::Turn).await.unwrap_err();
    drop((taken, locked));
    here.house.commit(&resident, Extent::Turn).await.unwrap();
    drop((resident, granted));
}
