//! A user's credentials.

/// A user's OAuth credentials, in the form in which clients send them.
#[derive(Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[non_exhaustive]
pub struct OauthCredentials {
    /// The bearer token.
    pub access_token: String,
    /// What renews it.
    pub refresh_token: String,
    /// When it ends, in milliseconds since 1970.
    pub expires_at: i64,
    /// What it may be used for.
    #[serde(default = "default_scopes")]
    pub scopes: Vec<String>,
    /// The plan.
    #[serde(default = "default_subscription")]
    pub subscription_type: String,
}

impl OauthCredentials {
    /// Credentials with the scopes and the plan that clients omit.
    #[must_use]
    pub fn new(access_token: impl Into<String>, refresh_token: impl Into<String>, expires_at: i64) -> Self {
        Self {
            access_token: access_token.into(),
            refresh_token: refresh_token.into(),
            expires_at,
            scopes: default_scopes(),
            subscription_type: default_subscription(),
        }
    }
}

fn default_scopes() -> Vec<String> {
    ["user:inference", "user:profile"].map(str::to_owned).to_vec()
}

fn default_subscription() -> String {
    "max".to_owned()
}

impl std::fmt::Debug for OauthCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OauthCredentials(redacted)")
    }
}
