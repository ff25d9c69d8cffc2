//! The user in the `metadata.user_id` that `claude` and the Agent SDKs send. Pure.
//!
//! It holds a device, an account if there is one, and a client session that changes with each start. Users cannot set
//! it. So a key's user takes precedence; without one, the account or the device is the user.

use serde::Deserialize;

use crate::server::dialect::message::Object;

/// Form of 2.1: JSON in a string.
#[derive(Deserialize)]
struct ChangedFiles {
    device_id: String,
    #[serde(default)]
    account_uuid: String,
    #[serde(rename = "session_id")]
    _session: String,
}

/// The user of such an id; `None` for ids of other clients.
pub(super) fn of(user_id: &str) -> Option<String> {
    let (device, account) = match serde_json::from_str::<Object<ChangedFiles>>(user_id) {
        Ok(Object(ChangedFiles { device_id, account_uuid, .. })) => (device_id, account_uuid),
        // Form of earlier versions: `user_DEVICE_account_ACCOUNT_session_SESSION`.
        Err(_) => {
            let (rest, _) = user_id.strip_prefix("user_")?.split_once("_session_")?;
            let (device, account) = rest.split_once("_account_")?;
            (device.to_owned(), account.to_owned())
        }
    };
    match (device.as_str(), account.as_str()) {
        ("", "") => None,
        (device, "") => Some(format!("claude-device-{device}")),
        (_, account) => Some(format!("claude-account-{account}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_or_device_is_the_user() {
        let written = |account: &str, session: &str| {
            format!("{{\"device_id\":\"d\",\"account_uuid\":\"{account}\",\"session_id\":\"{session}\"}}")
        };
        for session in ["s", "t"] {
            assert_eq!(of(&written("", session)).as_deref(), Some("claude-device-d"));
            assert_eq!(of(&written("a", session)).as_deref(), Some("claude-account-a"));
            assert_eq!(of(&format!("user_d_account__session_{session}")).as_deref(), Some("claude-device-d"));
            assert_eq!(
                of(&format!("user_d_account_a_session_{session}")).as_deref(),
                Some("claude-account-a")
            );
        }
        for own in
            ["alice", "", "user_alice", "user_a_session_b", "{}", "{\"device_id\":7}", "[\"d\",\"a\",\"s\"]"]
        {
            assert_eq!(of(own), None, "{own}");
        }
    }
}
