//! Which variables the CLI prefers to a user's OAuth credentials on disk. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Keys and tokens, what names a place to read one from, and switches to a provider whose API does not take OAuth
/// credentials. Some hold a credential of the operator's that would otherwise only be of no use to the session.
const INSTEAD: [&str; 28] = [
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

/// Lines of `Name: value`, sent with each request. One of these names replaces, or joins, the user's own.
const HEADERS: &str = "ANTHROPIC_CUSTOM_HEADERS";
const HEADERS_INSTEAD: [&str; 2] = ["authorization", "x-api-key"];

/// What is left of a variable beside a user's own credentials.
pub(super) fn beside_own(name: &OsStr, value: OsString) -> Option<OsString> {
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
    // The CLI ends a line at CR LF as well; the rest of such a line is trimmed by it.
    let lines = value.as_bytes().split(|byte| *byte == b'\n').filter(is_kept);
    Some(OsString::from_vec(lines.collect::<Vec<_>>().join(&b'\n')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(name: &str, value: &str) -> Option<String> {
        beside_own(OsStr::new(name), value.into()).map(|value| value.into_string().unwrap())
    }

    #[test]
    fn operators_credentials_are_withheld() {
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
    fn headers_are_kept_but_for_credentials() {
        for (given, kept) in [
            ("X-Team: a\nAuthorization: Bearer op\nX-Other: b", "X-Team: a\nX-Other: b"),
            (" x-API-key :op", ""),
            ("authorization:\r\nX-Team: x-api-key: 1\r\n", "X-Team: x-api-key: 1\r\n"),
            ("", ""),
        ] {
            assert_eq!(left(HEADERS, given).as_deref(), Some(kept), "{given:?}");
        }
    }
}
