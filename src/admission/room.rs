//! Whose idle child goes so that another may start, or so that memory is free. Pure.
//!
//! A user with many children gives up some before others lose their only one. Within that, the one that has been idle
//! longest goes first. What a start may take depends on what its user holds already: never a child of a user who holds
//! fewer, so that one with a hundred conversations displaces itself and not the rest.

use std::cmp::Reverse;
use std::collections::HashMap;

use tokio::time::Instant;

use crate::model::ids::UserId;

/// A child that could go.
#[derive(Debug, Clone)]
pub(crate) struct Idle {
    pub(crate) user: UserId,
    pub(crate) quiet_since: Instant,
    /// Starting it cost more than its memory is worth. It goes for a start that waits, after the others of its rank.
    pub(crate) young: bool,
    pub(crate) bytes: u64,
}

/// How many children each user has.
pub(crate) type Held = HashMap<UserId, usize>;

/// Those that go for starts that wait, `waiting` in the order in which they are let in; by their place in `idle`.
/// `leaving`: users whose children are on their way out already.
pub(crate) fn for_starts(
    waiting: &[UserId],
    mut held: Held,
    leaving: &[UserId],
    idle: &[Idle],
) -> Vec<usize> {
    for user in leaving {
        give_up(&mut held, user);
    }
    let (served, unserved) = waiting.split_at(leaving.len().min(waiting.len()));
    for user in served {
        *held.entry(user.clone()).or_default() += 1;
    }
    let mut chosen = Vec::new();
    for user in unserved {
        let own = count(&held, user);
        let may_go = |it: &Idle| it.user == *user || count(&held, &it.user) >= own;
        let Some(at) = next(idle, &held, &chosen, may_go) else { continue };
        if let Some(it) = idle.get(at) {
            give_up(&mut held, &it.user);
        }
        *held.entry(user.clone()).or_default() += 1;
        chosen.push(at);
    }
    chosen
}

/// Children that go so that at least `wanted` bytes are free.
pub(crate) fn for_bytes(wanted: u64, mut held: Held, idle: &[Idle]) -> Vec<usize> {
    let (mut chosen, mut freed) = (Vec::new(), 0_u64);
    while freed < wanted {
        let Some((at, it)) =
            next(idle, &held, &chosen, |it| !it.young).and_then(|at| Some((at, idle.get(at)?)))
        else {
            break;
        };
        give_up(&mut held, &it.user);
        freed = freed.saturating_add(it.bytes);
        chosen.push(at);
    }
    chosen
}

fn next(idle: &[Idle], held: &Held, chosen: &[usize], may_go: impl Fn(&Idle) -> bool) -> Option<usize> {
    let left = idle.iter().enumerate().filter(|(at, it)| !chosen.contains(at) && may_go(it));
    left.min_by_key(|(_, it)| (Reverse(count(held, &it.user)), it.young, it.quiet_since)).map(|(at, _)| at)
}

fn count(held: &Held, user: &UserId) -> usize {
    held.get(user).copied().unwrap_or_default()
}

fn give_up(held: &mut Held, user: &UserId) {
    if let Some(count) = held.get_mut(user) {
        *count = count.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    /// Children by user, youth and seconds of rest.
    fn idle(children: &[(&str, bool, u64)]) -> Vec<Idle> {
        let now = Instant::now() + Duration::from_secs(10_000);
        let child = |(name, young, rest): &(&str, bool, u64)| Idle {
            user: user(name),
            quiet_since: now - Duration::from_secs(*rest),
            young: *young,
            bytes: 10,
        };
        children.iter().map(child).collect()
    }

    fn held(counts: &[(&str, usize)]) -> Held {
        counts.iter().map(|(name, count)| (user(name), *count)).collect()
    }

    #[test]
    fn room_one_child_each_longest_idle_goes() {
        let children = idle(&[("a", false, 1), ("b", false, 3), ("c", false, 2)]);
        let counts = held(&[("a", 1), ("b", 1), ("c", 1)]);
        assert_eq!(for_starts(&[user("d"), user("e")], counts.clone(), &[], &children), [1, 2]);
        assert_eq!(for_bytes(11, counts, &children), [1, 2]);
    }

    #[test]
    fn room_user_with_most_children_goes_first() {
        let children = idle(&[("a", false, 1), ("a", false, 2), ("b", false, 100)]);
        let counts = held(&[("a", 3), ("b", 1)]);
        assert_eq!(for_starts(&[user("c")], counts.clone(), &[], &children), [1]);
        // As many as b then has, the longest idle.
        assert_eq!(for_bytes(25, counts, &children), [1, 0, 2]);
    }

    #[test]
    fn room_many_conversations_displace_nobody_else() {
        let children = idle(&[("b", false, 100), ("c", false, 50)]);
        let counts = held(&[("a", 6), ("b", 1), ("c", 1)]);
        assert_eq!(for_starts(&[user("a"), user("a")], counts, &[], &children), [] as [usize; 0]);
        let own = idle(&[("a", false, 1), ("b", false, 100)]);
        assert_eq!(for_starts(&[user("a")], held(&[("a", 6), ("b", 1)]), &[], &own), [0]);
    }

    #[test]
    fn room_waiting_start_takes_a_young_child() {
        let children = idle(&[("a", true, 1), ("a", true, 2)]);
        for (waiting, has) in [("b", 8), ("a", 8), ("b", 1)] {
            assert_eq!(
                for_starts(&[user(waiting)], held(&[("a", has)]), &[], &children),
                [1],
                "{waiting} {has}"
            );
        }
        // Its room is on its way already.
        assert_eq!(for_starts(&[user("b")], held(&[("a", 8)]), &[user("a")], &children), [] as [usize; 0]);
        // Of two users alike the child goes that has lived longer, also if it rests for less long.
        let children = idle(&[("a", true, 5), ("c", false, 1)]);
        assert_eq!(for_starts(&[user("b")], held(&[("a", 1), ("c", 1)]), &[], &children), [1]);
        assert_eq!(for_bytes(11, held(&[("a", 1), ("c", 1)]), &children), [1], "not for memory alone");
    }

    /// A user that lost its only child in this round counts as new for its own start.
    #[test]
    fn room_displaced_user_takes_another_child() {
        let children = idle(&[("a", false, 1), ("b", true, 1)]);
        let counts = held(&[("a", 1), ("b", 1)]);
        assert_eq!(for_starts(&[user("b"), user("a")], counts, &[], &children), [0, 1]);
    }

    proptest! {
        #[test]
        fn room_never_leaves_a_user_poorer_than_who_takes(
            children in prop::collection::vec((0u8..4, any::<bool>(), 0u64..100), 0..20),
            waiting in prop::collection::vec(0u8..6, 0..20),
        ) {
            let name = |number: &u8| user(&format!("user {number}"));
            let mut counts = Held::new();
            let mut all = Vec::new();
            for (number, young, rest) in &children {
                *counts.entry(name(number)).or_default() += 1;
                let quiet_since = Instant::now() + Duration::from_secs(1000 - rest);
                all.push(Idle { user: name(number), quiet_since, young: *young, bytes: 1 });
            }
            let waiting: Vec<_> = waiting.iter().map(name).collect();
            let chosen = for_starts(&waiting, counts.clone(), &[], &all);
            let mut once = chosen.clone();
            once.sort_unstable();
            once.dedup();
            prop_assert_eq!(once.len(), chosen.len());
            prop_assert!(chosen.len() <= waiting.len());
            let mut left = counts.clone();
            for (at, taker) in chosen.iter().zip(waiting.iter().filter(|_| chosen.len() == waiting.len())) {
                let giver = &all[*at].user;
                prop_assert!(giver == taker || count(&left, giver) >= count(&left, taker));
                give_up(&mut left, giver);
                *left.entry(taker.clone()).or_default() += 1;
            }
        }
    }
}
