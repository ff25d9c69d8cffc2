//! The node for a user without an owner: weighted rendezvous hashing.
//!
//! Every node calculates the same choice from the same list. A node that comes takes its share from all others, and the
//! users of a node that leaves spread over those that stay; no other user moves. The choice is advice: the claim decides.

use sha2::{Digest, Sha256};

use super::ledger::{NodeId, NodeInfo, UserHash};

/// The node that should own a user: in proportion to the room of each. Draining nodes and those of `except` are left out.
/// A full node is chosen only if all are full. `None` without a node.
pub(crate) fn choose<'a>(
    user: UserHash,
    nodes: impl Iterator<Item = (&'a NodeId, &'a NodeInfo)> + Clone,
    except: &[NodeId],
) -> Option<&'a NodeId> {
    let open = nodes.filter(|(id, info)| !info.draining && !except.contains(*id));
    let has_room = open.clone().any(|(_, info)| info.room > 0);
    let weighted = open.map(|(id, info)| (id, if has_room { f64::from(info.room) } else { 1.0 }));
    let scored = weighted.map(|(id, weight)| (score(user, id, weight), id));
    // Names differ, so that the order is total.
    scored.max_by(|(a, a_id), (b, b_id)| a.total_cmp(b).then_with(|| a_id.cmp(b_id))).map(|(_, id)| id)
}

/// −w / ln(u) for a hash u between 0 and 1: the largest one belongs to a node with the probability of its weight's share.
fn score(user: UserHash, id: &NodeId, weight: f64) -> f64 {
    let hash = Sha256::new().chain_update(user.as_bytes()).chain_update(id.as_str().as_bytes()).finalize();
    let bits = hash.iter().take(7).fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte)) >> 3;
    // 53 bits are exact in a f64; the half keeps it off 0 and 1.
    #[allow(clippy::cast_precision_loss, reason = "53 bits are exact")]
    let unit = (bits as f64 + 0.5) / (1_u64 << 53) as f64;
    -weight / unit.ln()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Nodes = BTreeMap<NodeId, NodeInfo>;

    fn nodes(rooms: &[u32]) -> Nodes {
        let node = |(n, room): (usize, &u32)| {
            (format!("node-{n}").parse().unwrap(), NodeInfo::new("http://a:1".into(), *room, "1".into()))
        };
        rooms.iter().enumerate().map(node).collect()
    }

    fn user(n: u64) -> UserHash {
        let digest: [u8; 32] = Sha256::digest(n.to_be_bytes()).into();
        UserHash::from_bytes(digest[..16].try_into().unwrap())
    }

    fn pick(n: u64, nodes: &Nodes) -> Option<NodeId> {
        choose(user(n), nodes.iter(), &[]).cloned()
    }

    #[test]
    fn choice_leaves_out_draining_and_full_nodes() {
        let name = |n: usize| format!("node-{n}").parse::<NodeId>().unwrap();
        // Rooms, which of them drain, which are excepted, the ones that may be chosen.
        type Row<'a> = (&'a [u32], &'a [usize], &'a [usize], &'a [usize]);
        let table: &[Row<'_>] = &[
            (&[], &[], &[], &[]),
            (&[5], &[], &[], &[0]),
            (&[5], &[0], &[], &[]),
            (&[5, 0, 5], &[], &[], &[0, 2]),
            (&[0, 0, 0], &[], &[], &[0, 1, 2]),
            (&[0, 0, 5], &[2], &[], &[0, 1]),
            (&[5, 5, 5], &[1], &[0], &[2]),
            (&[5, 0, 5], &[0], &[2], &[1]),
        ];
        for (rooms, draining, except, possible) in table {
            let mut nodes = nodes(rooms);
            for n in *draining {
                nodes.get_mut(&name(*n)).unwrap().draining = true;
            }
            let except: Vec<_> = except.iter().map(|n| name(*n)).collect();
            let mut found: Vec<_> =
                (0..200).filter_map(|n| choose(user(n), nodes.iter(), &except).cloned()).collect();
            found.sort();
            found.dedup();
            assert_eq!(
                found,
                possible.iter().map(|n| name(*n)).collect::<Vec<_>>(),
                "{rooms:?} {draining:?}"
            );
        }
    }

    /// Versions that run side by side must choose alike: these choices, calculated by another program, never change.
    #[test]
    fn choice_is_the_same_in_every_version() {
        let nodes = nodes(&[10, 20, 30]);
        let found: Vec<_> = (0..8).map(|n| pick(n, &nodes).unwrap().to_string()).collect();
        assert_eq!(found, ["node-2", "node-1", "node-2", "node-2", "node-2", "node-2", "node-1", "node-1"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Shares are within five standard deviations of the room's.
        #[test]
        fn shares_are_in_proportion_to_room(rooms in prop::collection::vec(1_u32..100, 1..8), seed: u32) {
            const USERS: u32 = 2000;
            let nodes = nodes(&rooms);
            let mut counts = BTreeMap::new();
            for n in 0..USERS {
                let id = pick((u64::from(seed) << 32) + u64::from(n), &nodes).unwrap();
                *counts.entry(id).or_insert(0_u32) += 1;
            }
            let total: u32 = rooms.iter().sum();
            for (id, info) in &nodes {
                let share = f64::from(info.room) / f64::from(total);
                let expected = share * f64::from(USERS);
                let deviation = (expected * (1.0 - share)).sqrt().max(1.0);
                let count = f64::from(counts.get(id).copied().unwrap_or(0));
                prop_assert!((count - expected).abs() <= 5.0 * deviation, "{id}: {count}, not {expected}");
            }
        }

        /// Only users of the node that leaves move; the same read backwards is a node that comes.
        #[test]
        fn only_users_of_a_leaving_node_move(
            rooms in prop::collection::vec(1_u32..100, 2..8), leaving: prop::sample::Index, seed: u32,
        ) {
            let before = nodes(&rooms);
            let id = before.keys().nth(leaving.index(before.len())).unwrap().clone();
            let mut after = before.clone();
            after.remove(&id);
            for n in 0..300 {
                let n = (u64::from(seed) << 32) + n;
                let (old, new) = (pick(n, &before).unwrap(), pick(n, &after).unwrap());
                prop_assert!(old == new || old == id);
                prop_assert_ne!(new, id.clone());
            }
        }

        /// More room only draws users to the node itself.
        #[test]
        fn more_room_draws_users_to_that_node(rooms in prop::collection::vec(1_u32..100, 2..8), seed: u32) {
            let before = nodes(&rooms);
            let mut after = before.clone();
            let (id, info) = after.iter_mut().next().unwrap();
            let id = id.clone();
            info.room *= 2;
            for n in 0..300 {
                let n = (u64::from(seed) << 32) + n;
                let (old, new) = (pick(n, &before).unwrap(), pick(n, &after).unwrap());
                prop_assert!(old == new || new == id);
            }
        }
    }
}
