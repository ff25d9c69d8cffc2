//! A caller on the way to another node of the cluster: who was authenticated here, and whom the request names.
//!
//! The other node believes it because the request is signed with the secret of the cluster. A key's digest stays here.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::{Caller, Who};
use crate::model::ids::UserId;
use crate::server::auth::keys::Entry;
use crate::support::hex;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    /// The key as a line of the key file, without its digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    is_local: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    named: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<String>,
}

impl Caller {
    /// The caller as text that fits into a header; `None` if its key cannot be written.
    pub(crate) fn to_wire(&self) -> Option<String> {
        let text = |user: &Option<UserId>| user.as_ref().map(|user| hex::encode(user.as_bytes()));
        let (key, is_local) = match &self.who {
            Who::Trusted { is_local } => (None, *is_local),
            Who::Key(key) => (Some(key.without_digest().ok()?), false),
        };
        let identity = Identity { key, is_local, named: text(&self.named), default: text(&self.default) };
        Some(URL_SAFE_NO_PAD.encode(serde_json::to_vec(&identity).ok()?))
    }

    /// The caller that another node has written; `None` if it is none.
    pub(crate) fn from_wire(text: &[u8]) -> Option<Self> {
        let identity: Identity = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let user = |text: Option<String>| match text {
            None => Some(None),
            Some(text) => UserId::new(hex::decode(&text)?).ok().map(Some),
        };
        let (named, default) = (user(identity.named)?, user(identity.default)?);
        let caller = match identity.key {
            Some(line) => Self::of_key(Entry::of_peer(&line)?.into(), named),
            None => Self::trusted(identity.is_local, named),
        };
        Some(Self { is_forwarded: true, ..caller.or(default) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::auth::keys::{KeyLimits, Role};

    fn user(name: &[u8]) -> UserId {
        UserId::new(name).unwrap()
    }

    #[test]
    fn caller_is_the_same_on_the_other_node() {
        let limits =
            KeyLimits { usd_per_day: Some(2.5), tools: Some(vec!["Read".to_owned()]), ..KeyLimits::NONE };
        let key = |role| Entry::new("k1".to_owned(), [7; 32], role, None, limits.clone());
        for (caller, owner) in [
            (Caller::trusted(true, Some(user(b"a\xff"))), Some(user(b"a\xff"))),
            (Caller::trusted(false, None).or(Some(user(b"me"))), Some(user(b"me"))),
            (Caller::trusted(false, None), None),
            (Caller::of_key(key(Role::User(user(b"alice"))).into(), None), Some(user(b"alice"))),
            (Caller::of_key(key(Role::Service).into(), Some(user(b"bob"))), Some(user(b"bob"))),
        ] {
            let text = caller.to_wire().unwrap();
            let there = Caller::from_wire(text.as_bytes()).unwrap();
            assert_eq!(there.owner(None).ok(), owner);
            assert_eq!((there.key_id(), there.limits()), (caller.key_id(), caller.limits()));
            assert_eq!((there.is_admin(), there.name()), (caller.is_admin(), caller.name()));
            assert!(!text.contains(&hex::encode(&[7; 32])), "the digest stays");
        }
        let admin = Entry::new("k2".to_owned(), [7; 32], Role::Admin, None, KeyLimits::NONE);
        let admin = Caller::of_key(admin.into(), None);
        assert!(Caller::from_wire(admin.to_wire().unwrap().as_bytes()).unwrap().is_operator());
    }

    #[test]
    fn text_of_no_caller_is_refused() {
        let wire = |json: &str| Caller::from_wire(URL_SAFE_NO_PAD.encode(json).as_bytes()).is_some();
        assert!(wire(r#"{"is_local":false}"#));
        for json in [
            "",
            "{}",
            r#"{"is_local":false,"named":""}"#,
            r#"{"is_local":false,"named":"zz"}"#,
            r#"{"is_local":false,"key":"{}"}"#,
            r#"{"is_local":false,"role":"admin"}"#,
        ] {
            assert!(!wire(json), "{json}");
        }
        assert!(Caller::from_wire(b"%").is_none());
    }
}
