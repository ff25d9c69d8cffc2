//! Key `isolation.egress`: the hosts that children reach.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use toml::Value;

use super::McpHost;

/// Hosts that a child and its tools reach.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Egress {
    /// Every host that this machine reaches.
    Open,
    /// The model's API.
    Api,
    /// The model's API, and these hosts through a proxy (`HTTPS_PROXY`).
    Allow(Vec<EgressHost>),
}

/// A host and its port: `github.com:443`, `*.example.com:443` (any subdomain), or an IP address.
///
/// Only an IP address that is written here may be private or loopback: the addresses of names are checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct EgressHost(McpHost);

impl TryFrom<String> for EgressHost {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let host = McpHost::try_from(text.clone()).ok().filter(|host| host.port().is_some());
        host.map(Self).ok_or_else(|| {
            format!(
                "{text:?} must be a host with its port, such as \"github.com:443\" or \"*.example.com:443\""
            )
        })
    }
}

impl EgressHost {
    /// Whether this is the host and the port.
    #[cfg(feature = "broker")]
    pub(crate) fn names(&self, host: &url::Host<&str>, port: u16) -> bool {
        self.0.port() == Some(port) && self.0.names(host)
    }
}

#[cfg(feature = "broker")]
impl Egress {
    /// As configured, and the hosts of a child's MCP servers: the operator lists each of them.
    pub(crate) fn with_servers(&self, servers: &serde_json::Map<String, serde_json::Value>) -> Self {
        let configured = match self {
            Self::Open => return Self::Open,
            Self::Api => &[][..],
            Self::Allow(hosts) => hosts,
        };
        let found = servers.values().filter_map(|server| EgressHost::of_url(server.get("url")?.as_str()?));
        let hosts: Vec<_> = configured.iter().cloned().chain(found).collect();
        if hosts.is_empty() { self.clone() } else { Self::Allow(hosts) }
    }
}

#[cfg(feature = "broker")]
impl EgressHost {
    fn of_url(url: &str) -> Option<Self> {
        let url = url::Url::parse(url).ok()?;
        let (host, port) = (url.host_str()?, url.port_or_known_default()?);
        Self::try_from(format!("{host}:{port}")).ok()
    }
}

impl<'de> Deserialize<'de> for Egress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            allow: Vec<EgressHost>,
        }
        const ALLOWED: &str = "must be \"open\", \"api\" or { allow = [\"github.com:443\"] }";
        match Value::deserialize(deserializer)? {
            Value::String(text) if text == "open" => Ok(Self::Open),
            Value::String(text) if text == "api" => Ok(Self::Api),
            Value::Table(table) if table.contains_key("allow") => {
                let table: Table = Value::Table(table).try_into().map_err(D::Error::custom)?;
                Ok(Self::Allow(table.allow))
            }
            _ => Err(D::Error::custom(ALLOWED)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(value: &str) -> Result<Egress, String> {
        #[derive(Deserialize)]
        struct Line {
            egress: Egress,
        }
        let line = toml::from_str::<Line>(&format!("egress = {value}"));
        line.map(|line| line.egress).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn egress_is_a_word_or_a_list() {
        assert_eq!(egress("\"open\""), Ok(Egress::Open));
        assert_eq!(egress("\"api\""), Ok(Egress::Api));
        assert_eq!(egress("{ allow = [] }"), Ok(Egress::Allow(Vec::new())));
        let Ok(Egress::Allow(hosts)) =
            egress("{ allow = [\"GitHub.com:443\", \"[::1]:8\", \"*.a.example:443\"] }")
        else {
            panic!("a list")
        };
        assert_eq!(hosts.len(), 3);
    }

    #[cfg(feature = "broker")]
    #[test]
    fn servers_of_a_child_are_added() {
        let servers = serde_json::json!({
            "web": { "type": "http", "url": "https://mcp.example/path?key=1" },
            "near": { "type": "sse", "url": "http://[fd00::1]:81/" },
            "program": { "command": "x" },
            "odd": { "url": 5 },
            "unreadable": { "url": "mcp.example" },
        });
        let serde_json::Value::Object(servers) = servers else { panic!("an object") };
        let hosts = |list: &[&str]| {
            Egress::Allow(list.iter().map(|host| EgressHost::try_from((*host).to_owned()).unwrap()).collect())
        };
        assert_eq!(Egress::Open.with_servers(&servers), Egress::Open);
        assert_eq!(Egress::Api.with_servers(&servers), hosts(&["[fd00::1]:81", "mcp.example:443"]));
        let configured = hosts(&["github.com:443"]);
        let expected = hosts(&["github.com:443", "[fd00::1]:81", "mcp.example:443"]);
        assert_eq!(configured.with_servers(&servers), expected);
        assert_eq!(Egress::Api.with_servers(&serde_json::Map::new()), Egress::Api);
    }

    #[test]
    fn egress_without_sense_is_refused() {
        for wrong in [
            "\"none\"",
            "true",
            "[\"github.com:443\"]",
            "{ deny = [] }",
            "{ allow = [], deny = [] }",
            "{ allow = [\"github.com\"] }",
            "{ allow = [\"github.com:0\"] }",
            "{ allow = [\"https://github.com:443\"] }",
            "{ allow = [\"*:443\"] }",
            "{ allow = [\"*.1.2.3.4:443\"] }",
        ] {
            assert!(egress(wrong).is_err(), "{wrong}");
        }
    }
}
