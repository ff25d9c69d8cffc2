//! Which sessions of a user are deleted: pure.

use std::time::SystemTime;

use crate::config::Retention;
use crate::telemetry::metrics::RetentionReason;

/// What is known of one session of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) last_used: SystemTime,
    pub(super) bytes: u64,
    /// It is in memory.
    pub(super) in_use: bool,
    /// It counts for `retention.sessions_per_user`.
    pub(super) is_named: bool,
}

/// The sessions to delete by their position, least recently used first, each with the reason. Never one in use, and for
/// its size never the one that was used last.
pub(super) fn choose(
    facts: &[Fact],
    retention: &Retention,
    now: SystemTime,
) -> Vec<(usize, RetentionReason)> {
    let mut order: Vec<(usize, &Fact)> = facts.iter().enumerate().collect();
    order.sort_by_key(|(_, fact)| fact.last_used);
    let latest = order.last().map(|(at, _)| *at);
    let mut named = facts.iter().filter(|fact| fact.is_named).count();
    let mut bytes = facts.iter().fold(0_u64, |sum, fact| sum.saturating_add(fact.bytes));
    let mut chosen = Vec::new();
    // Each reason counts what the one before leaves.
    for reason in [RetentionReason::Idle, RetentionReason::Sessions, RetentionReason::Bytes] {
        order.retain(|(at, fact)| {
            let is_due = !fact.in_use
                && match reason {
                    RetentionReason::Idle => is_idle(fact, retention, now),
                    RetentionReason::Sessions => {
                        fact.is_named && retention.sessions_per_user.is_some_and(|most| named > most)
                    }
                    RetentionReason::Bytes => {
                        latest != Some(*at) && retention.bytes_per_user.is_some_and(|most| bytes > most)
                    }
                };
            if is_due {
                chosen.push((*at, reason));
                named -= usize::from(fact.is_named);
                bytes = bytes.saturating_sub(fact.bytes);
            }
            !is_due
        });
    }
    chosen
}

/// A clock that was set back makes no session idle.
fn is_idle(fact: &Fact, retention: &Retention, now: SystemTime) -> bool {
    let unused = now.duration_since(fact.last_used).unwrap_or_default();
    retention.idle().is_some_and(|idle| unused >= idle)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    const IDLE: RetentionReason = RetentionReason::Idle;
    const SESSIONS: RetentionReason = RetentionReason::Sessions;
    const BYTES: RetentionReason = RetentionReason::Bytes;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    /// A named session, last used this number of days ago.
    fn fact(days: u32, bytes: u64) -> Fact {
        Fact { last_used: now() - DAY * days, bytes, in_use: false, is_named: true }
    }

    fn limits(days: Option<u32>, sessions: Option<usize>, bytes: Option<u64>) -> Retention {
        Retention {
            idle_days: days,
            sessions_per_user: sessions,
            bytes_per_user: bytes,
            ..Retention::default()
        }
    }

    #[test]
    fn retention_table() {
        let used = |fact: Fact| Fact { in_use: true, ..fact };
        let unnamed = |fact: Fact| Fact { is_named: false, ..fact };
        let future = Fact { last_used: now() + 5 * DAY, ..fact(0, 1) };
        let all = limits(Some(30), Some(1), Some(1));
        let none = limits(None, None, None);
        type Case = (&'static str, Vec<Fact>, Retention, Vec<(usize, RetentionReason)>);
        let cases: [Case; 12] = [
            ("nothing is limited", vec![fact(9999, u64::MAX)], none, vec![]),
            ("no session", vec![], all.clone(), vec![]),
            ("a day too few", vec![fact(29, 1)], limits(Some(30), None, None), vec![]),
            ("idle", vec![fact(1, 1), fact(30, 1)], limits(Some(30), None, None), vec![(1, IDLE)]),
            ("idle, and the only one", vec![fact(30, 1)], limits(Some(30), None, None), vec![(0, IDLE)]),
            ("in use", vec![used(fact(99, 9)), used(fact(98, 9))], all.clone(), vec![]),
            ("used in the future", vec![future], limits(Some(1), None, None), vec![]),
            (
                "the least recently used go first",
                vec![fact(1, 1), fact(3, 1), fact(2, 1), fact(4, 1)],
                limits(None, Some(2), None),
                vec![(3, SESSIONS), (1, SESSIONS)],
            ),
            (
                "unnamed ones do not count",
                vec![unnamed(fact(9, 1)), fact(1, 1), unnamed(fact(8, 1))],
                limits(None, Some(1), None),
                vec![],
            ),
            (
                "until the rest fits",
                vec![fact(3, 50), fact(2, 60), fact(1, 40)],
                limits(None, None, Some(100)),
                vec![(0, BYTES)],
            ),
            (
                "the latest stays, whatever its size",
                vec![fact(1, u64::MAX), fact(2, u64::MAX)],
                limits(None, None, Some(100)),
                vec![(1, BYTES)],
            ),
            (
                "what one reason deletes does not count for the next",
                vec![fact(40, 60), fact(2, 60), fact(1, 30)],
                limits(Some(30), Some(2), Some(90)),
                vec![(0, IDLE)],
            ),
        ];
        for (name, facts, retention, expected) in cases {
            assert_eq!(choose(&facts, &retention, now()), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn retention_keeps_what_it_may_keep(
            sessions in prop::collection::vec((0_u32..100, 0_u64..100, any::<bool>(), any::<bool>()), 0..40),
            days in prop::option::of(1_u32..100),
            number in prop::option::of(1_usize..40),
            size in prop::option::of(1_u64..2000),
        ) {
            let facts: Vec<Fact> = sessions
                .into_iter()
                .map(|(days, bytes, in_use, is_named)| Fact { in_use, is_named, ..fact(days, bytes) })
                .collect();
            let retention = limits(days, number, size);
            let chosen = choose(&facts, &retention, now());
            let gone = |at: usize| chosen.iter().find(|(chosen, _)| *chosen == at).map(|(_, reason)| *reason);
            prop_assert!(chosen.iter().all(|(at, _)| !facts[*at].in_use));
            let left: Vec<usize> = (0..facts.len()).filter(|at| gone(*at).is_none()).collect();
            prop_assert_eq!(left.len() + chosen.len(), facts.len(), "no session is chosen twice");
            let latest = facts.iter().map(|fact| fact.last_used).max();
            let named = left.iter().filter(|at| facts[**at].is_named).count();
            let bytes: u64 = left.iter().map(|at| facts[*at].bytes).sum();
            for at in &left {
                let (fact, is_latest) = (&facts[*at], Some(facts[*at].last_used) == latest);
                // What stays, stays for a reason.
                let is_free = !fact.in_use;
                prop_assert!(!(is_free && is_idle(fact, &retention, now())));
                prop_assert!(!(is_free && fact.is_named && number.is_some_and(|most| named > most)));
                prop_assert!(is_latest || !(is_free && size.is_some_and(|most| bytes > most)));
                // Nothing older stays that would have made the same room.
                for (other, reason) in &chosen {
                    let comparable = match *reason {
                        IDLE => false,
                        SESSIONS => fact.is_named,
                        BYTES => !is_latest,
                    };
                    prop_assert!(!(is_free && comparable) || facts[*other].last_used <= fact.last_used);
                }
            }
            prop_assert_eq!(choose(&left.iter().map(|at| facts[*at]).collect::<Vec<_>>(), &retention, now()), []);
        }
    }
}
