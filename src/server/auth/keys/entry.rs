//! One key in the file: digest, role, limits. Pure.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::Digest;
use crate::config::{PermissionPolicy, is_server_name};
use crate::model::ids::UserId;
use crate::model::is_model_name;
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

/// Limits of one key: numbers that override the configuration, and what its requests may use of what the configuration
/// allows.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct KeyLimits {
    /// Overrides `http.requests_per_minute`.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Overrides `http.turns_per_user`.
    pub concurrent_turns: Option<NonZeroU32>,
    /// Users without a session whom a service may name in a minute.
    pub new_users_per_minute: Option<NonZeroU32>,
    /// Models that requests may name; the first serves those that name none.
    pub models: Option<Vec<String>>,
    /// Policy for tools that need a permission, if stricter than `permissions.policy`.
    pub policy: Option<PermissionPolicy>,
    /// The CLI's own tools that exist, by name.
    pub tools: Option<Vec<String>>,
    /// Configured MCP servers that requests may name. Their own definitions are refused.
    pub mcp: Option<Vec<String>>,
    /// Maximum cost per user and day, in US dollars.
    pub usd_per_day: Option<f64>,
}

impl KeyLimits {
    pub(crate) const NONE: Self = Self {
        requests_per_minute: None,
        concurrent_turns: None,
        new_users_per_minute: None,
        models: None,
        policy: None,
        tools: None,
        mcp: None,
        usd_per_day: None,
    };

    /// Whether requests are restricted in what they may use.
    pub(crate) fn restrict_use(&self) -> bool {
        let unrestricted = Self {
            requests_per_minute: self.requests_per_minute,
            concurrent_turns: self.concurrent_turns,
            new_users_per_minute: self.new_users_per_minute,
            ..Self::NONE
        };
        *self != unrestricted
    }

    /// The first invalid limit, with what is expected of it.
    pub(crate) fn problem(&self, role: &Role) -> Option<&'static str> {
        let is_tool = |name: &String| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
            (1..=LONGEST_TOOL).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('-')
        };
        if *role == Role::Admin && self.restrict_use() {
            return Some("role: a key of the role \"admin\" has no turns that could be restricted");
        }
        if *role != Role::Service && self.new_users_per_minute.is_some() {
            return Some("new_users_per_minute: only a key of the role \"service\" names users");
        }
        if self.models.as_ref().is_some_and(|it| it.is_empty() || !it.iter().all(|name| is_model_name(name)))
        {
            return Some("models: a list of at least one model, such as [\"sonnet\"], is expected");
        }
        if !self.tools.iter().flatten().all(is_tool) {
            return Some("tools: a list of names of tools, such as [\"Bash\", \"Read\"], is expected");
        }
        if !self.mcp.iter().flatten().all(|name| is_server_name(name)) {
            return Some("mcp: a list of names of configured servers is expected");
        }
        if self.usd_per_day.is_some_and(|usd| !(usd > 0.0 && usd <= MOST_USD)) {
            return Some("usd_per_day: an amount above 0 and up to a million, such as 2.5, is expected");
        }
        None
    }
}

/// Longest name of a tool, as the model's API has it.
const LONGEST_TOOL: usize = 128;
/// More is a typing error.
const MOST_USD: f64 = 1e6;

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
    pub fn limits(&self) -> &KeyLimits {
        &self.limits
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
            new_users_per_minute: line.new_users_per_minute,
            models: line.models,
            policy: line.policy,
            tools: line.tools,
            mcp: line.mcp,
            usd_per_day: line.usd_per_day,
        };
        if let Some(problem) = limits.problem(&role) {
            return Err(problem.to_owned());
        }
        Ok(Self { id: line.id, digest, role, label: line.label, created: line.created, limits })
    }

    /// As a line of the file, for another node of the cluster: it has no use for the digest.
    #[cfg(feature = "cluster")]
    pub(crate) fn without_digest(&self) -> Result<String, serde_json::Error> {
        Self { digest: [0; 32], ..self.clone() }.render()
    }

    /// The key of a caller whom another node of the cluster has authenticated.
    #[cfg(feature = "cluster")]
    pub(crate) fn of_peer(line: &str) -> Option<Self> {
        Self::parse(line).ok()
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
            new_users_per_minute: self.limits.new_users_per_minute,
            models: self.limits.models.clone(),
            policy: self.limits.policy,
            tools: self.limits.tools.clone(),
            mcp: self.limits.mcp.clone(),
            usd_per_day: self.limits.usd_per_day,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    new_users_per_minute: Option<NonZeroU32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    models: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy: Option<PermissionPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tools: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mcp: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usd_per_day: Option<f64>,
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
