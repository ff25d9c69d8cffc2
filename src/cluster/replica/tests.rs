//! All of it together, over stores that fail.

use crate::cluster::replica::take_over::{TakeOverError, Taken};
use crate::cluster::replica::write::ObjectInfo;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::Method;
use tokio_util::sync::CancellationToken;

use super::chain::Since;
use super::collect::Scope;
use super::delta::{Damage, Kind};
use super::fetch::LossCause;
use super::key::ObjectId;
use super::limits::{CHAIN_BYTES, CHUNK_BYTES, LISTED_PER_USER, PART_BYTES, WORK_BYTES_WHOLE};
use super::store::Listed;
use super::store::tests::{Bucket as _, Fault, S3, directory};
use super::testing::Node;
use super::*;
use crate::cluster::ledger::{Fence, Span};

/// The owner of a user: what a node keeps of one, without a ledger.
struct Owner {
    node: Node,
    replica: Replica,
    state: UserState,
    fence: u64,
    head: HeadView,
}

impl Owner {
    fn new(node: Node, store: StoreConfig, fence: u64) -> Self {
        let config = ReplicaConfig { store, credentials: false, workspace_bytes: None };
        let replica = Replica::open(&config, node.path(), TaskTracker::new()).unwrap();
        let head = HeadView { fence, seq: 0, chain: Chain::default() };
        Self { node, replica, state: UserState::default(), fence, head }
    }

    /// The object of a turn, and the head that names it.
    async fn turn(&mut self, scope: Scope) -> Result<ObjectInfo, ReplicateError> {
        let seq = self.head.seq + 1;
        let info = self.replica.replicate(&self.node.user, self.fence, seq, scope, &mut self.state).await?;
        assert_eq!(info.id, ObjectId { fence: self.fence, seq });
        self.head = HeadView { fence: self.fence, seq, chain: self.head.chain.with(info.id, info.kind) };
        Ok(info)
    }

    fn touch(&self, conversation: &str, content: &str) -> Scope {
        let session = if self.node.places().session(&self.node.hash(conversation)).is_some() {
            self.node.known(conversation)
        } else {
            self.node.session(conversation)
        };
        let journal = fs::OpenOptions::new().append(true).open(session.record.join("journal"));
        std::io::Write::write_all(&mut journal.unwrap(), content.as_bytes()).unwrap();
        fs::write(session.work.join(format!("file {content}")), content).unwrap();
        Scope::Turn(vec![session.hash])
    }

    async fn said(&mut self, content: &str) -> ObjectInfo {
        let scope = self.touch("a", content);
        self.turn(scope).await.unwrap()
    }

    async fn take_over(&mut self, head: &HeadView) -> Result<Taken, TakeOverError> {
        let mut taken = self
            .replica
            .take_over(&self.node.user, self.fence, &head.chain, &CancellationToken::new())
            .await?;
        self.state = std::mem::take(&mut taken.state);
        self.head = head.clone();
        Ok(taken)
    }

    fn user(&self) -> UserHash {
        self.node.places().hash()
    }

    async fn objects(&self) -> Vec<Listed> {
        let (mut listed, is_all) = self.replica.store.list(self.user()).await.unwrap();
        assert!(is_all);
        listed.sort_unstable_by_key(|it| (it.key.id.seq, it.key.id.fence, it.key.part));
        listed
    }

    async fn names(&self) -> Vec<(u64, u64, bool)> {
        self.objects()
            .await
            .iter()
            .map(|it| (it.key.id.fence, it.key.id.seq, it.key.part.is_some()))
            .collect()
    }
}

/// Two nodes over one directory.
fn two(store: &Path) -> (Owner, Owner) {
    let owner = |fence| Owner::new(Node::new(), directory(&store.join("store")), fence);
    (owner(1), owner(5))
}

#[tokio::test]
async fn user_goes_from_node_to_node_and_back() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, mut two) = two(store.path());
    one.node.others();
    let first = one.said("one").await;
    assert_eq!((first.kind, first.is_current, first.parts), (Kind::Snapshot, true, 0));
    let second = one.said("two").await;
    assert_eq!(second.kind, Kind::Delta);
    assert!(second.bytes < first.bytes && second.summary.files == 2, "{second:?}");
    let taken = two.take_over(&one.head).await.unwrap();
    assert_eq!(two.node.tree(), one.node.tree());
    assert_eq!(taken.loss, None);
    assert_eq!(taken.since, Since { deltas: 1, bytes: second.bytes, snapshot: first.bytes });
    assert_eq!(two.said("three").await.kind, Kind::Delta);
    assert_eq!(two.names().await, [(1, 1, false), (1, 2, false), (5, 3, false)]);
    one.fence = 9;
    one.take_over(&two.head).await.unwrap();
    assert_eq!(two.node.tree(), one.node.tree());
    one.node.delete("a");
    one.turn(Scope::Turn(Vec::new())).await.unwrap();
    two.take_over(&one.head).await.unwrap();
    assert_eq!(two.node.places().sessions().unwrap().len(), 0);
    assert_eq!(two.node.tree(), one.node.tree());
}

#[tokio::test]
async fn user_is_taken_out_by_the_short_digest() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, two) = two(store.path());
    one.node.others();
    one.said("one").await;
    one.said("two").await;
    let taken = two.replica.take_out(one.user(), &one.head.chain).await.unwrap();
    assert_eq!((&taken.user, taken.sessions), (&Some(one.node.user.clone()), 1));
    assert!(taken.is_whole && taken.loss.is_none(), "{taken:?}");
    assert_eq!(two.node.tree(), one.node.tree());
    // Without a conversation nothing names the user: what the whole digest names is left out.
    one.node.delete("a");
    one.turn(Scope::Turn(Vec::new())).await.unwrap();
    let three = Owner::new(Node::new(), directory(&store.path().join("store")), 7);
    let taken = three.replica.take_out(one.user(), &one.head.chain).await.unwrap();
    assert_eq!((&taken.user, taken.sessions, taken.is_whole), (&None, 0, false));
    let places = three.node.places();
    assert!(places.usage().exists() && !places.responses().exists() && !places.conversations().exists());
    // And nothing under a digest that is nobody's.
    assert_eq!(fs::read_dir(places.responses().parent().unwrap()).map_or(0, Iterator::count), 0);
}

#[tokio::test]
async fn files_that_no_store_has_are_set_aside() {
    let store = tempfile::tempdir().unwrap();
    let (one, _) = two(store.path());
    let aside = async |number| one.replica.set_aside(&one.node.user, number).await.unwrap();
    one.node.others();
    assert_eq!(aside(7).await, None, "no conversation has begun");
    let session = one.node.session("a");
    let before = one.node.tree();
    let place = aside(7).await.unwrap();
    assert_eq!(one.node.tree().len(), 0);
    assert!(before.len() > 5 && place.starts_with(one.node.path().join("replaced")), "{before:?}");
    assert!(place.join("records").join(session.hash.as_str()).join("journal").is_file());
    assert_eq!(fs::read_dir(place.join("sessions")).unwrap().count(), 1);
    assert!(place.join("responses").join(one.node.places().digest()).join("resp_1").is_file());
    assert_eq!(aside(7).await, None, "they are gone");
    // A try before has ended when all conversations were moved.
    one.node.others();
    let session = one.node.session("b");
    for moved in [session.record.as_path(), session.work.parent().unwrap()] {
        fs::remove_dir_all(moved).unwrap();
    }
    let rest = aside(8).await.unwrap();
    assert!(rest.join("usage").is_dir() && rest.join("list").is_dir(), "{rest:?}");
    assert_eq!(one.node.tree().len(), 0);
}

#[tokio::test]
async fn large_user_goes_in_parts() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, mut two) = two(store.path());
    let session = one.node.session("a");
    let large: Vec<u8> = (0..3 * PART_BYTES as u64 + 1234).map(|it| (it / 1000) as u8).collect();
    fs::write(session.work.join("large"), &large).unwrap();
    fs::write(session.record.join("journal"), &large[..PART_BYTES + 1]).unwrap();
    let info = one.said("one").await;
    assert_eq!((info.kind, info.parts), (Kind::Snapshot, 4));
    assert!(info.bytes > large.len() as u64 && info.summary.bytes >= large.len() as u64);
    two.take_over(&one.head).await.unwrap();
    assert_eq!(two.node.tree(), one.node.tree());
    // A part is lost.
    let part = one.objects().await[2].key;
    one.replica.store.delete(&[part]).await.unwrap();
    let loss = two.take_over(&one.head).await.unwrap().loss.unwrap();
    assert!(loss.from == 1 && !loss.is_temporary(), "{loss}");
}

#[tokio::test]
async fn user_whom_no_node_takes_over_is_refused() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, _) = two(store.path());
    let large = one.node.session("a").work.join("large");
    fs::File::create(&large).unwrap().set_len(CHAIN_BYTES + 1).unwrap();
    let scope = one.touch("a", "one");
    let error = one.turn(scope.clone()).await.unwrap_err();
    assert!(matches!(error, ReplicateError::TooMuch), "{error}");
    assert_eq!(one.names().await, [], "it is known before anything is sent");
    // Of each session a part is left out.
    fs::File::options().write(true).open(&large).unwrap().set_len(WORK_BYTES_WHOLE + 1).unwrap();
    assert_eq!(one.turn(scope).await.unwrap().summary.left_out, 1);
    let more = one.node.known("a").work.join("more");
    fs::File::create(&more).unwrap().set_len(CHAIN_BYTES).unwrap();
    let error = one.turn(Scope::Whole).await.unwrap_err();
    assert!(matches!(error, ReplicateError::TooMuch), "{error}");
}

#[tokio::test]
async fn snapshots_hold_up_no_turn() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, _) = two(store.path());
    let all = one.replica.wholes.clone().acquire_many_owned(WHOLES_AT_ONCE as u32).await.unwrap();
    one.touch("a", "one");
    assert_eq!(one.turn(Scope::First).await.unwrap().kind, Kind::Snapshot);
    assert_eq!(one.said("two").await.kind, Kind::Delta);
    let snapshot = tokio::time::timeout(std::time::Duration::from_millis(50), one.turn(Scope::Snapshot));
    assert!(snapshot.await.is_err(), "it does not wait");
    drop(all);
    assert_eq!(one.turn(Scope::Snapshot).await.unwrap().kind, Kind::Snapshot);
    // Nor do they wait for turns.
    let _turns = one.replica.turns.clone().acquire_many_owned(TURNS_AT_ONCE as u32).await.unwrap();
    assert_eq!(one.turn(Scope::Snapshot).await.unwrap().kind, Kind::Snapshot);
}

#[tokio::test]
async fn chain_without_room_begins_again() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, mut two) = two(store.path());
    one.node.session("a");
    let mut kinds = Vec::new();
    for number in 0..7_u8 {
        let large = one.node.known("a").work.join("large");
        fs::write(large, vec![number; CHAIN_BYTES as usize / 3]).unwrap();
        kinds.push(one.turn(Scope::Whole).await.unwrap().kind);
        // Whatever was written is taken over, and counted there as well.
        let head = one.head.clone();
        two.take_over(&head).await.unwrap();
        assert_eq!(two.node.tree(), one.node.tree());
        two.fence = one.fence + 1;
        std::mem::swap(&mut one, &mut two);
    }
    use Kind::{Delta as D, Snapshot as S};
    assert_eq!(kinds, [S, D, S, D, S, D, S]);
}

/// Replaces an object by one that another call has written, or damages it.
fn damage(store: &Path, seq: u64, change: impl FnOnce(&mut Vec<u8>)) {
    let user = Node::new().places().hash();
    let key = Key { user, id: ObjectId { fence: 1, seq }, part: None };
    let file = store.join("store").join(key.to_string());
    let mut content = fs::read(&file).unwrap();
    change(&mut content);
    fs::write(file, content).unwrap();
}

#[tokio::test]
async fn lost_object_is_reported_with_its_number() {
    for (seq, is_missing) in [(3, true), (3, false), (2, true), (4, false)] {
        let store = tempfile::tempdir().unwrap();
        let (mut one, mut two) = two(store.path());
        let mut trees = Vec::new();
        for content in ["one", "two", "three", "four"] {
            one.said(content).await;
            trees.push(one.node.tree());
        }
        if is_missing {
            let key = Key { user: one.user(), id: ObjectId { fence: 1, seq }, part: None };
            one.replica.store.delete(&[key]).await.unwrap();
        } else {
            damage(store.path(), seq, |content| content[100] ^= 1);
        }
        let taken = two.take_over(&one.head).await.unwrap();
        let loss = taken.loss.unwrap();
        let expected = if is_missing {
            LossCause::Store(StoreError::Missing)
        } else {
            LossCause::Damaged(Damage::Checksum)
        };
        assert_eq!((loss.from, loss.cause), (seq, expected));
        assert_eq!(two.node.tree(), trees[seq as usize - 2]);
        // The chain begins again, whatever lies there.
        assert_eq!(two.said("five").await.kind, Kind::Snapshot);
        assert_eq!(two.head.chain.0.len(), 1);
        one.take_over(&two.head.clone()).await.unwrap();
        assert_eq!(one.node.tree(), two.node.tree());
    }
}

/// Nothing can be read of a chain whose first object is lost: the user begins again, here and elsewhere.
#[tokio::test]
async fn user_without_a_snapshot_begins_again() {
    let place = |seq| Key { user: Node::new().places().hash(), id: ObjectId { fence: 1, seq }, part: None };
    for case in ["damaged", "missing", "another", "no snapshot", "no chain"] {
        let store = tempfile::tempdir().unwrap();
        let (mut one, mut two) = two(store.path());
        one.node.others();
        one.said("one").await;
        one.said("two").await;
        two.said("own").await;
        let own = two.node.known("a").record.join("journal");
        let own = fs::read_to_string(own).unwrap();
        let root = store.path().join("store");
        let mut head = one.head.clone();
        match case {
            "damaged" => damage(store.path(), 1, |content| content.truncate(99)),
            "missing" => one.replica.store.delete(&[place(1)]).await.unwrap(),
            "another" => drop(fs::copy(root.join(place(2).to_string()), root.join(place(1).to_string()))),
            "no snapshot" => head.chain = Chain(vec![Span { fence: Fence(1), from: 2, to: 2 }]),
            _ => head.chain = Chain::default(),
        }
        let taken = two.take_over(&head).await.unwrap();
        let loss = taken.loss.unwrap();
        assert!(!loss.is_temporary() && loss.from <= 2, "{case}: {loss}");
        assert_eq!(two.node.tree().len(), 0, "{case}");
        // What this node had may be the last copy.
        let aside = two.node.path().join("replaced").join(format!("{}-5", two.user())).join("records");
        let kept = fs::read_to_string(aside.join(two.node.hash("a").as_str()).join("journal")).unwrap();
        assert_eq!(kept, own, "{case}");
        // The next object begins a chain that any node takes over.
        assert_eq!(two.said("three").await.kind, Kind::Snapshot);
        assert_eq!(one.take_over(&two.head.clone()).await.unwrap().loss, None);
        assert_eq!(one.node.tree(), two.node.tree());
        // As for an export, which names nobody then.
        let out = Owner::new(Node::new(), directory(&root), 7);
        let taken = out.replica.take_out(out.user(), &head.chain).await.unwrap();
        assert!(taken.user.is_none() && taken.sessions == 0 && taken.loss.is_some(), "{case}: {taken:?}");
    }
}

#[tokio::test]
async fn later_format_is_no_loss() {
    use sha2::Digest as _;
    let store = tempfile::tempdir().unwrap();
    let (mut one, mut two) = two(store.path());
    one.said("one").await;
    one.said("two").await;
    damage(store.path(), 2, |content| {
        content[4] = 2;
        let end = content.len() - 32;
        let digest = sha2::Sha256::digest(&content[..end]);
        content[end..].copy_from_slice(&digest);
    });
    let error = two.take_over(&one.head).await.unwrap_err();
    assert!(matches!(&error, TakeOverError::Lost(loss) if loss.is_temporary() && loss.from == 2), "{error}");
}

#[tokio::test]
async fn cleaning_leaves_the_chain_alone() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, mut two) = two(store.path());
    for content in ["one", "two", "three"] {
        one.said(content).await;
    }
    let stale = one.head.clone();
    // An object that no head names: its owner was gone before.
    two.take_over(&stale).await.unwrap();
    one.said("never named").await;
    one.head = stale.clone();
    two.said("four").await;
    assert_eq!(two.replica.clean(two.user(), &stale).await.unwrap(), 0, "they may be later ones");
    assert_eq!(two.replica.clean(two.user(), &two.head).await.unwrap(), 1);
    assert_eq!(two.names().await, [(1, 1, false), (1, 2, false), (1, 3, false), (5, 4, false)]);
    two.turn(Scope::Snapshot).await.unwrap();
    assert_eq!(two.replica.clean(two.user(), &stale).await.unwrap(), 0);
    assert_eq!(two.replica.clean(two.user(), &two.head).await.unwrap(), 4);
    assert_eq!(two.names().await, [(5, 5, false)]);
    one.take_over(&two.head).await.unwrap();
    assert_eq!(one.node.tree(), two.node.tree());
}

#[tokio::test]
async fn deleted_user_has_one_empty_object() {
    let server = S3::start().await;
    let mut one = Owner::new(Node::new(), server.config(), 1);
    let mut bob = Owner::new(Node::of("bob"), server.config(), 7);
    bob.said("hello").await;
    // More than one list has, and one request deletes.
    for number in 0..LISTED_PER_USER + DELETED_AT_ONCE {
        one.said(&number.to_string()).await;
    }
    one.node.delete("a");
    one.turn(Scope::Snapshot).await.unwrap();
    let count = |server: &S3, owner: &Owner| {
        let user = owner.user().to_string();
        server.objects().keys().filter(|name| name.contains(&user)).count()
    };
    // The store goes away in the middle: the deletion has failed, and a repetition completes it.
    server.set(
        |method, _, number| {
            if *method == Method::POST && number > 1 { Fault::Status(503) } else { Fault::None }
        },
    );
    one.replica.clean(one.user(), &one.head).await.unwrap_err();
    assert!(count(&server, &one) > 1);
    server.set(|_, _, _| Fault::None);
    one.replica.clean(one.user(), &one.head).await.unwrap();
    assert_eq!((count(&server, &one), count(&server, &bob)), (1, 1));
    let mut two = Owner::new(Node::new(), server.config(), 5);
    two.take_over(&one.head).await.unwrap();
    assert_eq!(two.node.tree().len(), 0);
}

#[tokio::test]
async fn object_without_an_answer_is_found_again() {
    let server = S3::start().await;
    let mut one = Owner::new(Node::new(), server.config(), 1);
    one.said("one").await;
    // It is stored each time, and no answer comes; then the store is gone.
    server.set(|method, _, _| if *method == Method::PUT { Fault::LostAnswer } else { Fault::Status(503) });
    let scope = one.touch("a", "two");
    let error = one.turn(scope.clone()).await.unwrap_err();
    assert!(matches!(error, ReplicateError::Store(StoreError::Unavailable(_))), "{error}");
    server.set(|_, _, _| Fault::None);
    // More has changed meanwhile: the stored object is the one with this number.
    one.touch("a", "three");
    let info = one.turn(scope.clone()).await.unwrap();
    assert_eq!((info.is_current, info.kind), (false, Kind::Delta));
    let info = one.turn(scope.clone()).await.unwrap();
    assert!(info.is_current && info.summary.files > 0);
    let mut two = Owner::new(Node::new(), server.config(), 5);
    two.take_over(&one.head).await.unwrap();
    assert_eq!(two.node.tree(), one.node.tree());

    // The same of a call that was dropped: what it had sent is not known.
    server.set(|method, _, _| if *method == Method::PUT { Fault::LostAnswer } else { Fault::Status(503) });
    let scope = one.touch("a", "four");
    one.turn(scope.clone()).await.unwrap_err();
    one.state = UserState::default();
    server.set(|_, _, _| Fault::None);
    let info = one.turn(scope.clone()).await.unwrap();
    assert_eq!((info.is_current, info.kind), (false, Kind::Delta));
    assert_eq!(one.turn(scope).await.unwrap().kind, Kind::Snapshot);
    two.take_over(&one.head).await.unwrap();
    assert_eq!(two.node.tree(), one.node.tree());
}

#[tokio::test]
async fn foreign_object_is_not_replaced() {
    let server = S3::start().await;
    let mut one = Owner::new(Node::new(), server.config(), 1);
    one.said("one").await;
    let key = Key { user: one.user(), id: ObjectId { fence: 1, seq: 2 }, part: None };
    server.objects().insert(format!("pre/fix/{key}"), "something else".into());
    let scope = one.touch("a", "two");
    for _ in 0..2 {
        let error = one.turn(scope.clone()).await.unwrap_err();
        assert!(matches!(error, ReplicateError::Occupied), "{error}");
    }
    assert_eq!(server.objects().get(&format!("pre/fix/{key}")).unwrap(), "something else");
}

/// The store fails at each of its requests in turn, for good and for once.
#[tokio::test]
async fn store_that_fails_in_the_middle_loses_nothing() {
    let server = S3::start().await;
    let large = vec![7; PART_BYTES + 2 * CHUNK_BYTES];
    for (at, fault, is_for_good) in [
        (0, Fault::Status(503), false),
        (0, Fault::Status(503), true),
        (1, Fault::Status(500), true),
        (0, Fault::LostAnswer, false),
        (1, Fault::LostAnswer, false),
        (1, Fault::LostAnswer, true),
        (1, Fault::Status(507), true),
    ] {
        server.objects().clear();
        server.set(|_, _, _| Fault::None);
        let mut one = Owner::new(Node::new(), server.config(), 1);
        one.said("one").await;
        let scope = one.touch("a", "two");
        fs::write(one.node.known("a").work.join("large"), &large).unwrap();
        let is_faulty = move |number| number == at || (is_for_good && number > at);
        server.set(move |_, _, number| if is_faulty(number) { fault } else { Fault::None });
        let first = one.turn(scope.clone()).await;
        assert_eq!(first.is_err(), is_for_good, "{at} {fault:?}: {first:?}");
        server.set(|_, _, _| Fault::None);
        if first.is_err() {
            one.turn(scope.clone()).await.unwrap();
        }
        one.turn(scope).await.unwrap();
        let mut two = Owner::new(Node::new(), server.config(), 5);
        two.take_over(&one.head).await.unwrap();
        assert_eq!(two.node.tree(), one.node.tree(), "{at} {fault:?}");
    }
}

#[tokio::test]
async fn store_that_fails_while_reading_loses_nothing() {
    let server = S3::start().await;
    let mut one = Owner::new(Node::new(), server.config(), 1);
    for content in ["one", "two", "three"] {
        one.said(content).await;
    }
    let mut two = Owner::new(Node::new(), server.config(), 5);
    two.node.session("own");
    let before = two.node.all();
    for fault in [Fault::Status(503), Fault::Status(403), Fault::HalfAnswer] {
        server.set(move |_, key, _| if key.ends_with('3') { fault } else { Fault::None });
        let error = two.take_over(&one.head).await.unwrap_err();
        let is_temporary =
            matches!(&error, TakeOverError::Lost(loss) if loss.is_temporary() && loss.from == 3);
        assert!(is_temporary, "{fault:?}: {error}");
        assert_eq!(two.node.all(), before);
    }
    let has_failed = Arc::new(AtomicBool::new(false));
    server.set(
        move |_, _, _| if has_failed.swap(true, Ordering::SeqCst) { Fault::None } else { Fault::HalfAnswer },
    );
    two.take_over(&one.head).await.unwrap();
    assert_eq!(two.node.tree(), one.node.tree());
}

#[tokio::test]
async fn slow_store_is_waited_for() {
    let server = S3::start().await;
    let store = StoreConfig {
        try_for: Duration::from_millis(150),
        give_up_after: Duration::from_millis(400),
        ..server.config()
    };
    let mut one = Owner::new(Node::new(), store, 1);
    one.said("one").await;
    server.set(|_, _, _| Fault::Silent);
    let scope = one.touch("a", "two");
    let began = tokio::time::Instant::now();
    assert!(one.turn(scope.clone()).await.is_err());
    assert!(began.elapsed() < pilotlight_test_support::SOON);
    server.set(|_, _, number| if number == 0 { Fault::Silent } else { Fault::None });
    assert!(one.turn(scope).await.unwrap().is_current);
}

#[tokio::test]
async fn full_disk_leaves_what_a_node_had() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let store = tempfile::tempdir().unwrap();
    let (mut one, mut two) = two(store.path());
    fs::write(one.node.session("a").work.join("large"), vec![1; 1 << 20]).unwrap();
    one.said("one").await;
    let mounted = mount("none", two.node.path(), "tmpfs", MountFlags::empty(), Some(c"size=512k,mode=0700"));
    if mounted.is_err() {
        return pilotlight_test_support::installed::left_out("no file system can be mounted here");
    }
    two.node.session("own");
    let before = two.node.all();
    let error = two.take_over(&one.head).await.unwrap_err();
    let after = two.node.all();
    unmount(two.node.path(), UnmountFlags::DETACH).unwrap();
    assert!(
        matches!(&error, TakeOverError::Io(error) if error.kind() == std::io::ErrorKind::StorageFull),
        "{error}"
    );
    assert_eq!(after, before);
}

#[tokio::test]
async fn objects_of_a_directory_are_private() {
    let store = tempfile::tempdir().unwrap();
    let (mut one, _) = two(store.path());
    one.said("one").await;
    let mode = store.path().join("store").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0);
}
