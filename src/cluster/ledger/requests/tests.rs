use super::*;
use crate::cluster::ledger::memory::Store;

const USER: &str = "00112233445566778899aabbccddeeff";

struct Bench {
    store: Store,
    keys: Keys,
    user: UserHash,
}

impl Bench {
    fn new() -> Self {
        Self { store: Store::default(), keys: Keys::new("/p/"), user: USER.parse().unwrap() }
    }

    fn claim(&mut self, node: &str, lease: LeaseId) -> Claim {
        let node: NodeId = node.parse().unwrap();
        let txn = claim(&self.keys, self.user, &node, lease).unwrap();
        Claim::of(self.store.txn(&txn).unwrap(), &node, lease).unwrap()
    }

    fn won(&mut self, node: &str, lease: LeaseId) -> Won {
        match self.claim(node, lease) {
            Claim::Won(won) => won,
            other => panic!("not won: {other:?}"),
        }
    }

    fn commit(&mut self, fence: Fence, expected: Revision, head: &Head) -> Commit {
        let txn = commit(&self.keys, self.user, fence, expected, head).unwrap();
        Commit::of(self.store.txn(&txn).unwrap(), head).unwrap()
    }

    fn release(&mut self, fence: Fence) {
        let txn = release(&self.keys, self.user, fence);
        released(self.store.txn(&txn).unwrap(), fence).unwrap();
    }
}

#[test]
fn second_claim_is_refused_own_one_recognised() {
    let mut bench = Bench::new();
    let (a, b) = (bench.store.grant(2), bench.store.grant(2));
    let won = bench.won("a", a);
    assert_eq!(won.stored, Stored::default());
    assert_eq!(bench.claim("b", b), Claim::Owned("a".parse().unwrap(), won.fence));
    // As after an answer that was lost.
    assert_eq!(bench.won("a", a), won);
    // A key of an earlier lease is not an own one.
    let later = bench.store.grant(2);
    assert_eq!(bench.claim("a", later), Claim::Owned("a".parse().unwrap(), won.fence));
    bench.store.revoke(a);
    assert!(bench.won("b", b).fence > won.fence);
}

#[test]
fn commit_needs_the_fence_and_the_head_before() {
    let mut bench = Bench::new();
    let (a, b) = (bench.store.grant(2), bench.store.grant(2));
    let won = bench.won("a", a);
    let first = Head::snapshot(None, won.fence, 1);
    let Commit::Done(revision) = bench.commit(won.fence, 0, &first) else { panic!() };
    // Sent again after a lost answer, also later.
    assert_eq!(bench.commit(won.fence, 0, &first), Commit::Done(revision));
    let second = first.delta(won.fence, 1).unwrap();
    let stored = Stored { head: Some(first.clone()), revision };
    assert_eq!(bench.commit(won.fence, 0, &second), Commit::Conflict(stored));
    bench.store.revoke(a);
    assert_eq!(bench.commit(won.fence, revision, &second), Commit::Fenced);
    assert_eq!(bench.commit(won.fence, 0, &first), Commit::DoneThenFenced);
    let next = bench.won("b", b);
    assert_eq!(next.stored.head.as_ref(), Some(&first));
    assert_eq!(bench.commit(won.fence, revision, &second), Commit::Fenced);
    let third = first.delta(next.fence, 1).unwrap();
    let Commit::Done(_) = bench.commit(next.fence, next.stored.revision, &third) else { panic!() };
    // Still part of the chain, under the next owner.
    assert_eq!(bench.commit(won.fence, 0, &first), Commit::DoneThenFenced);
    assert_eq!(bench.commit(won.fence, revision, &second), Commit::Fenced);
}

#[test]
fn release_ends_one_ownership_only() {
    let mut bench = Bench::new();
    let (a, b) = (bench.store.grant(2), bench.store.grant(2));
    let won = bench.won("a", a);
    bench.release(won.fence);
    assert_eq!(bench.store.get(&bench.keys.owner(bench.user)), None);
    // Sent again after a lost answer.
    bench.release(won.fence);
    let next = bench.won("b", b);
    // A late release of the earlier owner does not touch the later one.
    bench.release(won.fence);
    assert_eq!(bench.claim("a", a), Claim::Owned("b".parse().unwrap(), next.fence));
    // An answer that the release was refused, and the ownership there, makes no sense.
    let kv = bench.store.get(&bench.keys.owner(bench.user)).cloned();
    let reply = TxnReply { succeeded: false, revision: 9, replies: vec![Reply::Got(kv)] };
    assert!(released(reply, next.fence).is_err());
}

#[test]
fn node_name_belongs_to_one_lease() {
    let mut bench = Bench::new();
    let (a, b) = (bench.store.grant(2), bench.store.grant(2));
    let id: NodeId = "a".parse().unwrap();
    let info = NodeInfo::new("https://a:1".into(), 1, "1".into());
    let try_join = |bench: &mut Bench, lease| {
        let txn = join(&bench.keys, &id, &info, lease).unwrap();
        Join::of(bench.store.txn(&txn).unwrap(), lease).unwrap()
    };
    assert_eq!(try_join(&mut bench, a), Join::Done);
    assert_eq!(try_join(&mut bench, a), Join::Done);
    assert_eq!(try_join(&mut bench, b), Join::Taken);
    let update = |bench: &mut Bench, lease| {
        let txn = node_update(&bench.keys, &id, &info, lease).unwrap();
        NodeUpdate::of(&bench.store.txn(&txn).unwrap())
    };
    assert_eq!(update(&mut bench, a), NodeUpdate::Done);
    assert_eq!(update(&mut bench, b), NodeUpdate::Gone);
    let kv = bench.store.get(&bench.keys.node(&id)).unwrap().clone();
    assert_eq!(update(&mut bench, a), NodeUpdate::Done);
    assert_eq!(Forget::of(&bench.store.txn(&forget(&kv)).unwrap()), Forget::Changed);
    let kv = bench.store.get(&bench.keys.node(&id)).unwrap().clone();
    assert_eq!(Forget::of(&bench.store.txn(&forget(&kv)).unwrap()), Forget::Done);
    assert_eq!(try_join(&mut bench, b), Join::Done);
}

#[test]
fn head_of_a_newer_version_is_only_released() {
    let mut bench = Bench::new();
    let a = bench.store.grant(2);
    let key = bench.keys.head(bench.user);
    let value = br#"{"format":7}"#.to_vec();
    let put = Operation::Put { key, value, lease: LeaseId(0) };
    bench.store.txn(&Txn { success: vec![put], ..Txn::default() }).unwrap();
    let Claim::Unreadable(fence, RecordError::Newer(7)) = bench.claim("a", a) else { panic!() };
    bench.release(fence);
}

#[test]
fn reply_of_another_form_is_an_error() {
    let node = "a".parse().unwrap();
    for replies in
        [vec![], vec![Reply::Put], vec![Reply::Got(None), Reply::Got(None)], vec![Reply::Deleted; 3]]
    {
        for succeeded in [true, false] {
            let reply = TxnReply { succeeded, revision: 1, replies: replies.clone() };
            assert!(Claim::of(reply.clone(), &node, LeaseId(1)).is_err());
            if !succeeded && replies.len() != 2 {
                assert!(Commit::of(reply.clone(), &Head::snapshot(None, Fence(1), 0)).is_err());
                assert!(released(reply.clone(), Fence(1)).is_err());
                assert!(Join::of(reply, LeaseId(1)).is_err());
            }
        }
    }
}
