//! Nodes and owners as the watch has seen them. Pure.

use std::collections::{BTreeMap, HashMap};

use crate::cluster::ledger::{
    Change, Fence, Key, KeyValue, Keys, NodeId, NodeInfo, Owner, Revision, UserHash,
};

/// Maximum number of nodes in the cache.
const MAX_NODES: usize = 1000;

/// What the watch saw of an owner's key, for the decisions.
pub(super) type Seen = (UserHash, Option<(NodeId, Fence)>, Revision);

pub(super) struct Cache {
    own: NodeId,
    nodes: BTreeMap<NodeId, NodeInfo>,
    owners: HashMap<UserHash, (NodeId, Fence)>,
    /// Without those of this node, which always have room.
    max_owners: usize,
}

impl Cache {
    pub(super) fn new(own: NodeId, max_owners: usize) -> Self {
        Self { own, nodes: BTreeMap::new(), owners: HashMap::new(), max_owners }
    }

    pub(super) fn nodes(&self) -> &BTreeMap<NodeId, NodeInfo> {
        &self.nodes
    }

    pub(super) fn owner_of(&self, user: UserHash) -> Option<NodeId> {
        self.owners.get(&user).map(|(node, _)| node.clone())
    }

    pub(super) fn counts(&self) -> BTreeMap<NodeId, usize> {
        let mut counts: BTreeMap<_, _> = self.nodes.keys().map(|node| (node.clone(), 0)).collect();
        for (node, _) in self.owners.values() {
            *counts.entry(node.clone()).or_default() += 1;
        }
        counts
    }

    /// Takes over the whole state in place of the one before.
    pub(super) fn replace(&mut self, keys: &Keys, found: Vec<KeyValue>) {
        self.nodes.clear();
        self.owners.clear();
        for kv in found {
            self.put(keys, &kv);
        }
    }

    /// Takes over a change. Returns it if it is about an owner.
    pub(super) fn apply(&mut self, keys: &Keys, change: &Change) -> Option<Seen> {
        match change {
            Change::Put(kv) => {
                let user = self.put(keys, kv)?;
                Some((user, self.owners.get(&user).cloned(), kv.modified))
            }
            Change::Deleted { key, revision } => match keys.parse(key)? {
                Key::Node(id) => {
                    self.nodes.remove(&id);
                    None
                }
                Key::Owner(user) => {
                    self.owners.remove(&user);
                    Some((user, None, *revision))
                }
                Key::Head(_) => None,
            },
        }
    }

    /// The user, for the key of an owner that is taken over. A record in a newer format counts as absent: the node cannot be
    /// reached, and the user is found by its claim.
    fn put(&mut self, keys: &Keys, kv: &KeyValue) -> Option<UserHash> {
        match keys.parse(&kv.key)? {
            Key::Node(id) => {
                match NodeInfo::decode(&kv.value) {
                    Ok(info) if self.nodes.len() < MAX_NODES || self.nodes.contains_key(&id) => {
                        self.nodes.insert(id, info);
                    }
                    _ => drop(self.nodes.remove(&id)),
                }
                None
            }
            Key::Owner(user) => {
                let has_room = self.owners.len() < self.max_owners || self.owners.contains_key(&user);
                match Owner::decode(&kv.value) {
                    Ok(owner) if has_room || owner.node == self.own => {
                        // One allocation per node, not per user.
                        let known = self.nodes.get_key_value(&owner.node).map(|(id, _)| id.clone());
                        self.owners.insert(user, (known.unwrap_or(owner.node), Fence(kv.created)));
                        Some(user)
                    }
                    _ => {
                        self.owners.remove(&user);
                        None
                    }
                }
            }
            Key::Head(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ledger::LeaseId;

    fn put(key: Vec<u8>, value: &str, revision: u64) -> KeyValue {
        KeyValue { key, value: value.into(), created: revision, modified: revision, lease: LeaseId(1) }
    }

    #[test]
    fn cache_follows_changes_within_its_bounds() {
        let keys = Keys::new("/p");
        let user = |n| UserHash::from_bytes([n; 16]);
        let id: NodeId = "a".parse().unwrap();
        let mut cache = Cache::new("b".parse().unwrap(), 2);
        let node = put(keys.node(&id), r#"{"address":"http://a:1"}"#, 2);
        assert_eq!(cache.apply(&keys, &Change::Put(node.clone())), None);
        for n in 1..=3 {
            let change = Change::Put(put(keys.owner(user(n)), r#"{"node":"a"}"#, 3 + u64::from(n)));
            assert_eq!(cache.apply(&keys, &change).is_some(), n < 3, "{n}");
        }
        assert_eq!(cache.owner_of(user(1)), Some(id.clone()));
        assert_eq!(cache.owner_of(user(3)), None);
        assert_eq!(cache.counts(), BTreeMap::from([(id.clone(), 2)]));
        // Those of the node itself have room in any case, and their changes are seen.
        let own = put(keys.owner(user(4)), r#"{"node":"b"}"#, 7);
        assert!(cache.apply(&keys, &Change::Put(own)).is_some());
        let taken = put(keys.owner(user(4)), r#"{"node":"a"}"#, 8);
        assert_eq!(cache.apply(&keys, &Change::Put(taken)), Some((user(4), Some((id.clone(), Fence(8))), 8)));
        cache.apply(&keys, &Change::Deleted { key: keys.owner(user(4)), revision: 8 });
        let gone = Change::Deleted { key: keys.owner(user(1)), revision: 9 };
        assert_eq!(cache.apply(&keys, &gone), Some((user(1), None, 9)));
        assert_eq!(cache.owner_of(user(1)), None);
        // Records of other versions and kinds are no reason to fail.
        for (key, value) in [
            (keys.owner(user(2)), r#"{"format":2}"#),
            (keys.node(&id), "x"),
            (b"/p/later/x".to_vec(), "{}"),
            (keys.head(user(2)), "{}"),
        ] {
            assert_eq!(cache.apply(&keys, &Change::Put(put(key, value, 10))), None);
        }
        assert!(cache.nodes().is_empty() && cache.owner_of(user(2)).is_none());
        cache.replace(&keys, vec![node]);
        assert_eq!(cache.nodes().len(), 1);
    }
}
