//! One key in the file: digest, role, limits. Pure.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::Digest;
use crate::model::ids::UserId;
use crate::support::hex;

/// Role of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// One user.
    User(UserId),
    /// A trusted backend that names the user of each request.
    Service,
    /// The operator, who sees and stops every session and has none.
    Admin,
}

/// Limits of one key that override the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyLimits {
    /// Overrides `http.requests_per_minute`.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Overrides `http.turns_per_user`.
    pub concurrent_turns: Option<NonZeroU32>,
}

/// A key without its secret.
#[derive(Clone, Debug)]
pub struct Entry {
    id: String,
    digest: Digest,
    role: Role,
    label: Option<String>,
    created: String,
    limits: KeyLimits,
}

impl Entry {
    pub(crate) fn new(
        id: String,
        digest: Digest,
        role: Role,
        label: Option<String>,
        limits: KeyLimits,
    ) -> Self {
        let created = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        Self { id, digest, role, label, created, limits }
    }

    /// Id for listing and revoking. No secret.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Role.
    #[must_use]
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// Label.
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// Time of creation.
    #[must_use]
    pub fn created(&self) -> &str {
        &self.created
    }

    /// Limits of this key.
    #[must_use]
    pub fn limits(&self) -> KeyLimits {
        self.limits
    }

    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Parses a line. The error does not repeat its content.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let line: EntryRecord =
            serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(line))
                .map_err(|error| problem(&error.path().to_string(), error.inner()))?;
        let digest = hex::decode_array(&line.sha256).ok_or("sha256: 64 hexadecimal digits are expected")?;
        let role = match (line.role, line.user) {
            (RoleName::User, Some(user)) => {
                Role::User(UserId::new(user).map_err(|error| format!("user: {error}"))?)
            }
            (RoleName::User, None) => return Err("user: is missing".to_owned()),
            (_, Some(_)) => return Err("user: only a key of the role \"user\" has one".to_owned()),
            (RoleName::Service, None) => Role::Service,
            (RoleName::Admin, None) => Role::Admin,
        };
        let limits = KeyLimits {
            requests_per_minute: line.requests_per_minute,
            concurrent_turns: line.concurrent_turns,
        };
        Ok(Self { id: line.id, digest, role, label: line.label, created: line.created, limits })
    }

    pub(super) fn render(&self) -> Result<String, serde_json::Error> {
        let (role, user) = match &self.role {
            // Checked when created.
            Role::User(user) => (RoleName::User, Some(String::from_utf8_lossy(user.as_bytes()).into_owned())),
            Role::Service => (RoleName::Service, None),
            Role::Admin => (RoleName::Admin, None),
        };
        serde_json::to_string(&EntryRecord {
            id: self.id.clone(),
            role,
            user,
            label: self.label.clone(),
            created: self.created.clone(),
            requests_per_minute: self.limits.requests_per_minute,
            concurrent_turns: self.limits.concurrent_turns,
            sha256: hex::encode(&self.digest),
        })
    }
}

/// Whether a line is an entry, not a comment or empty.
pub(super) fn is_entry(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryRecord {
    id: String,
    role: RoleName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    created: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests_per_minute: Option<NonZeroU32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    concurrent_turns: Option<NonZeroU32>,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RoleName {
    User,
    Service,
    Admin,
}

/// Position and kind of the error; the parser's own message may repeat a value.
fn problem(path: &str, error: &serde_json::Error) -> String {
    let text = error.to_string();
    let harmless =
        ["missing field", "unknown field", "trailing", "EOF"].iter().any(|kind| text.starts_with(kind));
    match (path, harmless) {
        (".", true) => text,
        (".", false) => "a JSON object is expected".to_owned(),
        (path, true) => format!("{path}: {text}"),
        (path, false) => format!("{path}: has a value that is not allowed there"),
    }
}
