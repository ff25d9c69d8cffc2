//! A user's OAuth credentials: the CLI's file of them, and the variables that the CLI prefers to it. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::transcript::config_dir;
use crate::adapter::StoredCredentials;
use crate::config::CliConfig;
use crate::model::{Dirs, OauthCredentials};

/// The field of the file that holds OAuth credentials.
const OAUTH: &str = "claudeAiOauth";

/// Variables that replace OAuth credentials: keys, tokens, files that hold one, and switches to a provider whose API
/// takes no OAuth credentials.
pub(super) const INSTEAD: [&str; 28] = [
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_AWS_API_KEY",
    "ANTHROPIC_BEDROCK_MANTLE_API_KEY",
    "ANTHROPIC_FEDERATION_RULE_ID",
    "ANTHROPIC_FOUNDRY_API_KEY",
    "ANTHROPIC_FOUNDRY_AUTH_TOKEN",
    "ANTHROPIC_IDENTITY_TOKEN",
    "ANTHROPIC_IDENTITY_TOKEN_FILE",
    "ANTHROPIC_PROFILE",
    "AWS_BEARER_TOKEN_BEDROCK",
    "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR",
    "CLAUDE_CODE_GATEWAY_TOKEN",
    "CLAUDE_CODE_GATEWAY_TOKEN_FILE_DESCRIPTOR",
    "CLAUDE_CODE_HOST_AUTH_ENV_VAR",
    "CLAUDE_CODE_OAUTH_REFRESH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR",
    "CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST",
    "CLAUDE_CODE_SESSION_ACCESS_TOKEN",
    "CLAUDE_CODE_USE_ANTHROPIC_AWS",
    "CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_USE_GATEWAY",
    "CLAUDE_CODE_USE_MANTLE",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_SESSION_INGRESS_TOKEN_FILE",
];

/// Lines of `Name: value`, sent with each request. Two of these names would replace or join the user's credentials.
const HEADERS: &str = "ANTHROPIC_CUSTOM_HEADERS";
const HEADERS_INSTEAD: [&str; 2] = ["authorization", "x-api-key"];

/// File from which the CLI reads a user's OAuth credentials.
pub(crate) fn credentials_file(dirs: &Dirs, cli: &CliConfig) -> PathBuf {
    config_dir(dirs, cli).join(".credentials.json")
}

/// The content of the CLI's credentials file.
pub(crate) fn encode_credentials(credentials: &OauthCredentials) -> Vec<u8> {
    let content = json!({ OAUTH: {
        "accessToken": credentials.access_token,
        "refreshToken": credentials.refresh_token,
        "expiresAt": credentials.expires_at,
        "scopes": credentials.scopes,
        "subscriptionType": credentials.subscription_type,
    }});
    content.to_string().into_bytes()
}

/// Reads the CLI's credentials file; `None` if it is unreadable. A field of another type counts as missing.
pub(crate) fn stored_credentials(content: &[u8]) -> Option<StoredCredentials> {
    let content: Value = serde_json::from_slice(content).ok()?;
    let oauth = content.get(OAUTH)?;
    let text = |name: &str| Some(oauth.get(name)?.as_str()?.to_owned());
    Some(StoredCredentials {
        access_token: text("accessToken"),
        refresh_token: text("refreshToken"),
        expires_at: oauth.get("expiresAt").and_then(Value::as_i64),
    })
}

/// As [`stored_credentials`], with all fields; `None` if a token is missing.
#[cfg(feature = "broker")]
pub(crate) fn oauth_credentials(content: &[u8]) -> Option<OauthCredentials> {
    let StoredCredentials { access_token, refresh_token, expires_at } = stored_credentials(content)?;
    let mut credentials =
        OauthCredentials::new(access_token?, refresh_token?, expires_at.unwrap_or_default());
    let content: Value = serde_json::from_slice(content).ok()?;
    let oauth = content.get(OAUTH)?;
    if let Some(scopes) = oauth.get("scopes").and_then(Value::as_array) {
        credentials.scopes = scopes.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    }
    if let Some(subscription) = oauth.get("subscriptionType").and_then(Value::as_str) {
        credentials.subscription_type = subscription.to_owned();
    }
    Some(credentials)
}

/// The value that a session with OAuth credentials gets of an operator's variable; `None` if the CLI would prefer the
/// variable to the credentials.
pub(crate) fn variable_beside_oauth(name: &OsStr, value: OsString) -> Option<OsString> {
    if INSTEAD.iter().any(|instead| name == *instead) {
        return None;
    }
    if name != HEADERS {
        return Some(value);
    }
    let is_kept = |line: &&[u8]| {
        let header = line.split(|byte| *byte == b':').next().unwrap_or_default().trim_ascii();
        !HEADERS_INSTEAD.iter().any(|instead| header.eq_ignore_ascii_case(instead.as_bytes()))
    };
    // The CLI also ends lines at CR LF and trims them.
    let lines = value.as_bytes().split(|byte| *byte == b'\n').filter(is_kept);
    Some(OsString::from_vec(lines.collect::<Vec<_>>().join(&b'\n')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn encoded_credentials_are_read_back() {
        let given = OauthCredentials {
            access_token: "a".into(),
            refresh_token: "r".into(),
            expires_at: 7,
            scopes: vec!["s".into()],
            subscription_type: "max".into(),
        };
        let (access_token, refresh_token) = (Some("a".to_owned()), Some("r".to_owned()));
        let expected = StoredCredentials { access_token, refresh_token, expires_at: Some(7) };
        assert_eq!(stored_credentials(&encode_credentials(&given)), Some(expected));
        #[cfg(feature = "broker")]
        assert_eq!(oauth_credentials(&encode_credentials(&given)), Some(given));
    }

    #[test]
    fn cut_or_foreign_content_holds_no_credentials() {
        for content in ["", "{", "[]", "{}", r#"{"other":{}}"#] {
            assert_eq!(stored_credentials(content.as_bytes()), None, "{content}");
        }
        let odd =
            stored_credentials(br#"{"claudeAiOauth":{"accessToken":5,"refreshToken":null,"expiresAt":"x"}}"#);
        assert_eq!(odd, Some(StoredCredentials::default()));
    }

    fn left(name: &str, value: &str) -> Option<String> {
        variable_beside_oauth(OsStr::new(name), value.into()).map(|value| value.into_string().unwrap())
    }

    #[test]
    fn operator_credentials_are_withheld() {
        for name in INSTEAD {
            assert_eq!(left(name, "1"), None, "{name}");
        }
        // The address, and what tools use.
        for name in ["ANTHROPIC_BASE_URL", "AWS_SECRET_ACCESS_KEY", "ANTHROPIC_MODEL", "PATH", "HTTPS_PROXY"]
        {
            assert_eq!(left(name, "1").as_deref(), Some("1"), "{name}");
        }
    }

    #[test]
    fn headers_with_credentials_are_removed() {
        for (given, kept) in [
            ("X-Team: a\nAuthorization: Bearer op\nX-Other: b", "X-Team: a\nX-Other: b"),
            (" x-API-key :op", ""),
            ("authorization:\r\nX-Team: x-api-key: 1\r\n", "X-Team: x-api-key: 1\r\n"),
            ("", ""),
        ] {
            assert_eq!(left(HEADERS, given).as_deref(), Some(kept), "{given:?}");
        }
    }

    proptest! {
        #[test]
        fn any_content_is_read_without_panic(content: Vec<u8>) {
            stored_credentials(&content);
        }

        #[test]
        fn cut_content_holds_no_credentials(access: String, refresh: String, cut: prop::sample::Index) {
            let given = OauthCredentials {
                access_token: access,
                refresh_token: refresh,
                expires_at: 7,
                scopes: Vec::new(),
                subscription_type: String::new(),
            };
            let content = encode_credentials(&given);
            prop_assert_eq!(stored_credentials(&content).and_then(|stored| stored.access_token), Some(given.access_token));
            prop_assert_eq!(stored_credentials(content.get(..cut.index(content.len())).unwrap()), None);
        }
    }
}
