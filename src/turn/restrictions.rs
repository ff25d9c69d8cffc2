//! What a turn may use, beyond what the configuration allows to all.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::McpServers;
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

/// What the caller of a text for a running turn may use. The turn works with rights of its own, so it must not have more.
#[derive(Debug, Clone, Default)]
pub(crate) struct SteerRights {
    /// Those of the caller's own turns; `None`: any.
    pub(crate) restrictions: Option<Restrictions>,
    /// MCP servers that the caller's own turns may have; `None`: any.
    pub(crate) mcp_servers: Option<BTreeSet<String>>,
}

impl SteerRights {
    /// Whether a turn with these settings uses nothing beyond them.
    pub(crate) fn include(&self, restrictions: &Restrictions, servers: Option<&McpServers>) -> bool {
        let own = self.restrictions.as_ref().is_none_or(|own| own == restrictions);
        let named = self.mcp_servers.as_ref();
        own && named.is_none_or(|named| servers.is_none_or(|servers| servers.are_within(named)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_to_no_turn_with_other_rights() {
        let reading = Restrictions { tools: Some(["Read".to_owned()].into()), ..Restrictions::default() };
        let anyone = SteerRights::default();
        assert!(anyone.include(&reading, None) && anyone.include(&Restrictions::default(), None));
        let rights = SteerRights {
            restrictions: Some(reading.clone()),
            mcp_servers: Some(["docs".to_owned()].into()),
        };
        assert!(rights.include(&reading, None));
        assert!(rights.include(&reading, Some(&McpServers::configured(["docs"]))));
        assert!(!rights.include(&reading, Some(&McpServers::configured(["docs", "git"]))));
        assert!(!rights.include(&Restrictions::default(), None));
    }
}
