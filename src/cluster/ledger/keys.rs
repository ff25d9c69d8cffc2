//! Names of the keys.

use super::records::{NodeId, UserHash};

/// What a key is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    Node(NodeId),
    Owner(UserHash),
    Head(UserHash),
}

/// The keys below the prefix of a cluster, `/pilotlight/` for example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys(String);

impl Keys {
    /// Keys below a prefix. A missing slash at its end is added.
    pub(crate) fn new(prefix: &str) -> Self {
        Self(format!("{}/", prefix.trim_end_matches('/')))
    }

    pub(crate) fn node(&self, id: &NodeId) -> Vec<u8> {
        format!("{}node/{}", self.0, id.as_str()).into_bytes()
    }

    pub(crate) fn owner(&self, user: UserHash) -> Vec<u8> {
        format!("{}owner/{user}", self.0).into_bytes()
    }

    pub(crate) fn head(&self, user: UserHash) -> Vec<u8> {
        format!("{}head/{user}", self.0).into_bytes()
    }

    /// Start and end of the range of all nodes and owners. `head/` sorts before both: one watch has all but the heads.
    pub(crate) fn watched(&self) -> (Vec<u8>, Vec<u8>) {
        // '0' is the byte after '/'.
        (format!("{}node/", self.0).into_bytes(), format!("{}owner0", self.0).into_bytes())
    }

    /// Start and end of the range of all heads.
    pub(crate) fn heads(&self) -> (Vec<u8>, Vec<u8>) {
        (format!("{}head/", self.0).into_bytes(), format!("{}head0", self.0).into_bytes())
    }

    /// What a key is about; `None` for a key of another kind or version.
    pub(crate) fn parse(&self, key: &[u8]) -> Option<Key> {
        let name = std::str::from_utf8(key).ok()?.strip_prefix(&self.0)?;
        match name.split_once('/')? {
            ("node", id) => id.parse().ok().map(Key::Node),
            ("owner", user) => user.parse().ok().map(Key::Owner),
            ("head", user) => user.parse().ok().map(Key::Head),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_parsed_as_they_are_named() {
        for prefix in ["/pilotlight/", "/pilotlight", "a/b/", ""] {
            let keys = Keys::new(prefix);
            let (id, user): (NodeId, UserHash) =
                ("node-1".parse().unwrap(), "00112233445566778899aabbccddeeff".parse().unwrap());
            assert_eq!(keys.parse(&keys.node(&id)), Some(Key::Node(id)));
            assert_eq!(keys.parse(&keys.owner(user)), Some(Key::Owner(user)));
            assert_eq!(keys.parse(&keys.head(user)), Some(Key::Head(user)));
            for foreign in ["x", "/pilotlight/later/1", "/pilotlight/owner/xy", "/pilotlight/node/", "\u{e9}"]
            {
                assert_eq!(keys.parse(foreign.as_bytes()), None, "{foreign}");
            }
            assert_eq!(keys.parse(&[0xff, 0]), None);
        }
    }

    #[test]
    fn watched_range_has_no_heads() {
        let keys = Keys::new("/p");
        let (start, end) = keys.watched();
        let user = UserHash::from_bytes([0xff; 16]);
        let id: NodeId = "z".parse().unwrap();
        let is_inside = |key: Vec<u8>| key >= start && key < end;
        assert!(is_inside(keys.node(&id)) && is_inside(keys.owner(user)) && !is_inside(keys.head(user)));
        let (start, end) = keys.heads();
        assert!(keys.head(user) >= start && keys.head(user) < end);
    }
}
