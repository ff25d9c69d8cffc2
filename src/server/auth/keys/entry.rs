//! One key as it stands in the file. Pure.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::Digest;
use crate::model::ids::UserId;
use crate::support::hex;

/// Whom a key is for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// One user: whoever has the key is that user.
    User(UserId),
    /// A trusted backend, which names the user of each request.
    Service,
    /// The operator: sees and stops every session, has none.
    Admin,
}

/// Limits of one key in the place of the configured ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyLimits {
    /// In the place of `http.requests_per_minute`.
    pub requests_per_minute: Option<NonZeroU32>,
    /// In the place of `http.turns_per_user`.
    pub concurrent_turns: Option<NonZeroU32>,
}

/// A key without the key.
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
    /// A key that is new.
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

    /// What it is called by, to revoke it. No secret.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whom it is for.
    #[must_use]
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The operator's note.
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// When it was made.
    #[must_use]
    pub fn created(&self) -> &str {
        &self.created
    }

    /// Its own limits.
    #[must_use]
    pub fn limits(&self) -> KeyLimits {
        self.limits
    }

    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Reads a line. The error tells what is wrong without repeating what is there.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let line: Line = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(line))
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

    /// The line.
    pub(super) fn render(&self) -> Result<String, serde_json::Error> {
        let (role, user) = match &self.role {
            // Made from text, or it could not have been asked for.
            Role::User(user) => (RoleName::User, Some(String::from_utf8_lossy(user.as_bytes()).into_owned())),
            Role::Service => (RoleName::Service, None),
            Role::Admin => (RoleName::Admin, None),
        };
        serde_json::to_string(&Line {
            id: self.id.clone(),
            role,
            user,
            label: self.label.clone(),
            created: self.created.clone(),
            requests_per_minute: self.limits.requests_per_minute,
            concurrent_turns: self.limits.concurrent_turns,
            sha256: self.digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// Whether a line of the file is one of a key, and not a comment or empty.
pub(super) fn is_entry(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
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

/// Where and which kind of fault; the parser's own words may repeat a value.
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
