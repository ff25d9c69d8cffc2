//! Time, network, store and observer of a run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::node::Node;
use super::observer::{Broken, Counts, Turn, Violation};
use super::parts::{Rpc, Timer};
use crate::cluster::ledger::memory::Store;
use crate::cluster::ledger::{
    Change, Compare, Fence, Head, Key, Keys, LedgerError, Operation, Page, Txn, TxnReply, UserHash,
};
use crate::cluster::ownership::Drain;

pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1000 * MS;
pub(super) const TTL: u64 = 2 * SECOND;
/// When the last fault begins.
const FAULTS_UNTIL: u64 = 5 * SECOND;
/// Maximum duration of a fault.
const FAULT_MS: u64 = 3500;
/// From here on every fault is over.
const HEALED: u64 = FAULTS_UNTIL + FAULT_MS * MS;
/// Maximum time until a lease, a claim and a restore have followed.
const RECOVERED: u64 = HEALED + 3500 * MS;
/// Each user is to be served between there and here.
const END: u64 = RECOVERED + 3 * SECOND;
const NODES: usize = 3;
const USERS: u8 = 3;

/// What occurs at a time. Events of a node carry its generation: a crash discards the rest.
#[derive(Debug, Clone)]
pub(super) enum What {
    Arrive { node: usize, generation: u64, call: u64, rpc: Rpc },
    Answer { node: usize, generation: u64, call: u64, reply: Result<Answer, LedgerError> },
    Timer { node: usize, generation: u64, timer: Timer },
    Watch { node: usize, generation: u64 },
    Request { node: usize, user: UserHash, turn: Turn, hops: u8 },
    LeaseEnds,
    Fault,
    Heal { node: usize, part: Part },
    NewTurn,
    Healed,
    Recovered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Network,
    Process,
    Machine,
    Restart,
    Drain,
    /// The network is cut then: the last answers come late.
    Answers,
}

#[derive(Debug, Clone)]
pub(super) enum Answer {
    Txn(TxnReply),
    Lease(crate::cluster::ledger::LeaseId),
    Renewed,
    Revoked,
}

/// Boxed: the heap moves it often.
struct Scheduled(u64, u64, Box<What>);

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// Everything but the nodes.
pub(super) struct Outside {
    pub(super) now: u64,
    pub(super) rng: fastrand::Rng,
    pub(super) broken: Broken,
    pub(super) keys: Keys,
    pub(super) store: Store,
    /// An older state, which a cut-off member would still answer with.
    pub(super) stale: Store,
    /// Revision, number and history of each head, as last seen.
    heads: BTreeMap<UserHash, (u64, u64, Vec<Turn>)>,
    pub(super) objects: BTreeMap<(UserHash, Fence, u64), Vec<Turn>>,
    pub(super) counts: Counts,
    pub(super) violation: Option<Violation>,
    /// A child was started, or a machine goes on: only then two may be alive.
    pub(super) may_have_children: bool,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    loss: f64,
    slow: f64,
    open: BTreeMap<Turn, UserHash>,
    acknowledged: Vec<(UserHash, Turn)>,
    /// Users that were served since the last fault.
    served: BTreeSet<UserHash>,
    turns: Turn,
}

impl Outside {
    pub(super) fn at(&mut self, time: u64, what: What) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled(time, self.scheduled, Box::new(what))));
    }

    pub(super) fn after(&mut self, delay: u64, what: What) {
        self.at(self.now + delay, what);
    }

    /// A delay within the bounds.
    pub(super) fn ms(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.rng.u64(range.start * MS..range.end * MS)
    }

    pub(super) fn delay(&mut self) -> u64 {
        if self.rng.f64() < self.slow { self.ms(100..3000) } else { self.ms(1..20) }
    }

    pub(super) fn is_lost(&mut self) -> bool {
        self.rng.f64() < self.loss
    }

    pub(super) fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    pub(super) fn end(&mut self, turn: Turn, acknowledged: bool) {
        let Some(user) = self.open.remove(&turn) else {
            return self.violate(Violation::EndedTwice { turn });
        };
        if acknowledged {
            self.counts.acknowledged += 1;
            self.acknowledged.push((user, turn));
            if self.now > RECOVERED {
                self.served.insert(user);
            }
        } else {
            self.counts.failed += 1;
        }
    }

    /// The history that a head stands for; `None` if an object is missing.
    pub(super) fn history(&self, user: UserHash, head: Option<&Head>) -> Option<Vec<Turn>> {
        let mut turns = Vec::new();
        for span in head.map(|head| head.chain.as_slice()).unwrap_or_default() {
            for seq in span.from..=span.to {
                turns.extend(self.objects.get(&(user, span.fence, seq))?);
            }
        }
        Some(turns)
    }

    fn head(&self, user: UserHash) -> Option<Head> {
        self.store.get(&self.keys.head(user)).map(|kv| Head::decode(&kv.value).unwrap())
    }

    /// Carries out a request at the store, and checks what it has done to the heads.
    fn apply(&mut self, rpc: &Rpc) -> Result<Answer, LedgerError> {
        self.store.pass(self.now);
        match rpc {
            Rpc::Txn(txn) => {
                let heads: Vec<_> = txn.success.iter().filter_map(|step| self.user_of_head(step)).collect();
                let reply = match self.serializable_claim(txn) {
                    Some(remove) => {
                        self.store.txn(&remove)?;
                        self.store.txn(txn)?
                    }
                    None => self.store.txn(txn)?,
                };
                for user in heads {
                    self.check_head(user);
                }
                Ok(Answer::Txn(reply))
            }
            Rpc::Grant => {
                let lease = self.store.grant(TTL / SECOND);
                self.lease_ends();
                Ok(Answer::Lease(lease))
            }
            Rpc::Renew(lease) => {
                self.store.renew(*lease)?;
                self.lease_ends();
                Ok(Answer::Renewed)
            }
            Rpc::Revoke(lease) => {
                self.store.revoke(*lease);
                Ok(Answer::Revoked)
            }
        }
    }

    /// Without the guard: what removes the owner that a cut-off member does not know of.
    fn serializable_claim(&self, txn: &Txn) -> Option<Txn> {
        let [Compare::Created(owner, 0)] = txn.compare.as_slice() else { return None };
        let is_claim = matches!(self.keys.parse(owner), Some(Key::Owner(_)));
        if self.broken != Broken::SerializableClaim || !is_claim || self.stale.get(owner).is_some() {
            return None;
        }
        Some(Txn { success: vec![Operation::Delete { key: owner.clone() }], ..Txn::default() })
    }

    fn lease_ends(&mut self) {
        if let Some(end) = self.store.next_end() {
            self.at(end, What::LeaseEnds);
        }
    }

    fn user_of_head(&self, step: &Operation) -> Option<UserHash> {
        match step {
            Operation::Put { key, .. } => match self.keys.parse(key) {
                Some(Key::Head(user)) => Some(user),
                _ => None,
            },
            _ => None,
        }
    }

    /// The head is the same as before, or follows it with one more turn at most.
    fn check_head(&mut self, user: UserHash) {
        let revision = self.store.get(&self.keys.head(user)).map_or(0, |kv| kv.modified);
        let (seen, seq, old) = self.heads.get(&user).cloned().unwrap_or_default();
        if revision == seen {
            return;
        }
        let head = self.head(user);
        let new = self.history(user, head.as_ref()).unwrap_or_default();
        let now = head.map_or(0, |head| head.seq);
        let grows = match new.strip_prefix(old.as_slice()) {
            Some([]) => true,
            Some([turn]) => !old.contains(turn),
            _ => false,
        };
        if now != seq + 1 || !grows {
            self.violate(Violation::History { at: self.now, user, before: old, after: new.clone() });
        }
        self.heads.insert(user, (revision, now, new));
    }
}

pub(super) struct World {
    pub(super) out: Outside,
    pub(super) nodes: Vec<Node>,
    watched: (Vec<u8>, Vec<u8>),
}

pub(super) fn users() -> impl Iterator<Item = UserHash> {
    (0..USERS).map(|n| UserHash::from_bytes([n; 16]))
}

impl World {
    pub(super) fn new(seed: u64, broken: Broken) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let loss = if rng.bool() { 0.0 } else { rng.f64() * 0.1 };
        let slow = if rng.bool() { 0.0 } else { rng.f64() * 0.3 };
        let nodes = (0..NODES).map(|index| Node::new(index, &mut rng)).collect();
        let out = Outside {
            now: 0,
            rng,
            broken,
            keys: Keys::new("/p/"),
            store: Store::default(),
            stale: Store::default(),
            heads: BTreeMap::new(),
            objects: BTreeMap::new(),
            counts: Counts::default(),
            violation: None,
            may_have_children: false,
            queue: BinaryHeap::new(),
            scheduled: 0,
            loss,
            slow,
            open: BTreeMap::new(),
            acknowledged: Vec::new(),
            served: BTreeSet::new(),
            turns: 0,
        };
        let watched = out.keys.watched();
        Self { out, nodes, watched }
    }

    pub(super) fn run(mut self) -> Result<Counts, Violation> {
        for node in &mut self.nodes {
            node.start(&mut self.out);
        }
        self.out.after(50 * MS, What::NewTurn);
        self.out.after(SECOND, What::Fault);
        self.out.after(HEALED, What::Healed);
        self.out.after(RECOVERED + 1, What::Recovered);
        while let Some(Reverse(Scheduled(time, _, what))) = self.out.queue.pop() {
            if time > END {
                break;
            }
            self.out.now = time;
            self.step(*what);
            if let Some(violation) = self.out.violation.take() {
                return Err(violation);
            }
        }
        self.check_end()
    }

    /// The event is for a process that is down, was started again since, or is stopped: none, or a later one.
    fn is_late(&mut self, what: &What) -> bool {
        let (index, generation) = match what {
            What::Answer { node, generation, .. }
            | What::Timer { node, generation, .. }
            | What::Watch { node, generation } => (*node, Some(*generation)),
            What::Request { node, .. } => (*node, None),
            _ => return false,
        };
        let Some(node) = self.nodes.get_mut(index) else { return true };
        if node.is_down || generation.is_some_and(|generation| generation != node.generation) {
            if let What::Request { turn, .. } = what {
                self.out.end(*turn, false);
            }
            return true;
        }
        if node.is_stopped {
            node.defer(what.clone());
        }
        node.is_stopped
    }

    fn step(&mut self, what: What) {
        if self.is_late(&what) {
            return;
        }
        let out = &mut self.out;
        match what {
            What::Arrive { node, generation, call, rpc } => {
                let revision = out.store.revision();
                let reply = out.apply(&rpc);
                let Some(sender) = self.nodes.get(node) else { return };
                if !sender.is_cut && !out.is_lost() {
                    let delay = if sender.is_slow { out.ms(100..1900) } else { out.delay() };
                    out.after(delay, What::Answer { node, generation, call, reply });
                }
                self.changed(revision);
            }
            What::Answer { node, call, reply, .. } => self.nodes[node].answered(out, call, reply),
            What::Timer { node, timer, .. } => self.nodes[node].timer(out, timer),
            What::Watch { node, .. } => self.nodes[node].watch(out),
            What::Request { node, user, turn, hops } => self.nodes[node].request(out, user, turn, hops),
            What::LeaseEnds => {
                let revision = out.store.revision();
                out.store.pass(out.now);
                self.changed(revision);
            }
            What::NewTurn => {
                let user = out.rng.u8(..USERS);
                let node = out.rng.usize(..NODES);
                self.new_turn(node, user);
                let pause = self.out.ms(20..300);
                self.out.after(pause, What::NewTurn);
            }
            // Every node is asked for every user.
            What::Recovered => {
                (0..USERS).for_each(|user| (0..NODES).for_each(|node| self.new_turn(node, user)))
            }
            What::Fault => self.fault(),
            What::Healed => (out.loss, out.slow) = (0.0, 0.0),
            What::Heal { node, part } => self.heal(node, part),
        }
        if std::mem::take(&mut self.out.may_have_children) {
            self.check_children();
        }
    }

    /// Watches learn of a change later.
    fn changed(&mut self, before: u64) {
        if self.out.store.revision() == before {
            return;
        }
        let is_watched = self.out.store.has_change(before + 1, &self.watched.0, &self.watched.1);
        let watching = if is_watched { self.nodes.len() } else { 0 };
        for index in 0..watching {
            let Some(node) = self.nodes.get(index) else { continue };
            if !node.is_cut && !node.is_down {
                let generation = node.generation;
                let delay = self.out.delay();
                self.out.after(delay, What::Watch { node: index, generation });
            }
        }
        // Now and then the state that a cut-off member stays at.
        if self.out.broken == Broken::SerializableClaim && self.out.rng.u8(..) < 16 {
            self.out.stale = self.out.store.clone();
        }
        if self.out.rng.u8(..) < 4 {
            self.out.store.compact();
        }
    }

    fn new_turn(&mut self, node: usize, user: u8) {
        let out = &mut self.out;
        let user = UserHash::from_bytes([user; 16]);
        out.turns += 1;
        let turn = out.turns;
        out.open.insert(turn, user);
        out.after(MS, What::Request { node, user, turn, hops: 0 });
    }

    fn fault(&mut self) {
        let index = self.out.rng.usize(..NODES);
        let kind = self.out.rng.u8(..14);
        let long = self.out.ms(100..FAULT_MS);
        let out = &mut self.out;
        let Some(node) = self.nodes.get_mut(index) else { return };
        match kind {
            0..=2 => {
                node.is_cut = true;
                out.after(long, What::Heal { node: index, part: Part::Network });
            }
            3 => {
                // The ledger is gone for everyone.
                for (index, node) in self.nodes.iter_mut().enumerate() {
                    node.is_cut = true;
                    out.after(long, What::Heal { node: index, part: Part::Network });
                }
            }
            4 | 5 if !node.is_down => {
                node.is_stopped = true;
                out.after(long, What::Heal { node: index, part: Part::Process });
            }
            6 | 7 if !node.is_down => {
                node.is_frozen = true;
                node.is_stopped = true;
                out.after(long, What::Heal { node: index, part: Part::Machine });
            }
            8 | 9 if !node.is_down => {
                node.crash(out);
                out.after(long, What::Heal { node: index, part: Part::Restart });
            }
            10 if !node.is_down => {
                let how = if out.rng.bool() { Drain::Now } else { Drain::WhenIdle };
                node.set_draining(out, how);
                out.after(long, What::Heal { node: index, part: Part::Drain });
            }
            11 => {
                node.clock.jump += out.rng.u64(..3 * SECOND);
                let what = What::Timer { node: index, generation: node.generation, timer: Timer::Tick };
                out.after(MS, what);
            }
            12 | 13 => {
                node.is_slow = true;
                let slow = out.ms(600..1500);
                out.after(slow, What::Heal { node: index, part: Part::Answers });
            }
            _ => {}
        }
        let pause = out.ms(50..2500);
        if out.now + pause < FAULTS_UNTIL {
            out.after(pause, What::Fault);
        }
    }

    fn heal(&mut self, index: usize, part: Part) {
        let out = &mut self.out;
        let Some(node) = self.nodes.get_mut(index) else { return };
        match part {
            Part::Network => {
                node.is_cut = false;
                let generation = node.generation;
                out.after(MS, What::Watch { node: index, generation });
            }
            Part::Process => node.resume(out),
            Part::Machine => {
                node.is_frozen = false;
                out.may_have_children = true;
                node.resume(out);
            }
            Part::Restart => node.start(out),
            Part::Drain => node.set_draining(out, Drain::Off),
            Part::Answers => {
                (node.is_slow, node.is_cut) = (false, true);
                let long = out.ms(100..2000);
                out.after(long, What::Heal { node: index, part: Part::Network });
            }
        }
    }

    fn check_children(&mut self) {
        for user in users() {
            let mut alive = self.nodes.iter().filter(|node| node.has_child(self.out.now, user));
            if let (Some(a), Some(b)) = (alive.next(), alive.next()) {
                let nodes = (a.index, b.index);
                self.out.violate(Violation::TwoChildren { at: self.out.now, user, nodes });
            }
        }
    }

    fn check_end(self) -> Result<Counts, Violation> {
        let Self { out, .. } = self;
        for (user, turn) in &out.acknowledged {
            let history = out.heads.get(user).map(|(_, _, history)| history.as_slice()).unwrap_or_default();
            if !history.contains(turn) {
                return Err(Violation::Lost { user: *user, turn: *turn });
            }
        }
        if let Some(user) = users().find(|user| !out.served.contains(user)) {
            return Err(Violation::NotServed { user });
        }
        // Every turn that began in time has ended.
        let recent = out.turns.saturating_sub(40);
        match out.open.keys().find(|turn| **turn < recent) {
            Some(turn) => Err(Violation::NotEnded { turn: *turn }),
            None => Ok(out.counts),
        }
    }
}

/// The owners of a range, as a new range read has them.
pub(super) fn owners(out: &Outside) -> Page {
    let (start, end) = out.keys.watched();
    out.store.range(&start, &end, 0).unwrap_or(Page { revision: 0, keys: Vec::new(), more: false })
}

pub(super) fn changes(out: &Outside, from: u64) -> Option<Vec<Change>> {
    out.store.since(from).ok()
}
