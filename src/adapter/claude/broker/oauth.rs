//! Renewal of OAuth tokens, as the CLI does it.

use serde::Deserialize;
use serde_json::json;

use crate::model::OauthCredentials;

/// The address that renews tokens.
pub(crate) const TOKEN_URL: &str = "https://platform.claude.com/v1/oauth/token";
/// The CLI's public identity. Tokens are bound to it.
const CLIENT_ID: &str = "9d1c250a-e61b-44d9-88ed-5944d1962f5e";

/// Body (JSON) of the request for new OAuth tokens.
pub(crate) fn refresh_request(credentials: &OauthCredentials) -> Vec<u8> {
    let request = json!({
        "grant_type": "refresh_token",
        "refresh_token": credentials.refresh_token,
        "client_id": CLIENT_ID,
        "scope": credentials.scopes.join(" "),
    });
    request.to_string().into_bytes()
}

#[derive(Deserialize)]
struct Response {
    access_token: String,
    /// The former one stays valid without.
    refresh_token: Option<String>,
    /// Seconds.
    expires_in: i64,
    scope: Option<String>,
}

/// New OAuth credentials from the response; `None` if it has none. `now`: milliseconds since 1970.
pub(crate) fn refreshed(response: &[u8], before: &OauthCredentials, now: i64) -> Option<OauthCredentials> {
    let response: Response = serde_json::from_slice(response).ok()?;
    if response.access_token.is_empty() || response.expires_in <= 0 {
        return None;
    }
    let mut renewed = before.clone();
    renewed.access_token = response.access_token;
    renewed.expires_at = now.saturating_add(response.expires_in.saturating_mul(1000));
    if let Some(refresh_token) = response.refresh_token.filter(|token| !token.is_empty()) {
        renewed.refresh_token = refresh_token;
    }
    if let Some(scope) = response.scope.filter(|scope| !scope.trim().is_empty()) {
        renewed.scopes = scope.split_whitespace().map(str::to_owned).collect();
    }
    Some(renewed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refresh_keeps_what_the_response_omits() {
        let before = OauthCredentials::new("a", "r", 1);
        let request: serde_json::Value = serde_json::from_slice(&refresh_request(&before)).unwrap();
        assert_eq!(request["refresh_token"], "r");
        assert_eq!(request["scope"], "user:inference user:profile");
        let renewed = refreshed(br#"{"access_token":"b","expires_in":60}"#, &before, 1000).unwrap();
        assert_eq!((renewed.access_token.as_str(), renewed.refresh_token.as_str()), ("b", "r"));
        assert_eq!((renewed.expires_at, renewed.scopes), (61_000, before.scopes.clone()));
        let all = br#"{"access_token":"b","refresh_token":"s","expires_in":60,"scope":"x y","other":1}"#;
        let renewed = refreshed(all, &before, 0).unwrap();
        assert_eq!((renewed.refresh_token.as_str(), renewed.scopes.len()), ("s", 2));
    }

    #[test]
    fn response_without_token_is_none() {
        let before = OauthCredentials::new("a", "r", 1);
        for response in [
            "",
            "{}",
            "[]",
            r#"{"access_token":"b"}"#,
            r#"{"access_token":"","expires_in":1}"#,
            r#"{"error":"x"}"#,
        ] {
            assert_eq!(refreshed(response.as_bytes(), &before, 0), None, "{response}");
        }
    }
}
