//! The decisions as tables: a state is reached by events, and each further event has its actions.

use std::fmt::Write;
use std::time::Duration;

use super::*;
use crate::cluster::ledger::{Claim, Commit, Head, LedgerError, RecordError, Won};

const TTL: u64 = 1_500_000_000;
const LEASE: LeaseId = LeaseId(7);

fn user() -> UserHash {
    UserHash::from_bytes([1; 16])
}

fn now(nanos: u64) -> Moment {
    Moment { nanos }
}

fn machine() -> Ownership {
    let mut machine = Ownership::new("a".parse().unwrap(), Limits { users: 2, requests: 3 });
    let joined = Event::Joined { lease: LEASE, deadline: now(TTL), gone: now(TTL * 2) };
    assert_eq!(machine.handle(now(0), joined), []);
    machine
}

fn head(seq: u64) -> Head {
    let mut head = Head::snapshot(None, Fence(5), 1);
    for _ in 1..seq {
        head = head.delta(Fence(5), 1).unwrap();
    }
    head
}

/// An event by a word, so that a table is legible.
fn event(word: &str) -> Event {
    let (user, fence) = (user(), Fence(5));
    let node = |name: &str| -> NodeId { name.parse().unwrap() };
    let claimed = |result| Event::Claimed { user, attempt: 1, result };
    let committed = |result| Event::Committed { user, fence, commit: 9, result };
    let released = |result| Event::Released { user, fence, result };
    let lost = LedgerError::Unavailable("x");
    match word {
        "want" => Event::Wanted { user, ticket: 1 },
        "want 3" => Event::Wanted { user, ticket: 3 },
        "want 2" => Event::Wanted { user, ticket: 2 },
        "want again" => Event::WantedAgain { user, ticket: 2 },
        "finish" => Event::Finished { user, ticket: 1 },
        "finish 2" => Event::Finished { user, ticket: 2 },
        "won" => claimed(Ok(Claim::Won(Won { fence, stored: Stored::default() }))),
        "won late" => Event::Claimed {
            user,
            attempt: 9,
            result: Ok(Claim::Won(Won { fence, stored: Stored::default() })),
        },
        "at b" => claimed(Ok(Claim::Owned(node("b"), Fence(4)))),
        "at a" => claimed(Ok(Claim::Owned(node("a"), Fence(4)))),
        "unreadable" => claimed(Ok(Claim::Unreadable(fence, RecordError::Newer(2)))),
        "no answer" => claimed(Err(lost)),
        "no lease" => claimed(Err(LedgerError::LeaseGone)),
        "restored" => Event::Restored { user, fence, ok: true },
        "not restored" => Event::Restored { user, fence, ok: false },
        "restored late" => Event::Restored { user, fence: Fence(4), ok: true },
        "commit" => Event::CommitWanted { user, fence, commit: 9, head: head(1) },
        "commit 2" => Event::CommitWanted { user, fence, commit: 10, head: head(2) },
        "commit old" => Event::CommitWanted { user, fence: Fence(4), commit: 11, head: head(1) },
        "done" => committed(Ok(Commit::Done(6))),
        "done, fenced" => committed(Ok(Commit::DoneThenFenced)),
        "fenced" => committed(Ok(Commit::Fenced)),
        "unknown" => committed(Err(lost)),
        "too large" => committed(Err(LedgerError::TooLarge("x"))),
        "evict" => Event::Evict { user },
        "closed" => Event::Closed { user, fence },
        "close failed" => Event::CloseFailed { user, fence },
        "released" => released(Ok(())),
        "release unknown" => released(Err(lost)),
        "stopped" => Event::Stopped { user, fence },
        "drain" => Event::Drain(Drain::Now),
        "drain idle" => Event::Drain(Drain::WhenIdle),
        "no drain" => Event::Drain(Drain::Off),
        "seen own" => Event::Seen { user, owner: Some((node("a"), fence)), revision: 5 },
        "seen gone" => Event::Seen { user, owner: None, revision: 6 },
        "seen b" => Event::Seen { user, owner: Some((node("b"), Fence(8))), revision: 8 },
        "seen old" => Event::Seen { user, owner: None, revision: 4 },
        "lease lost" => Event::LeaseLost { lease: LEASE },
        "other lost" => Event::LeaseLost { lease: LeaseId(3) },
        "tick" => Event::Tick,
        other => panic!("no event {other}"),
    }
}

/// The actions by words.
fn words(actions: &[Action]) -> String {
    let mut text = String::new();
    for action in actions {
        let word = match action {
            Action::Claim { attempt, .. } => format!("claim {attempt}"),
            Action::Restore { .. } => "restore".into(),
            Action::Grant { ticket, .. } => format!("grant {ticket}"),
            Action::Forward { ticket, node } => format!("forward {ticket} {node}"),
            Action::Refuse { ticket, why } => format!("refuse {ticket} {why:?}"),
            Action::Commit { commit, attempt, .. } => format!("commit {commit} attempt {attempt}"),
            Action::CommitEnded { commit, end: CommitEnd::Behind(_) } => format!("commit {commit} Behind"),
            Action::CommitEnded { commit, end } => format!("commit {commit} {end:?}"),
            Action::Close { .. } => "close".into(),
            Action::Release { attempt, .. } => format!("release attempt {attempt}"),
            Action::Stop { .. } => "stop".into(),
            Action::Rejoin { revoke } => format!("rejoin {revoke:?}"),
        };
        write!(text, "{}{word}", if text.is_empty() { "" } else { ", " }).unwrap();
    }
    text
}

/// Runs a line of a table: events before `>` lead to a state, the one behind it is under test, and `@` is past the deadline.
fn run(line: &str) -> String {
    let mut machine = machine();
    let (before, last) = line.split_once(" > ").unwrap_or(("", line));
    for word in before.split(", ").filter(|word| !word.is_empty()) {
        machine.handle(now(1), event(word));
    }
    match last.strip_prefix('@') {
        Some(word) => words(&machine.handle(now(TTL), event(word))),
        None => words(&machine.handle(now(2), event(last))),
    }
}

#[test]
fn every_state_answers_every_event() {
    let mut wrong = Vec::new();
    for (line, expected) in [
        // Unknown.
        ("want", "claim 1"),
        ("drain > want", "refuse 1 Draining"),
        ("drain, no drain > want", "claim 1"),
        ("@want", "refuse 1 Unavailable, rejoin Some(LeaseId(7))"),
        ("seen own", "release attempt 0"),
        ("seen b", ""),
        ("seen gone", ""),
        ("evict", ""),
        ("commit", "commit 9 Fenced"),
        // Claiming.
        ("want > want 2", ""),
        ("want > won", "restore"),
        ("want > won late", ""),
        ("want > at b", "forward 1 b"),
        ("want, want 2 > at b", "forward 1 b, forward 2 b"),
        ("want > at a", "refuse 1 Unavailable"),
        ("want > unreadable", "refuse 1 Unreadable, release attempt 0"),
        ("want > no answer", "refuse 1 Unavailable"),
        ("want > no lease", "refuse 1 Unavailable, rejoin None"),
        ("want, finish > won", "release attempt 0"),
        ("want, drain > won", "release attempt 0"),
        ("want > lease lost", "refuse 1 Unavailable, rejoin None"),
        ("want > other lost", ""),
        ("want > @won", "refuse 1 Unavailable, rejoin Some(LeaseId(7))"),
        ("want > seen own", ""),
        // Restoring.
        ("want, won > want 2", ""),
        ("want, want 2, won > restored", "grant 1, grant 2"),
        ("want, won > restored late", ""),
        ("want, won > not restored", "refuse 1 NotRestored, release attempt 0"),
        ("want, won, finish, drain > restored", "close"),
        ("want, won > seen gone", "stop"),
        ("want, won > @tick", "stop, refuse 1 Unavailable"),
        ("want, won > commit", "commit 9 Fenced"),
        // Owned.
        ("want, won, restored > want 2", "grant 2"),
        ("want, won, restored, drain > want 2", ""),
        ("want, won, restored, drain > want again", "grant 2"),
        ("want, won, restored, drain, want again, finish > finish 2", "close"),
        ("want, won, restored, drain, finish > want again", ""),
        ("want, won, drain > want again", ""),
        ("drain > want again", "refuse 2 Draining"),
        ("want again", "claim 1"),
        ("want, won, restored, drain idle > want 2", "grant 2"),
        ("want, won, restored, drain idle, want 2, finish > finish 2", "close"),
        ("want, won, restored, drain idle, want 2 > drain", ""),
        ("want, won, restored, finish > drain idle", "close"),
        ("drain idle > want", "refuse 1 Draining"),
        ("want, drain idle > won", "release attempt 0"),
        ("want, won, restored, want 2, want 3 > want", "refuse 1 Busy"),
        ("want, won, restored > evict", ""),
        ("want, won, restored, evict > finish", "close"),
        ("want, won, restored, evict, want 2, finish > finish 2", ""),
        ("want, won, restored, finish > evict", "close"),
        ("want, won, restored, finish > drain", "close"),
        ("want, won, restored > drain", ""),
        ("want, won, restored > commit", "commit 9 attempt 0"),
        ("want, won, restored > commit 2", "commit 10 Behind"),
        ("want, won, restored > commit old", "commit 11 Fenced"),
        ("want, won, restored, commit > commit 2", "commit 10 Busy"),
        ("want, won, restored, commit > done", "commit 9 Done"),
        ("want, won, restored, commit > @done", "commit 9 Done, stop"),
        ("want, won, restored, commit > done, fenced", "commit 9 Done, stop"),
        ("want, won, restored, commit > fenced", "commit 9 Fenced, stop"),
        ("want, won, restored, commit > unknown", "commit 9 attempt 1"),
        ("want, won, restored, commit, unknown > unknown", "commit 9 attempt 2"),
        ("want, won, restored, commit > @unknown", "commit 9 Unknown, stop"),
        ("want, won, restored, commit > too large", "commit 9 TooLarge"),
        ("want, won, restored, commit, done > commit 2", "commit 10 attempt 0"),
        ("want, won, restored, commit, evict > finish", ""),
        ("want, won, restored, commit, evict, finish > done", "commit 9 Done, close"),
        ("want, won, restored, commit > lease lost", "commit 9 Unknown, stop"),
        ("want, won, restored > seen own", ""),
        ("want, won, restored > seen old", ""),
        ("want, won, restored > seen gone", "stop"),
        ("want, won, restored > seen b", "stop"),
        ("want, won, restored > @tick", "stop"),
        ("want, won, restored > @want 2", "stop"),
        ("want, won, restored > @commit", "stop, commit 9 Fenced"),
        // Closing.
        ("want, won, restored, finish, evict > want 2", ""),
        ("want, won, restored, finish, evict > closed", "release attempt 0"),
        ("want, won, restored, finish, evict > close failed", "stop"),
        ("want, won, restored, finish, evict > commit", "commit 9 attempt 0"),
        ("want, won, restored, finish, evict > @closed", "stop"),
        ("want, won, restored, finish, evict > lease lost", "stop"),
        // Releasing.
        ("want, won, restored, finish, evict, closed > released", ""),
        ("want, won, restored, finish, evict, want 2, closed > released", "claim 2"),
        ("want, won, restored, finish, drain, want 2, closed > released", "refuse 2 Draining"),
        ("want, won, restored, finish, evict, closed > release unknown", "release attempt 1"),
        ("want, won, restored, finish, evict, closed > seen own", ""),
        (
            "want, won, restored, finish, evict, closed, want 2 > lease lost",
            "refuse 2 Unavailable, rejoin None",
        ),
        // Stopping.
        ("want, won, restored, seen gone > want 2", ""),
        ("want, won, restored, seen gone > stopped", "release attempt 0"),
        ("want, won, restored, seen gone, want 2, stopped > released", "claim 2"),
        ("want, won, restored, seen gone > restored", ""),
        ("want, won, restored, seen gone > closed", ""),
        ("want, won, restored, lease lost > stopped", "rejoin None"),
        ("want, won, restored, lease lost > want 2", ""),
        ("want, won, restored, lease lost > tick", ""),
    ] {
        let found = run(line);
        if found != expected {
            wrong.push(format!("{line}: {found:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn new_lease_waits_for_the_children() {
    let mut machine = machine();
    for word in ["want", "won", "restored"] {
        machine.handle(now(1), event(word));
    }
    assert_eq!(words(&machine.handle(now(TTL), Event::Tick)), "stop");
    assert_eq!(machine.deadline(), None);
    // A late answer changes nothing.
    let late = Event::Renewed { lease: LEASE, deadline: now(TTL * 9), gone: now(TTL * 9) };
    assert_eq!(machine.handle(now(TTL + 1), late), []);
    assert_eq!(machine.deadline(), None);
    assert_eq!(words(&machine.handle(now(TTL + 2), event("stopped"))), "rejoin Some(LeaseId(7))");
    // Only once.
    assert_eq!(machine.handle(now(TTL + 3), Event::Tick), []);
    let joined = Event::Joined { lease: LeaseId(8), deadline: now(TTL * 3), gone: now(TTL * 4) };
    assert_eq!(machine.handle(now(TTL + 4), joined), []);
    assert_eq!(words(&machine.handle(now(TTL + 5), event("want"))), "claim 2");
}

/// Children that cannot be ended do not keep the node out for ever: its keys are gone by then.
#[test]
fn new_lease_comes_at_the_latest_after_the_last() {
    let mut machine = machine();
    for word in ["want", "won", "restored"] {
        machine.handle(now(1), event(word));
    }
    assert_eq!(words(&machine.handle(now(TTL), Event::Tick)), "stop");
    assert_eq!(machine.handle(now(TTL * 2 - 1), Event::Tick), []);
    assert_eq!(words(&machine.handle(now(TTL * 2), Event::Tick)), "rejoin Some(LeaseId(7))");
    // The user itself stays closed until its children have ended.
    let joined = Event::Joined { lease: LeaseId(8), deadline: now(TTL * 3), gone: now(TTL * 4) };
    machine.handle(now(TTL * 2), joined);
    assert_eq!(words(&machine.handle(now(TTL * 2), event("want 2"))), "");
    assert_eq!(words(&machine.handle(now(TTL * 2), event("stopped"))), "release attempt 0");
    assert_eq!(words(&machine.handle(now(TTL * 2), event("released"))), "claim 2");
}

#[test]
fn renewal_moves_the_deadline_only_forward() {
    let mut machine = machine();
    for (deadline, expected) in [(TTL + 5, TTL + 5), (TTL - 5, TTL + 5), (TTL + 9, TTL + 9)] {
        let event = Event::Renewed { lease: LEASE, deadline: now(deadline), gone: now(deadline) };
        machine.handle(now(1), event);
        assert_eq!(machine.deadline(), Some(now(expected)));
    }
    let other = Event::Renewed { lease: LeaseId(3), deadline: now(TTL * 5), gone: now(TTL * 5) };
    machine.handle(now(1), other);
    assert_eq!(machine.deadline(), Some(now(TTL + 9)));
}

#[test]
fn full_node_refuses_further_users() {
    let mut machine = machine();
    for n in 1..=3 {
        let user = UserHash::from_bytes([n; 16]);
        let actions = machine.handle(now(1), Event::Wanted { user, ticket: u64::from(n) });
        assert_eq!(words(&actions), if n < 3 { format!("claim {n}") } else { "refuse 3 Full".into() });
    }
}

#[test]
fn moments_do_not_overflow() {
    assert_eq!(now(u64::MAX).after(Duration::MAX), now(u64::MAX));
    assert_eq!(now(5).until(now(3)), Duration::ZERO);
    assert_eq!(now(3).until(now(5)), Duration::from_nanos(2));
}
