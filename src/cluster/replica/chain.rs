//! The objects that make up a user's data: from the last snapshot on, in the order of their numbers. Pure.

use super::delta::Kind;
use super::key::{Key, ObjectId};
#[cfg(test)]
use crate::cluster::ledger::Fence;
use crate::cluster::ledger::{MAX_CHAIN, Span};

/// Objects of one chain. A snapshot is due long before.
const MAX_OBJECTS: u64 = 10_000;

/// The chain of a user, as the head names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chain(pub(crate) Vec<Span>);

impl Chain {
    /// Its objects in order. `None`: numbers are missing or doubled, or they are too many.
    pub(crate) fn objects(&self) -> Option<Vec<ObjectId>> {
        let (mut found, mut next) = (Vec::new(), self.0.first().map_or(0, |range| range.from));
        if self.0.len() > MAX_CHAIN {
            return None;
        }
        for range in &self.0 {
            let length = range.to.checked_sub(range.from)?.checked_add(1)?;
            if range.from != next || found.len() as u64 + length > MAX_OBJECTS {
                return None;
            }
            found.extend((range.from..=range.to).map(|seq| ObjectId { fence: range.fence.0, seq }));
            next = range.to.checked_add(1)?;
        }
        Some(found)
    }

    /// The chain with one more object: a snapshot replaces all that was before.
    #[cfg(test)]
    pub(crate) fn with(&self, id: ObjectId, kind: Kind) -> Self {
        let ObjectId { fence, seq } = id;
        let mut ranges = if kind == Kind::Snapshot { Vec::new() } else { self.0.clone() };
        match ranges.last_mut() {
            Some(last) if last.fence.0 == fence && last.to.checked_add(1) == Some(seq) => last.to = seq,
            _ => ranges.push(Span { fence: Fence(fence), from: seq, to: seq }),
        }
        Self(ranges)
    }

    /// The chain up to an object, without it.
    pub(crate) fn before(&self, seq: u64) -> Self {
        let cut = |range: &Span| {
            let to = seq.checked_sub(1)?.min(range.to);
            (range.from <= to).then_some(Span { to, ..*range })
        };
        Self(self.0.iter().filter_map(cut).collect())
    }

    pub(crate) fn has(&self, id: ObjectId) -> bool {
        self.0.iter().any(|it| it.fence.0 == id.fence && (it.from..=it.to).contains(&id.seq))
    }
}

/// What is known of a user's head when objects are to be deleted. It may be an old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeadView {
    pub(crate) fence: u64,
    pub(crate) seq: u64,
    pub(crate) chain: Chain,
}

impl HeadView {
    /// Whether an object, or a part of one, is of no use any more. Objects of a later ownership, and later ones of the
    /// present one, may belong to a head that is not known here.
    pub(crate) fn has_replaced(&self, key: &Key) -> bool {
        let is_later = key.id.fence > self.fence || (key.id.fence == self.fence && key.id.seq > self.seq);
        !is_later && !self.chain.has(key.id)
    }
}

/// Objects since the last snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Since {
    /// Deltas, with their bytes.
    pub(crate) deltas: u64,
    pub(crate) bytes: u64,
    /// Bytes of the snapshot; 0 if they are not known.
    pub(crate) snapshot: u64,
}

/// Deltas from which a snapshot is worth its bytes, if it has no more than those of the deltas times [`WORTH`].
const FEW_DELTAS: u64 = 64;
const WORTH: u64 = 4;
/// Deltas from which one is due whatever it costs: each is a request when another node takes over.
const MOST_DELTAS: u64 = 512;
/// Deltas from which nothing else is stored but a snapshot, unless one failed a short time ago.
const OVERDUE: u64 = 2048;
/// Deltas from which nothing else is stored in any case: a chain has [`MAX_OBJECTS`] at most.
const FULL: u64 = MAX_OBJECTS / 5 * 4;
/// Bytes of deltas from which one is due if it has fewer.
const MANY_BYTES: u64 = 16 << 20;

impl Since {
    /// After one more object of this kind.
    pub(crate) fn with(self, kind: Kind, bytes: u64) -> Self {
        match kind {
            Kind::Snapshot => Self { deltas: 0, bytes: 0, snapshot: bytes },
            _ => Self { deltas: self.deltas + 1, bytes: self.bytes.saturating_add(bytes), ..self },
        }
    }

    /// Whether the next object must be a snapshot.
    pub(crate) fn is_chain_full(self) -> bool {
        self.deltas >= FULL
    }

    /// Whether the next object should be a snapshot.
    pub(crate) fn is_snapshot_overdue(self) -> bool {
        self.deltas >= OVERDUE
    }

    /// Whether an object soon should be a snapshot.
    pub(crate) fn is_snapshot_due(self) -> bool {
        let is_worth = self.snapshot <= self.bytes.saturating_mul(WORTH);
        self.deltas >= MOST_DELTAS
            || (self.deltas >= FEW_DELTAS && is_worth)
            || (self.bytes >= MANY_BYTES && self.bytes >= self.snapshot)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::key::UserHash;
    use super::*;

    fn id(fence: u64, seq: u64) -> ObjectId {
        ObjectId { fence, seq }
    }

    fn range(fence: u64, from: u64, to: u64) -> Span {
        Span { fence: Fence(fence), from, to }
    }

    #[test]
    fn chain_grows_and_a_snapshot_begins_it() {
        let chain = Chain::default().with(id(1, 1), Kind::Snapshot).with(id(1, 2), Kind::Delta);
        let chain = chain.with(id(9, 3), Kind::Delta).with(id(9, 4), Kind::Delta);
        assert_eq!(chain.0, [range(1, 1, 2), range(9, 3, 4)]);
        assert_eq!(chain.objects().unwrap(), [id(1, 1), id(1, 2), id(9, 3), id(9, 4)]);
        assert_eq!(chain.before(4).0, [range(1, 1, 2), range(9, 3, 3)]);
        assert_eq!((chain.before(3).0, chain.before(1).0.len()), (vec![range(1, 1, 2)], 0));
        assert_eq!(chain.before(0).0.len(), 0);
        assert!(chain.has(id(9, 4)) && !chain.has(id(1, 3)) && !chain.has(id(9, 5)));
        assert_eq!(chain.with(id(9, 5), Kind::Snapshot).0, [range(9, 5, 5)]);
    }

    #[test]
    fn damaged_chain_has_no_objects() {
        for wrong in [
            vec![range(1, 2, 1)],
            vec![range(1, 1, 2), range(2, 4, 4)],
            vec![range(1, 1, 2), range(2, 2, 3)],
            vec![range(1, 0, u64::MAX)],
            vec![range(1, u64::MAX, u64::MAX), range(2, 0, 0)],
            vec![range(1, 1, MAX_OBJECTS + 1)],
            (0..=MAX_CHAIN as u64).map(|seq| range(seq, seq, seq)).collect(),
        ] {
            assert_eq!(Chain(wrong.clone()).objects(), None, "{wrong:?}");
        }
        assert_eq!(Chain(vec![range(1, 1, MAX_OBJECTS)]).objects().map(|it| it.len()), Some(10_000));
    }

    #[test]
    fn snapshot_is_due_by_number_or_bytes() {
        let since = |deltas, bytes, snapshot| Since { deltas, bytes, snapshot }.is_snapshot_due();
        assert!(!since(0, 0, 0) && !since(1, 1 << 10, 1 << 20));
        // Many small turns of a small user, and of one with much in the working directory.
        assert!(!since(63, 63 << 13, 1 << 20) && since(64, 64 << 13, 1 << 20));
        assert!(
            !since(64, 64 << 13, 1 << 30)
                && !since(511, 511 << 13, 1 << 30)
                && since(512, 512 << 13, 1 << 30)
        );
        assert!(!Since { deltas: 2047, ..Since::default() }.is_snapshot_overdue());
        assert!(Since { deltas: 2048, ..Since::default() }.is_snapshot_overdue());
        assert!(!Since { deltas: 7999, ..Since::default() }.is_chain_full());
        assert!(Since { deltas: 8000, ..Since::default() }.is_chain_full());
        // Large turns.
        assert!(since(2, 16 << 20, 8 << 20) && !since(2, 16 << 20, 17 << 20) && since(2, 17 << 20, 17 << 20));
        let after = Since::default().with(Kind::Snapshot, 7).with(Kind::Delta, 2).with(Kind::Delta, 3);
        assert_eq!(after, Since { deltas: 2, bytes: 5, snapshot: 7 });
    }

    /// Objects of a user whose owners change: some write without a head, some compact, and old owners clean late.
    #[derive(Debug, Clone)]
    enum Step {
        Write { is_snapshot: bool, is_committed: bool },
        NewOwner,
        Clean { heads_ago: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (any::<bool>(), any::<bool>()).prop_map(|(is_snapshot, is_committed)| {
                Step::Write { is_snapshot, is_committed }
            }),
            1 => Just(Step::NewOwner),
            3 => (0..6_usize).prop_map(|heads_ago| Step::Clean { heads_ago }),
        ]
    }

    proptest! {
        /// Whatever head a cleaning node knows, what the present head names stays.
        #[test]
        fn cleaning_never_takes_from_the_head(steps in proptest::collection::vec(step(), 1..60)) {
            let key = |id| Key { user: UserHash::from_bytes([0; 16]), id, part: None };
            let (mut fence, mut objects) = (1, std::collections::HashSet::new());
            let mut heads = vec![HeadView { fence, seq: 0, chain: Chain::default() }];
            for step in steps {
                let head = heads.last().unwrap().clone();
                match step {
                    Step::NewOwner => fence += 1,
                    Step::Write { is_snapshot, is_committed } => {
                        let kind = if is_snapshot || head.seq == 0 { Kind::Snapshot } else { Kind::Delta };
                        let id = id(fence, head.seq + 1);
                        objects.insert(id);
                        if is_committed {
                            heads.push(HeadView { fence, seq: id.seq, chain: head.chain.with(id, kind) });
                        } else {
                            // The owner is gone before it could write the head.
                            fence += 1;
                        }
                    }
                    Step::Clean { heads_ago } => {
                        let known = &heads[heads.len().saturating_sub(1 + heads_ago)];
                        objects.retain(|id| !known.has_replaced(&key(*id)));
                    }
                }
                let head = heads.last().unwrap();
                let chain = head.chain.objects().unwrap();
                prop_assert!(chain.iter().all(|id| objects.contains(id)), "{chain:?} {objects:?}");
                prop_assert!(head.seq == 0 || chain.last().unwrap().seq == head.seq);
            }
            let head = heads.last().unwrap();
            objects.retain(|id| !head.has_replaced(&key(*id)));
            // An owner that is gone has left them, and the head of the next one shows it.
            objects.retain(|id| (id.fence, id.seq) <= (head.fence, head.seq));
            prop_assert_eq!(objects.len(), head.chain.objects().unwrap().len());
        }
    }
}
