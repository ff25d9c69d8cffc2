//! What went wrong on this node, and which nodes were there of late, for operators. In memory, and bounded. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::ledger::{NodeId, NodeInfo};

/// Moments that are kept of each trouble: more than the three commits in ten minutes beyond which the alert
/// `PilotlightCommitsFail` fires.
const MAX_MOMENTS: usize = 8;
/// Time for which a node that is gone is known, as for the alert `PilotlightNodesMissing`.
const KNOWN_FOR: Duration = Duration::from_secs(3600);
/// Nodes that are known: as many as the cache of the membership has.
const MAX_NODES: usize = 1000;

/// How often something has happened since the start, and when of late.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub(crate) struct Moments {
    pub(crate) total: u64,
    /// In seconds since 1970, the latest first.
    pub(crate) latest: VecDeque<f64>,
}

impl Moments {
    pub(super) fn note(&mut self, at: SystemTime) {
        self.total += 1;
        self.latest.truncate(MAX_MOMENTS - 1);
        self.latest.push_front(seconds(at));
    }
}

/// A node that was there, and is not any more.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct GoneNode {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) version: String,
    /// It was leaving, or about to, when it was seen last.
    pub(crate) draining: bool,
    /// When that was, in seconds since 1970.
    pub(crate) last_seen: f64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lately {
    /// Commits that failed, or were late.
    pub(super) not_stored: Moments,
    /// Commits that the ledger refused, because another node may have the user.
    pub(super) fenced: Moments,
    pub(super) leases_lost: Moments,
    pub(super) users_lost: Moments,
    nodes: BTreeMap<NodeId, (NodeInfo, SystemTime)>,
}

impl Lately {
    /// Takes note of the live nodes.
    pub(super) fn saw(&mut self, live: Vec<(NodeId, NodeInfo)>, now: SystemTime) {
        // After a step of the clock backwards a node is known for longer.
        self.nodes.retain(|_, (_, seen)| now.duration_since(*seen).unwrap_or_default() < KNOWN_FOR);
        for (id, info) in live {
            if self.nodes.len() < MAX_NODES || self.nodes.contains_key(&id) {
                self.nodes.insert(id, (info, now));
            }
        }
    }

    /// The known nodes that are not among the live ones, by name.
    pub(super) fn gone(&self, is_live: impl Fn(&NodeId) -> bool) -> Vec<GoneNode> {
        let gone = self.nodes.iter().filter(|(id, _)| !is_live(id));
        gone.map(|(id, (info, seen))| GoneNode {
            name: id.to_string(),
            address: info.address.clone(),
            version: info.version.clone(),
            draining: info.draining,
            last_seen: seconds(*seen),
        })
        .collect()
    }
}

fn seconds(moment: SystemTime) -> f64 {
    moment.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn node(name: &str) -> (NodeId, NodeInfo) {
        (name.parse().unwrap(), NodeInfo::new(format!("{name}:1"), 1, "1.0".to_owned()))
    }

    #[test]
    fn moments_are_counted_and_the_last_are_kept() {
        let mut moments = Moments::default();
        (1..=20).for_each(|second| moments.note(at(second)));
        assert_eq!(moments.total, 20);
        assert_eq!(moments.latest, [20.0, 19.0, 18.0, 17.0, 16.0, 15.0, 14.0, 13.0]);
    }

    #[test]
    fn gone_nodes_are_known_for_an_hour() {
        let mut lately = Lately::default();
        let (a, mut b) = (node("a"), node("b"));
        b.1.draining = true;
        lately.saw(vec![a.clone(), b], at(0));
        let is_a = |id: &NodeId| *id == a.0;
        assert_eq!(lately.gone(|_| true), []);
        for second in [2, 3599] {
            lately.saw(vec![a.clone()], at(second));
            let [gone] = &lately.gone(is_a)[..] else { panic!("one is gone") };
            assert_eq!((gone.name.as_str(), gone.draining, gone.last_seen), ("b", true, 0.0));
        }
        lately.saw(vec![a.clone()], at(3600));
        assert_eq!(lately.gone(is_a), []);
        assert_eq!(lately.gone(|_| false).len(), 1);
    }

    #[test]
    fn known_nodes_are_bounded() {
        let mut lately = Lately::default();
        for number in 0..1100 {
            lately.saw(vec![node(&format!("n{number}"))], at(1));
        }
        assert_eq!(lately.gone(|_| false).len(), MAX_NODES);
    }
}
