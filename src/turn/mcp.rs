//! Which MCP servers a session has.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{EXPANSION, Mcp, McpCallers, has_expansion};

/// MCP servers of a session: some of the configuration's, some defined for it. Prints redacted, for definitions may hold
/// secrets.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct McpServers {
    /// By their names in the configuration: what a name stands for is looked up at each start of a child.
    configured: BTreeSet<String>,
    defined: Map<String, Value>,
    /// The kind of caller that sent the definitions; none for those of the embedding program.
    sender: Option<Sender>,
}

/// The kind of caller that sends definitions over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sender {
    Service,
    Other,
}

impl McpServers {
    /// Servers of the configuration ([`crate::config::Mcp::servers`]), by name.
    pub fn configured(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { configured: names.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Servers by name, in the CLI's own form (`{"type": "stdio", "command": …}`). Nothing is expanded in it: a text with
    /// `${` is refused.
    #[must_use]
    pub fn defined(definitions: Map<String, Value>) -> Self {
        Self { defined: definitions, ..Self::default() }
    }

    /// These and `names` of the configuration.
    #[cfg(feature = "server")]
    pub(crate) fn sent(names: BTreeSet<String>, definitions: Map<String, Value>, sender: Sender) -> Self {
        let sender = (!definitions.is_empty()).then_some(sender);
        Self { configured: names, defined: definitions, sender }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.configured.is_empty() && self.defined.is_empty()
    }

    /// The definitions of all of them as the configuration stands now. Definitions of callers who may not send any, or no
    /// longer, are left out, as are names that are not configured, or no longer.
    pub(crate) fn resolve(&self, mcp: &Mcp) -> Map<String, Value> {
        let may_define = self.sender.is_none_or(|sender| sender.may_define(mcp.callers));
        let defined = self.defined.iter().filter(|_| may_define);
        let defined = defined.map(|(name, definition)| (name.clone(), definition.clone()));
        let configured = self.configured.iter().filter_map(|name| {
            let server = mcp.servers.get(name)?;
            Some((name.clone(), server.definition()))
        });
        defined.chain(configured).collect()
    }

    /// These and others, which take the place of those of the same name.
    pub(crate) fn and(mut self, others: &Self) -> Self {
        for name in others.names() {
            self.remove(&name);
        }
        // Definitions of two kinds of callers: the one with fewer rights counts for all.
        self.sender = match (self.sender.filter(|_| !self.defined.is_empty()), others.sender) {
            (Some(Sender::Other), _) | (_, Some(Sender::Other)) => Some(Sender::Other),
            (own, other) => own.or(other),
        };
        self.configured.extend(others.configured.iter().cloned());
        self.defined.extend(others.defined.clone());
        self
    }

    /// Takes one out; whether it was there.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let was_configured = self.configured.remove(name);
        self.defined.remove(name).is_some() || was_configured
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.configured.iter().chain(self.defined.keys()).cloned().collect()
    }

    /// Whether it is one of the configuration.
    pub(crate) fn is_configured(&self, name: &str) -> bool {
        self.configured.contains(name)
    }

    /// Whether all of them are configured ones of these names.
    pub(crate) fn are_within(&self, names: &BTreeSet<String>) -> bool {
        self.defined.is_empty() && self.configured.is_subset(names)
    }

    /// Whether one of them has this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.configured.contains(name) || self.defined.contains_key(name)
    }

    /// Why these cannot be given to a child.
    pub(crate) fn problem(&self, mcp: &Mcp) -> Option<&'static str> {
        if self.configured.iter().any(|name| !mcp.servers.contains_key(name)) {
            return Some("a name is not configured ([mcp.servers])");
        }
        // Some versions of the CLI put in variables of its own environment here, credentials among them.
        let expands = self.defined.iter().any(|(name, one)| name.contains(EXPANSION) || has_expansion(one));
        expands.then_some("\"${\" must not stand in a definition: nothing is expanded")
    }

    pub(crate) fn len(&self) -> usize {
        self.configured.len() + self.defined.len()
    }
}

impl Sender {
    pub(crate) fn may_define(self, callers: McpCallers) -> bool {
        match callers {
            McpCallers::None => false,
            McpCallers::Service => self == Self::Service,
            McpCallers::All => true,
        }
    }
}

impl fmt::Debug for McpServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "McpServers({} redacted)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mcp(callers: &str) -> Mcp {
        let text = format!("callers = \"{callers}\"\n[servers.own]\ncommand = \"serve\"");
        toml::from_str(&text).unwrap()
    }

    fn names(servers: &McpServers, callers: &str) -> Vec<String> {
        servers.resolve(&mcp(callers)).keys().cloned().collect()
    }

    #[test]
    fn definition_of_refused_sender_is_left_out() {
        let definitions = || json!({ "a": { "command": "x" } }).as_object().unwrap().clone();
        let sent = |sender| McpServers::sent(BTreeSet::from(["own".to_owned()]), definitions(), sender);
        let both = ["a", "own"];
        for (sender, callers, expected) in [
            (Sender::Service, "none", &both[1..]),
            (Sender::Other, "none", &both[1..]),
            (Sender::Service, "service", &both[..]),
            (Sender::Other, "service", &both[1..]),
            (Sender::Service, "all", &both[..]),
            (Sender::Other, "all", &both[..]),
        ] {
            // Also after it was written to a record and read again.
            let kept = serde_json::to_string(&sent(sender)).unwrap();
            for servers in [sent(sender), serde_json::from_str(&kept).unwrap()] {
                assert_eq!(names(&servers, callers), expected, "{sender:?} {callers}");
            }
        }
        assert_eq!(names(&McpServers::defined(definitions()), "none"), ["a"]);
        assert_eq!(names(&McpServers::configured(["own", "gone"]), "none"), ["own"]);
        assert!(McpServers::default().is_empty());
        let both = sent(Sender::Service);
        assert!(both.has("a") && both.has("own") && !both.has("b"));
        assert!(!format!("{:?}", McpServers::defined(definitions())).contains("command"));
    }
}
