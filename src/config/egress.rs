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
