//! The vocabulary that all layers share. Values without behaviour.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

mod history;
pub mod ids;
mod mcp;
mod permission;
mod prompt;
mod spoken;
mod steer;
mod title;
mod tools;

pub use history::{Block, History, Message, Role};
pub use mcp::{McpApplied, McpError, McpServerStatus};
pub use permission::{Decision, PendingPermission, PermissionError, PermissionRequest, RequestKind};
pub use prompt::{Prompt, PromptRefused};
pub use spoken::{ContextCategory, ContextUsage, MessagePage, SpokenMessage};
pub use steer::{LONGEST_STEER, SteerError};
pub(crate) use title::first_words;
pub use tools::{CallerTool, InvalidTool, ToolCall, ToolResult};

/// Directories of a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// Working directory.
    pub work: PathBuf,
    /// `HOME`, with the CLI's own files.
    pub home: PathBuf,
    /// `TMPDIR`.
    pub tmp: PathBuf,
}

/// What a session does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionState {
    /// No child; the next message starts one.
    Dormant,
    /// A child is being started.
    Starting,
    /// A warm child waits.
    Idle,
    /// A turn runs.
    Busy,
    /// The child is being stopped.
    Stopping,
    /// A restart waits after a crash.
    Backoff,
    /// Too many crashes; see [`crate::TurnError::CircuitOpen`].
    Failed,
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dormant => "dormant",
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
        })
    }
}

/// Tokens of a turn, as the model's API counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Usage {
    /// Read, not from the cache.
    pub input_tokens: u64,
    /// Written.
    pub output_tokens: u64,
    /// Written to the cache.
    pub cache_creation_input_tokens: u64,
    /// Read from the cache.
    pub cache_read_input_tokens: u64,
}

impl Usage {
    /// These tokens without `others`, which are a part of them.
    pub(crate) fn without(self, others: &Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_sub(others.input_tokens),
            output_tokens: self.output_tokens.saturating_sub(others.output_tokens),
            cache_creation_input_tokens: self
                .cache_creation_input_tokens
                .saturating_sub(others.cache_creation_input_tokens),
            cache_read_input_tokens: self
                .cache_read_input_tokens
                .saturating_sub(others.cache_read_input_tokens),
        }
    }

    /// All tokens that went to the model, whether its cache had them or not.
    pub(crate) fn all_input(&self) -> u64 {
        self.input_tokens
            .saturating_add(self.cache_creation_input_tokens)
            .saturating_add(self.cache_read_input_tokens)
    }

    pub(crate) fn and(self, others: &Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(others.input_tokens),
            output_tokens: self.output_tokens.saturating_add(others.output_tokens),
            cache_creation_input_tokens: self
                .cache_creation_input_tokens
                .saturating_add(others.cache_creation_input_tokens),
            cache_read_input_tokens: self
                .cache_read_input_tokens
                .saturating_add(others.cache_read_input_tokens),
        }
    }
}

/// A turn that the CLI ended with an error while it lives on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// A short machine-readable kind, in the CLI's own words (`rate_limit`, `max_turns`, …).
    pub kind: String,
    /// The HTTP status that the model's API answered, if it did.
    pub api_status: Option<u16>,
    /// The text for a person.
    pub message: String,
    /// The host's own interrupt ended the turn.
    pub interrupted: bool,
}

/// A user's OAuth credentials, in the form in which clients send them.
#[derive(Clone, PartialEq, Deserialize, Serialize)]
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

impl fmt::Debug for OauthCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OauthCredentials(redacted)")
    }
}

/// Longest model name. Full ids with a provider's prefix have some sixty characters.
const MAX_MODEL: usize = 128;

/// Whether this can be a model's name: nothing that could be taken for a flag, nor that the CLI, which accepts any
/// name and fails later, would choke on.
pub(crate) fn is_model_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/@-[]".contains(&byte);
    let begins_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    begins_well && name.len() <= MAX_MODEL && name.bytes().all(allowed)
}
