//! One node of a run: its process with the real decisions, its clock, its children and their shims.

use std::collections::{BTreeMap, VecDeque};

use super::observer::{Broken, Turn, Violation};
use super::parts::{Call, Child, Clock, LIMITS, MARGIN, MAX_KILL, Rpc, Timer, Work};
use super::world::{self, Answer, MS, Outside, SECOND, TTL, What};
use crate::cluster::ledger::{
    self, Change, Claim, Commit, Fence, Head, Join, Key, LeaseId, LedgerError, NodeId, NodeInfo, Owner,
    Revision, Stored, UserHash,
};
use crate::cluster::ownership::{
    Action, CommitEnd, CommitId, Drain, Event, Moment, Ownership, Refusal, Ticket,
};

pub(super) struct Node {
    pub(super) index: usize,
    pub(super) generation: u64,
    pub(super) is_cut: bool,
    pub(super) is_down: bool,
    pub(super) is_stopped: bool,
    pub(super) is_frozen: bool,
    pub(super) clock: Clock,
    draining: Drain,
    /// Answers to this node take long.
    pub(super) is_slow: bool,
    /// The deadline that the shims know.
    page: u64,
    id: NodeId,
    machine: Ownership,
    lease: Option<LeaseId>,
    revoke: Option<LeaseId>,
    calls: BTreeMap<u64, Call>,
    last_call: u64,
    children: BTreeMap<UserHash, Child>,
    files: BTreeMap<UserHash, Vec<Turn>>,
    work: BTreeMap<Ticket, Work>,
    last_ticket: Ticket,
    to_commit: BTreeMap<UserHash, VecDeque<Ticket>>,
    committing: BTreeMap<CommitId, (UserHash, Ticket)>,
    seen: Revision,
    inbox: Vec<What>,
}

impl Node {
    pub(super) fn new(index: usize, rng: &mut fastrand::Rng) -> Self {
        let id: NodeId = format!("n{index}").parse().unwrap();
        let clock = Clock { rate: 0.95 + rng.f64() * 0.1, offset: rng.u64(..1000 * SECOND), jump: 0 };
        Self {
            index,
            generation: 0,
            is_cut: false,
            is_down: true,
            is_stopped: false,
            is_frozen: false,
            clock,
            draining: Drain::Off,
            is_slow: false,
            page: 0,
            machine: Ownership::new(id.clone(), LIMITS),
            id,
            lease: None,
            revoke: None,
            calls: BTreeMap::new(),
            last_call: 0,
            children: BTreeMap::new(),
            files: BTreeMap::new(),
            work: BTreeMap::new(),
            last_ticket: 0,
            to_commit: BTreeMap::new(),
            committing: BTreeMap::new(),
            seen: 0,
            inbox: Vec::new(),
        }
    }

    pub(super) fn start(&mut self, out: &mut Outside) {
        self.generation += 1;
        self.is_down = false;
        self.machine = Ownership::new(self.id.clone(), LIMITS);
        (self.lease, self.revoke, self.seen, self.draining) = (None, None, 0, Drain::Off);
        self.timer(out, Timer::Join);
        self.timer(out, Timer::Renew);
        self.watch(out);
    }

    /// The process is killed; the shims end the children soon after. Its connections end, and with them its turns.
    pub(super) fn crash(&mut self, out: &mut Outside) {
        out.counts.crashes += 1;
        for child in self.children.values_mut() {
            let end = out.now + out.rng.u64(..MAX_KILL);
            child.ends = Some(child.ends.map_or(end, |ends| ends.min(end)));
        }
        for work in std::mem::take(&mut self.work).into_values().filter(|work| !work.acknowledged) {
            out.end(work.turn, false);
        }
        (self.is_down, self.is_stopped, self.is_frozen) = (true, false, false);
        self.calls.clear();
        self.files.clear();
        self.to_commit.clear();
        self.committing.clear();
        for what in std::mem::take(&mut self.inbox) {
            if let What::Request { turn, .. } = what {
                out.end(turn, false);
            }
        }
    }

    /// Events wait while the process is stopped.
    pub(super) fn defer(&mut self, what: What) {
        self.inbox.push(what);
    }

    pub(super) fn resume(&mut self, out: &mut Outside) {
        if self.is_frozen {
            return;
        }
        self.is_stopped = false;
        if !self.is_down {
            self.feed(out, Event::Drain(self.draining));
        }
        for what in std::mem::take(&mut self.inbox) {
            out.after(1, what);
        }
    }

    pub(super) fn has_child(&self, now: u64, user: UserHash) -> bool {
        !self.is_frozen && self.children.get(&user).is_some_and(|child| self.is_alive(child, now))
    }

    fn is_alive(&self, child: &Child, now: u64) -> bool {
        let killed = child.deadline.saturating_add(child.kill);
        child.ends.is_none_or(|ends| now < ends) && self.clock.at(now).nanos < killed
    }

    pub(super) fn set_draining(&mut self, out: &mut Outside, draining: Drain) {
        self.draining = draining;
        if !self.is_down && !self.is_stopped {
            self.feed(out, Event::Drain(draining));
        }
    }

    fn local(&self, out: &Outside) -> Moment {
        self.clock.at(out.now)
    }

    fn wait(&self, out: &mut Outside, delay: u64, timer: Timer) {
        let what = What::Timer { node: self.index, generation: self.generation, timer };
        out.after(delay, what);
    }

    fn call(&mut self, out: &mut Outside, call: Call, rpc: Rpc) {
        self.last_call += 1;
        let number = self.last_call;
        self.calls.insert(number, call);
        if !self.is_cut && !out.is_lost() {
            let what = What::Arrive { node: self.index, generation: self.generation, call: number, rpc };
            let delay = out.delay();
            out.after(delay, what);
        }
        let patience = out.ms(300..2000);
        self.wait(out, patience, Timer::Timeout(number));
    }

    fn feed(&mut self, out: &mut Outside, event: Event) {
        let actions = self.machine.handle(self.local(out), event);
        // The page of the shims has the deadline that the decisions go by.
        let now = out.now;
        let deadline = self.machine.deadline().map_or(0, |deadline| deadline.nanos);
        if deadline > self.page {
            let mut children = std::mem::take(&mut self.children);
            children.retain(|_, child| self.is_alive(child, now));
            for child in children.values_mut() {
                child.deadline = child.deadline.max(deadline);
            }
            self.children = children;
        }
        self.page = deadline;
        for action in actions {
            self.act(out, action);
        }
    }

    fn act(&mut self, out: &mut Outside, action: Action) {
        match action.clone() {
            Action::Claim { user, attempt, lease } => {
                let txn = ledger::claim(&out.keys, user, &self.id, lease).unwrap();
                self.call(out, Call::Claim { user, attempt, lease }, Rpc::Txn(txn));
            }
            Action::Restore { user, fence, stored } => {
                let delay = out.ms(5..300);
                self.wait(out, delay, Timer::Restored { user, fence, stored });
            }
            Action::Grant { ticket, user, fence } => self.granted(out, ticket, user, fence),
            Action::Forward { ticket, node } => {
                out.counts.forwarded += 1;
                let node = node.as_str().trim_start_matches('n').parse().unwrap();
                self.pass_on(out, ticket, node);
            }
            Action::Refuse { ticket, why: Refusal::Draining } => {
                self.pass_on(out, ticket, (self.index + 1) % 3);
            }
            Action::Refuse { ticket, .. } => {
                if let Some(work) = self.work.remove(&ticket) {
                    out.end(work.turn, false);
                }
            }
            Action::Commit { attempt, .. } | Action::Release { attempt, .. } if attempt > 0 => {
                out.counts.commits_repeated += u64::from(matches!(action, Action::Commit { .. }));
                let delay = out.ms(20..200);
                self.wait(out, delay, Timer::Again(action));
            }
            Action::Commit { .. } | Action::Release { .. } => self.send(out, action),
            Action::CommitEnded { commit, end } => self.commit_ended(out, commit, &end),
            Action::Close { user, fence } => {
                let end = out.now + out.ms(5..150);
                self.end_child(user, end);
                let delay = if out.broken == Broken::ReleaseFirst { 0 } else { end - out.now };
                self.wait(out, delay, Timer::Closed { user, fence });
            }
            Action::Stop { user, fence } => {
                let end = out.now + out.ms(5..150);
                self.end_child(user, end);
                self.files.remove(&user);
                self.to_commit.remove(&user);
                let lost: Vec<_> = self
                    .work
                    .iter()
                    .filter(|(_, work)| work.user == user && work.granted.is_some())
                    .map(|(ticket, _)| *ticket)
                    .collect();
                for ticket in lost {
                    self.end(out, ticket, false);
                }
                let delay = if out.broken == Broken::RejoinFirst { 0 } else { end - out.now };
                self.wait(out, delay, Timer::Stopped { user, fence });
            }
            Action::Rejoin { revoke } => {
                out.counts.lapsed += u64::from(revoke.is_some());
                (self.lease, self.revoke) = (None, revoke);
                self.timer(out, Timer::Join);
            }
        }
    }

    fn end_child(&mut self, user: UserHash, end: u64) {
        if let Some(child) = self.children.get_mut(&user) {
            child.ends = Some(child.ends.map_or(end, |ends| ends.min(end)));
        }
    }

    fn send(&mut self, out: &mut Outside, action: Action) {
        match action {
            Action::Commit { user, fence, commit, expected, head, .. } => {
                let mut txn = ledger::commit(&out.keys, user, fence, expected, &head).unwrap();
                if out.broken == Broken::UnguardedCommit {
                    txn.compare.clear();
                }
                self.call(out, Call::Commit { user, fence, commit, head }, Rpc::Txn(txn));
            }
            Action::Release { user, fence, .. } => {
                out.counts.released += 1;
                let txn = ledger::release(&out.keys, user, fence);
                self.call(out, Call::Release { user, fence }, Rpc::Txn(txn));
            }
            _ => {}
        }
    }

    fn pass_on(&mut self, out: &mut Outside, ticket: Ticket, node: usize) {
        let Some(Work { user, turn, hops, .. }) = self.work.remove(&ticket) else { return };
        if hops >= 3 {
            return out.end(turn, false);
        }
        let delay = out.ms(1..10);
        out.after(delay, What::Request { node, user, turn, hops: hops + 1 });
    }

    pub(super) fn request(&mut self, out: &mut Outside, user: UserHash, turn: Turn, hops: u8) {
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        self.work.insert(ticket, Work { user, turn, hops, granted: None, acknowledged: false });
        self.wait(out, 3 * SECOND, Timer::WaitOver { ticket });
        self.feed(out, Event::Wanted { user, ticket });
        if out.rng.u8(..) < 20 {
            self.feed(out, Event::Evict { user });
        }
    }

    fn granted(&mut self, out: &mut Outside, ticket: Ticket, user: UserHash, fence: Fence) {
        let now = out.now;
        out.may_have_children = true;
        let deadline = self.machine.deadline().map_or(0, |deadline| deadline.nanos);
        let is_dead = self.children.get(&user).is_some_and(|child| !self.is_alive(child, now));
        if is_dead {
            self.children.remove(&user);
        }
        if self.children.get(&user).is_some_and(|child| child.ends.is_some()) {
            out.violate(Violation::Unfit { at: now, what: "a grant while a child is ended" });
        }
        let kill = out.rng.u64(..MAX_KILL);
        self.children.entry(user).or_insert(Child { ends: None, deadline, kill });
        let Some(work) = self.work.get_mut(&ticket) else { return };
        work.granted = Some(fence);
        let delay = out.ms(20..400);
        self.wait(out, delay, Timer::TurnDone { ticket });
    }

    /// Stores the next turn of a user, one at a time.
    fn pump(&mut self, out: &mut Outside, user: UserHash) {
        if self.committing.values().any(|(of, _)| *of == user) {
            return;
        }
        let Some(ticket) = self.to_commit.get_mut(&user).and_then(VecDeque::pop_front) else { return };
        let (Some(work), Some(stored)) = (self.work.get(&ticket), self.machine.stored(user)) else { return };
        let Some(fence) = work.granted else { return };
        let before = stored.head.as_ref();
        let mut history = self.files.get(&user).cloned().unwrap_or_default();
        history.push(work.turn);
        let delta = before.filter(|_| out.rng.u8(..8) > 0).and_then(|head| head.delta(fence, 1));
        let (head, object) = match delta {
            Some(head) => (head, vec![work.turn]),
            None => (Head::snapshot(before, fence, 1), history),
        };
        self.upload(out, user, &head, object);
        self.last_call += 1;
        let commit = self.last_call;
        self.committing.insert(commit, (user, ticket));
        self.feed(out, Event::CommitWanted { user, fence, commit, head });
    }

    fn upload(&mut self, out: &mut Outside, user: UserHash, head: &Head, object: Vec<Turn>) {
        if out.objects.insert((user, head.fence, head.seq), object).is_some() {
            out.violate(Violation::ObjectTwice { at: out.now, user });
        }
    }

    fn commit_ended(&mut self, out: &mut Outside, commit: CommitId, end: &CommitEnd) {
        let Some((user, ticket)) = self.committing.remove(&commit) else { return };
        match end {
            CommitEnd::Done => {
                if let Some(work) = self.work.get(&ticket) {
                    self.files.entry(user).or_default().push(work.turn);
                }
                self.end(out, ticket, true);
            }
            CommitEnd::Behind(_) => self.to_commit.entry(user).or_default().push_front(ticket),
            CommitEnd::Fenced | CommitEnd::Unknown => {
                out.counts.fenced += 1;
                self.end(out, ticket, false);
            }
            CommitEnd::Busy | CommitEnd::TooLarge => {
                out.violate(Violation::Unfit { at: out.now, what: "a commit beside another" });
            }
        }
        self.pump(out, user);
    }

    fn end(&mut self, out: &mut Outside, ticket: Ticket, acknowledged: bool) {
        let Some(work) = self.work.remove(&ticket) else { return };
        if !work.acknowledged {
            out.end(work.turn, acknowledged);
        }
        self.feed(out, Event::Finished { user: work.user, ticket });
    }

    pub(super) fn timer(&mut self, out: &mut Outside, timer: Timer) {
        match timer {
            Timer::Renew => {
                if let Some(lease) = self.lease {
                    let sent = self.local(out).nanos;
                    self.call(out, Call::Renew { lease, sent }, Rpc::Renew(lease));
                }
                self.wait(out, TTL / 4, Timer::Renew);
                self.feed(out, Event::Tick);
            }
            Timer::Timeout(call) => {
                if self.calls.contains_key(&call) {
                    self.answered(out, call, Err(LedgerError::Unavailable("timeout")));
                }
            }
            Timer::Tick => self.feed(out, Event::Tick),
            Timer::Again(action) => self.send(out, action),
            Timer::Join => match self.revoke {
                Some(lease) => self.call(out, Call::Revoke, Rpc::Revoke(lease)),
                None => {
                    let sent = self.local(out).nanos;
                    self.call(out, Call::Grant { sent }, Rpc::Grant);
                }
            },
            Timer::Restored { user, fence, stored } => {
                match out.history(user, stored.head.as_ref()) {
                    Some(history) => drop(self.files.insert(user, history)),
                    None => out.violate(Violation::Unfit { at: out.now, what: "a head without its object" }),
                }
                let ok = out.rng.u8(..) > 3;
                self.feed(out, Event::Restored { user, fence, ok });
            }
            Timer::TurnDone { ticket } => {
                let Some(work) = self.work.get_mut(&ticket) else { return };
                let user = work.user;
                if out.broken == Broken::AcknowledgeFirst {
                    work.acknowledged = true;
                    out.end(work.turn, true);
                }
                self.to_commit.entry(user).or_default().push_back(ticket);
                self.pump(out, user);
            }
            Timer::Closed { user, fence } => {
                self.feed(out, Event::Closed { user, fence });
            }
            Timer::Stopped { user, fence } => self.feed(out, Event::Stopped { user, fence }),
            Timer::WaitOver { ticket } => {
                if self.work.get(&ticket).is_some_and(|work| work.granted.is_none()) {
                    self.end(out, ticket, false);
                }
            }
        }
    }

    pub(super) fn answered(&mut self, out: &mut Outside, call: u64, reply: Result<Answer, LedgerError>) {
        let Some(call) = self.calls.remove(&call) else { return };
        let reply = match reply {
            Ok(Answer::Txn(reply)) => Ok(reply),
            Ok(answer) => return self.lease_answered(out, &call, Ok(answer)),
            Err(error) => Err(error),
        };
        match call {
            Call::Claim { user, attempt, lease } => {
                let result = reply.and_then(|reply| Claim::of(reply, &self.id, lease));
                self.feed(out, Event::Claimed { user, attempt, result });
            }
            Call::Commit { user, fence, commit, head } => {
                let own = reply.as_ref().is_ok_and(|reply| !reply.succeeded);
                let mut result = reply.and_then(|reply| Commit::of(reply, &head));
                if let (true, Ok(Commit::Done(revision))) = (own, &result) {
                    out.counts.own_heads += 1;
                    if out.broken == Broken::OwnHeadForgotten {
                        let stored = Stored { head: Some(head), revision: *revision };
                        result = Ok(Commit::Conflict(stored));
                    }
                }
                self.feed(out, Event::Committed { user, fence, commit, result });
            }
            Call::Release { user, fence } => {
                let mut result = reply.and_then(|reply| ledger::released(reply, fence));
                if out.broken == Broken::ReleaseOnce {
                    result = Ok(());
                }
                self.feed(out, Event::Released { user, fence, result });
            }
            Call::Join { lease, sent } => match reply.and_then(|reply| Join::of(reply, lease)) {
                Ok(Join::Done) => {
                    self.lease = Some(lease);
                    let (deadline, gone) = self.deadline(out, sent);
                    self.feed(out, Event::Joined { lease, deadline, gone });
                    self.wait(out, TTL - MARGIN, Timer::Tick);
                }
                Ok(Join::Taken) | Err(_) => {
                    self.revoke = Some(lease);
                    self.wait(out, 300 * MS, Timer::Join);
                }
            },
            call => {
                let error = reply.err().unwrap_or(LedgerError::BadAnswer("a test"));
                self.lease_answered(out, &call, Err(error));
            }
        }
    }

    fn deadline(&self, out: &Outside, sent: u64) -> (Moment, Moment) {
        let from = match out.broken {
            Broken::NoDeadline => return (Moment { nanos: u64::MAX }, Moment { nanos: u64::MAX }),
            Broken::DeadlineFromAnswer => self.local(out).nanos,
            _ => sent,
        };
        (Moment { nanos: from + TTL - MARGIN }, Moment { nanos: from + TTL + 3 * SECOND })
    }

    fn lease_answered(&mut self, out: &mut Outside, call: &Call, reply: Result<Answer, LedgerError>) {
        match (call, reply) {
            (Call::Renew { lease, sent }, Ok(_)) => {
                let (deadline, gone) = self.deadline(out, *sent);
                self.feed(out, Event::Renewed { lease: *lease, deadline, gone });
                self.wait(out, TTL - MARGIN, Timer::Tick);
            }
            (Call::Renew { lease, .. }, Err(LedgerError::LeaseGone)) => {
                self.feed(out, Event::LeaseLost { lease: *lease });
            }
            (Call::Revoke, Ok(_)) => {
                self.revoke = None;
                self.timer(out, Timer::Join);
            }
            (Call::Grant { sent }, Ok(Answer::Lease(lease))) => {
                let info = NodeInfo::new("http://a:1".into(), 1, "1".into());
                let txn = ledger::join(&out.keys, &self.id, &info, lease).unwrap();
                self.call(out, Call::Join { lease, sent: *sent }, Rpc::Txn(txn));
            }
            (Call::Revoke | Call::Grant { .. }, _) => self.wait(out, 200 * MS, Timer::Join),
            _ => {}
        }
    }

    /// What has changed since the last look, or everything after a compaction.
    pub(super) fn watch(&mut self, out: &mut Outside) {
        if self.is_cut {
            return;
        }
        let changes = if self.seen == 0 { None } else { world::changes(out, self.seen + 1) };
        let events: Vec<_> = match changes {
            Some(changes) => changes.iter().filter_map(|change| seen(out, change)).collect(),
            None => self.resync(out),
        };
        self.seen = out.store.revision();
        for (user, owner, revision) in events {
            if owner.as_ref().is_some_and(|(node, _)| *node == self.id) && !self.machine.is_known(user) {
                out.counts.orphans += 1;
            }
            self.feed(out, Event::Seen { user, owner, revision });
        }
    }

    fn resync(&self, out: &Outside) -> Vec<Seen> {
        let page = world::owners(out);
        let revision = page.revision;
        let found: Vec<_> = page
            .keys
            .into_iter()
            .filter_map(|kv| seen(out, &Change::Put(kv)))
            .map(|(u, o, _)| (u, o))
            .collect();
        let missing = world::users().filter(|user| found.iter().all(|(found, _)| found != user));
        let missing: Vec<_> = missing.map(|user| (user, None)).collect();
        found.into_iter().chain(missing).map(|(user, owner)| (user, owner, revision)).collect()
    }
}

type Seen = (UserHash, Option<(NodeId, Fence)>, Revision);

fn seen(out: &Outside, change: &Change) -> Option<Seen> {
    let Some(Key::Owner(user)) = out.keys.parse(change.key()) else { return None };
    Some(match change {
        Change::Put(kv) => {
            (user, Some((Owner::decode(&kv.value).unwrap().node, Fence(kv.created))), kv.modified)
        }
        Change::Deleted { revision, .. } => (user, None, *revision),
    })
}
