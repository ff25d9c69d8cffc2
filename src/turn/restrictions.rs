//! What a turn may use, beyond what the configuration allows to all.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::config::PermissionPolicy;

/// Restrictions of a turn. They only narrow the configuration. Bound at start: a turn with others makes the child restart
/// between turns with its context. Text of a restricted turn is never a command of the CLI.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Restrictions {
    /// Policy for tools that need a permission, if stricter than [`crate::config::Permissions::policy`].
    pub policy: Option<PermissionPolicy>,
    /// Models that requests of the child may name, as the CLI's names (`sonnet`) or ids; `None`: all. Held by the broker.
    pub models: Option<BTreeSet<String>>,
    /// The CLI's own tools that exist; `None`: all. Tools of MCP servers are not meant.
    pub tools: Option<BTreeSet<String>>,
    /// Maximum cost of the user per day (UTC), in US dollars, if lower than [`crate::config::Limits::usd_per_user_day`].
    /// Checked before a turn, and by the broker before each request of the child.
    pub usd_per_day: Option<f64>,
}

impl Restrictions {
    /// Whether nothing is restricted.
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}
