//! A caller on the way to another node of the cluster: who was authenticated here, and whom the request names.
//!
//! The other node believes it because the request is signed with the secret of the cluster. A key's digest stays here.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Caller, Who};
use crate::model::ids::UserId;
use crate::server::auth::identity::Owner;
use crate::server::auth::keys::Entry;
use crate::support::hex;

/// What a caller may do. A field that this version does not know may be a limit: to ignore it would widen what the caller may
/// do, and the caller is refused. So is a key with a limit that this version does not know.
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
    #[serde(default, skip_serializing_if = "Found::is_empty")]
    found: Found,
}

/// What the first node has found out of the request. It gives and takes no right: fields that this version does not know are
/// ignored.
#[derive(Default, Serialize, Deserialize)]
struct Found {
    /// The user of the credentials in the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// The credentials were unknown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_new: bool,
    /// Milliseconds for which the request may still wait for its user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wait_ms: Option<u32>,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.owner.is_none() && self.wait_ms.is_none()
    }
}

impl Caller {
    /// The caller as text that fits into a header; `None` if its key cannot be written.
    pub(crate) fn to_wire(&self) -> Option<String> {
        let text = |user: &Option<UserId>| user.as_ref().map(|user| hex::encode(user.as_bytes()));
        let (key, is_local) = match &self.who {
            Who::Trusted { is_local } => (None, *is_local),
            Who::Key(key) => (Some(key.without_digest().ok()?), false),
        };
        let owner = self.identified();
        let left = self.route_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let found = Found {
            owner: owner.map(|owner| hex::encode(owner.user().as_bytes())),
            is_new: matches!(owner, Some(Owner::New(_))),
            wait_ms: left.map(|left| left.as_millis().try_into().unwrap_or(u32::MAX)),
        };
        let identity =
            Identity { key, is_local, named: text(&self.named), default: text(&self.default), found };
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
        let Found { owner, is_new, wait_ms } = identity.found;
        let found = user(owner)?;
        let caller = match identity.key {
            Some(line) => Self::of_key(Entry::of_peer(&line)?.into(), named),
            None => Self::trusted(identity.is_local, named),
        };
        if let Some(user) = found {
            caller.identify(&if is_new { Owner::New(user) } else { Owner::Known(user) });
        }
        if let Some(left) = wait_ms {
            caller.routes_by(Instant::now() + Duration::from_millis(left.into()));
        }
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
    fn user_of_credentials_goes_along() {
        for owner in [Owner::Known(user(b"a\xff")), Owner::New(user(b"b"))] {
            let caller = Caller::trusted(true, None);
            caller.identify(&owner);
            let there = Caller::from_wire(caller.to_wire().unwrap().as_bytes()).unwrap();
            assert_eq!(there.identified(), Some(&owner));
            // It is the user of these credentials, and no right to anything else.
            assert!(there.owner(None).is_err());
        }
        assert_eq!(
            Caller::from_wire(Caller::trusted(true, None).to_wire().unwrap().as_bytes())
                .unwrap()
                .identified(),
            None
        );
    }

    /// The other node waits for what is left of the time.
    #[test]
    fn time_to_wait_for_the_user_goes_along() {
        let sent = |caller: &Caller| Caller::from_wire(caller.to_wire().unwrap().as_bytes()).unwrap();
        let caller = Caller::trusted(true, None);
        assert_eq!(sent(&caller).route_deadline(), None);
        let deadline = caller.routes_by(Instant::now() + Duration::from_secs(60));
        assert_eq!(caller.routes_by(deadline + Duration::from_secs(60)), deadline, "set once");
        let began = Instant::now();
        let there = sent(&caller).route_deadline().unwrap();
        assert!(there > Instant::now() && there <= deadline + began.elapsed(), "{there:?} {deadline:?}");
        let late = Caller::trusted(true, None);
        late.routes_by(Instant::now());
        assert!(sent(&late).route_deadline().unwrap() <= Instant::now());
    }

    /// What each version has written, as it was: another version reads it, or refuses it for a reason.
    #[test]
    fn callers_of_other_versions_are_read() {
        let read = |json: &str| Caller::from_wire(URL_SAFE_NO_PAD.encode(json).as_bytes());
        let before = read(r#"{"is_local":true,"named":"616c696365"}"#).unwrap();
        assert_eq!((before.named(), before.identified()), (Some(&user(b"alice")), None));
        let line = r#"{\"id\":\"k1\",\"role\":\"service\",\"created\":\"2026-01-02T03:04:05Z\",\"requests_per_minute\":7,\"concurrent_turns\":2,\"new_users_per_minute\":3,\"models\":[\"sonnet\"],\"policy\":\"deny\",\"tools\":[\"Read\"],\"mcp\":[],\"usd_per_day\":2.5,\"sha256\":\"0000000000000000000000000000000000000000000000000000000000000000\"}"#;
        let key = read(&format!(r#"{{"key":"{line}","is_local":false,"named":"626f62"}}"#)).unwrap();
        assert_eq!((key.key_id(), key.owner(None).ok()), (Some("k1"), Some(user(b"bob"))));
        assert_eq!(key.limits().usd_per_day, Some(2.5));
        let now = r#"{"is_local":true,"found":{"owner":"616c696365","is_new":true}}"#;
        assert_eq!(read(now).unwrap().identified(), Some(&Owner::New(user(b"alice"))));
        // A later version: what is only found out may be ignored, and no limit may be.
        let later = r#"{"is_local":true,"found":{"owner":"616c696365","later":{"x":1}}}"#;
        assert_eq!(read(later).unwrap().identified(), Some(&Owner::Known(user(b"alice"))));
        assert!(read(r#"{"is_local":true,"read_only":true}"#).is_none());
        let line = line.replace(r#"\"mcp\""#, r#"\"only_by_day\":true,\"mcp\""#);
        assert!(read(&format!(r#"{{"key":"{line}","is_local":false}}"#)).is_none());
        // What this version writes: a change of it needs nodes that read both.
        let wire = |caller: Caller| {
            String::from_utf8(URL_SAFE_NO_PAD.decode(caller.to_wire().unwrap()).unwrap()).unwrap()
        };
        assert_eq!(wire(before), r#"{"is_local":true,"named":"616c696365"}"#);
        assert_eq!(wire(read(now).unwrap()), now);
        let waits = r#"{"is_local":true,"found":{"wait_ms":0}}"#;
        assert_eq!(wire(read(waits).unwrap()), waits);
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
            r#"{"is_local":false,"found":{"owner":"zz"}}"#,
        ] {
            assert!(!wire(json), "{json}");
        }
        assert!(Caller::from_wire(b"%").is_none());
    }
}
