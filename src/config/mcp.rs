//! MCP servers: which ones the operator offers, and who may bring others.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Config, ConfigError, validate::invalid, value};

/// Longest name of a server: it is part of the names of its tools, which the API limits to 128 characters.
const LONGEST_NAME: usize = 64;

/// What some versions of the CLI replace by variables of its own environment, credentials included: everywhere in a file,
/// in headers also over the protocol.
pub(crate) const EXPANSION: &str = "${";

/// MCP servers of the sessions.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Mcp {
    /// Who may send definitions of servers of their own. Default `none`: a definition is a program that runs with the
    /// server's rights, or an address that the session's data is sent to.
    pub callers: McpCallers,
    /// Hosts that the `url` of a caller's definition may name: `mcp.example.com`, `*.example.com` (any subdomain, not the
    /// domain itself), an IP address; with `:port`, or the scheme's own port without. Default none.
    pub allow_hosts: Vec<McpHost>,
    /// How long a server may take to connect at the start of a child. Later the child works without it. Default 10 s.
    #[serde(with = "value::duration")]
    pub connect_timeout: Duration,
    /// Servers that a caller may choose by name. A session has none of them unless a request names them.
    pub servers: BTreeMap<String, McpServerConfig>,
}

/// Who may send definitions of MCP servers of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum McpCallers {
    /// Nobody.
    #[default]
    None,
    /// Callers with a service key.
    Service,
    /// Every caller. Needs rungs that keep users apart, or [`crate::config::Isolation::accept_none`].
    All,
}

/// A server that the operator offers: a command or a URL. Nothing in it is expanded.
#[derive(Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct McpServerConfig {
    /// The program to start.
    pub command: Option<String>,
    /// Its arguments. Every user of the machine can read them.
    pub args: Vec<String>,
    /// Its variables, beside those of the CLI.
    pub env: BTreeMap<String, String>,
    /// The address to connect to.
    pub url: Option<String>,
    /// How to speak with the address. Default `http`.
    pub transport: Option<McpTransport>,
    /// Headers of each request to the address.
    pub headers: BTreeMap<String, String>,
}

/// How a server is spoken with that has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum McpTransport {
    /// Streamable HTTP.
    #[default]
    #[serde(alias = "streamableHttp")]
    Http,
    /// Server-sent events: the protocol's older form.
    Sse,
}

/// A host of [`Mcp::allow_hosts`], with its port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct McpHost {
    host: HostPattern,
    /// The scheme's own port if absent.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPattern {
    /// This host and no other.
    Exactly(url::Host),
    /// Everything that ends with this, which begins with a dot.
    Below(String),
}

impl TryFrom<String> for McpHost {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            "must be a host such as \"mcp.example.com\", \"*.example.com\" or \"[::1]:8080\", with or without a port"
                .to_owned()
        };
        let (below, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text.as_str()),
        };
        if rest.contains('*') {
            return Err(wrong());
        }
        // The parser of addresses normalises hosts and ports as that of definitions does. Port 0 is nobody's default.
        let port = rest.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
        let port = port.filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
        let (host, port) = match port {
            Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?)),
            None => (rest, None),
        };
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        let host = match plain.parse() {
            Ok(address) => url::Host::Ipv6(address),
            Err(_) => url::Host::parse(host).map_err(|_| wrong())?,
        };
        let host = match host {
            url::Host::Domain(domain) if below => HostPattern::Below(format!(".{domain}")),
            _ if below => return Err(wrong()),
            host => HostPattern::Exactly(host),
        };
        Ok(Self { host, port })
    }
}

/// Callers with definitions of their own come over HTTP.
#[cfg(feature = "server")]
impl Mcp {
    /// Whether a caller's definition may name this address.
    pub(crate) fn allows_host(&self, url: &url::Url) -> bool {
        self.allow_hosts.iter().any(|allowed| allowed.matches(url))
    }
}

impl McpHost {
    pub(super) fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether this is the host.
    #[cfg(feature = "broker")]
    pub(super) fn names(&self, host: &url::Host<&str>) -> bool {
        match (&self.host, host) {
            (HostPattern::Exactly(own), host) => own == host,
            (HostPattern::Below(end), url::Host::Domain(domain)) => {
                domain.len() > end.len() && domain.ends_with(end.as_str())
            }
            (HostPattern::Below(_), _) => false,
        }
    }

    #[cfg(feature = "server")]
    fn matches(&self, url: &url::Url) -> bool {
        let fits = url.host().is_some_and(|host| self.names(&host));
        let own_port = if url.scheme() == "https" { 443 } else { 80 };
        fits && url.port_or_known_default() == Some(self.port.unwrap_or(own_port))
    }
}

impl McpServerConfig {
    /// The definition in the CLI's own form.
    pub(crate) fn definition(&self) -> Value {
        let Some(url) = &self.url else {
            return json!({
                "type": "stdio", "command": self.command, "args": self.args, "env": self.env,
            });
        };
        let kind = match self.transport.unwrap_or_default() {
            McpTransport::Http => "http",
            McpTransport::Sse => "sse",
        };
        json!({ "type": kind, "url": url, "headers": self.headers })
    }
}

impl Default for Mcp {
    fn default() -> Self {
        Self {
            callers: McpCallers::default(),
            allow_hosts: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            servers: BTreeMap::new(),
        }
    }
}

impl fmt::Debug for McpServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Arguments, variables, headers and the address may hold secrets.
        f.debug_struct("McpServerConfig").finish_non_exhaustive()
    }
}

/// Whether this can be a server's name.
pub(crate) fn is_server_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let begins_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    begins_well && name.len() <= LONGEST_NAME && name.bytes().all(allowed)
}

/// Whether any text in this value, names included, holds what the CLI would expand from its environment.
pub(crate) fn has_expansion(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains(EXPANSION),
        Value::Array(values) => values.iter().any(has_expansion),
        Value::Object(map) => table_has_expansion(map),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn table_has_expansion(table: &Map<String, Value>) -> bool {
    table.iter().any(|(name, value)| name.contains(EXPANSION) || has_expansion(value))
}

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    for (name, server) in &config.mcp.servers {
        let key = |field: &str| format!("mcp.servers.{name}{field}");
        if !is_server_name(name) {
            let problem = format!(
                "a server's name must be letters, digits, \"-\" and \"_\", begin with a letter or digit and have \
                 at most {LONGEST_NAME} characters"
            );
            return Err(invalid(key(""), problem));
        }
        if let Some((field, problem)) = problem_of(server) {
            return Err(invalid(key(field), problem));
        }
    }
    Ok(())
}

fn problem_of(server: &McpServerConfig) -> Option<(&'static str, &'static str)> {
    let for_urls = server.transport.is_some() || !server.headers.is_empty();
    let for_commands = !server.args.is_empty() || !server.env.is_empty();
    match (&server.command, &server.url) {
        (Some(_), Some(_)) => return Some(("", "has a command and a url; set one of them")),
        (None, None) => return Some(("", "has neither a command nor a url")),
        (Some(command), None) if command.is_empty() => return Some((".command", "must not be empty")),
        (Some(_), None) if for_urls => return Some(("", "transport and headers are for servers with a url")),
        (None, Some(_)) if for_commands => {
            return Some(("", "args and env are for servers with a command"));
        }
        (None, Some(url)) if !is_http(url) => return Some((".url", "must be an http or https address")),
        _ => {}
    }
    let definition = server.definition();
    if has_expansion(&definition) {
        let problem = "holds \"${\", which is not expanded here; set the value itself, or from the environment with \
                       PILOTLIGHT_MCP__SERVERS__NAME__ENV__VARIABLE or …__HEADERS__HEADER";
        return Some(("", problem));
    }
    definition.to_string().contains("\\u0000").then_some(("", "must not hold a NUL byte"))
}

fn is_http(url: &str) -> bool {
    url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &[&str], url: &str) -> bool {
        let allow_hosts = list.iter().map(|host| McpHost::try_from((*host).to_owned()).unwrap()).collect();
        let mcp = Mcp { allow_hosts, ..Mcp::default() };
        mcp.allows_host(&url::Url::parse(url).unwrap())
    }

    #[test]
    fn host_not_listed_is_not_allowed() {
        let listed = ["mcp.example.com", "*.wild.example", "other.example:8443", "10.1.2.3", "[fd00::1]:81"];
        for url in [
            "https://mcp.example.com/sse",
            "https://MCP.Example.com",
            "http://mcp.example.com/",
            "https://a.wild.example",
            "https://a.b.wild.example",
            "https://other.example:8443/x",
            "http://10.1.2.3/",
            "http://0x0a.1.2.3/",
            "http://167838211/",
            "http://[fd00::1]:81/",
            "http://[fd00:0:0:0:0:0:0:1]:81/",
        ] {
            assert!(allows(&listed, url), "{url}");
        }
        for url in [
            "https://example.com",
            "https://mcp.example.com.evil.example",
            "https://evilmcp.example.com",
            "https://mcp.example.com:8443/",
            "https://mcp.example.com./",
            "https://wild.example",
            "https://evilwild.example",
            "https://a.wild.example:1",
            "https://other.example",
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.0.0.1/",
            "http://0177.0.0.1/",
            "http://localhost/",
            "http://0.0.0.0/",
            "http://[::]/",
            "http://[::1]/",
            "http://[::ffff:10.1.2.3]/",
            "http://169.254.169.254/latest",
            "http://[fe80::1]/",
            "http://224.0.0.1/",
            "http://10.1.2.4/",
            "http://evil.example\\@mcp.example.com/",
            "http://evil.example#@mcp.example.com/",
            "http://mcp.example.com@evil.example/",
            "https://mcp.еxample.com/",
        ] {
            assert!(!allows(&listed, url), "{url}");
        }
        assert!(!allows(&[], "https://mcp.example.com"));
        assert!(allows(&["localhost:9", "127.0.0.1:9"], "http://127.0.0.1:9/"));
        assert!(allows(&["localhost:9"], "http://localhost:9/") && allows(&["::1"], "http://[::1]/"));
        assert!(allows(&["bücher.example"], "https://xn--bcher-kva.example/"));
    }

    #[test]
    fn host_that_is_none_is_refused() {
        for wrong in [
            "",
            "*",
            "*.",
            "a b",
            "https://a.example",
            "a.example:0",
            "a.example:99999",
            "*.10.0.0.1",
            "a/b",
            "u@a",
        ] {
            assert!(McpHost::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn server_definition_is_the_clis_form() {
        let server = |text: &str| toml::from_str::<McpServerConfig>(text).unwrap().definition();
        assert_eq!(
            server("command = \"npx\"\nargs = [\"-y\"]\nenv = { A = \"b\" }"),
            json!({ "type": "stdio", "command": "npx", "args": ["-y"], "env": { "A": "b" } })
        );
        assert_eq!(
            server("url = \"https://h/\"\nheaders = { Authorization = \"Bearer t\" }"),
            json!({ "type": "http", "url": "https://h/", "headers": { "Authorization": "Bearer t" } })
        );
        assert_eq!(server("url = \"https://h/\"\ntransport = \"sse\"")["type"], "sse");
    }

    #[test]
    fn expansion_is_found_wherever_it_hides() {
        for hiding in [
            json!("a${B}"),
            json!({ "args": ["x", "${A}"] }),
            json!({ "env": { "${A}": "b" } }),
            json!({ "headers": { "x": ["${A:-b}"] } }),
            json!({ "unknown": { "deep": [{ "er": "$${A}" }] } }),
        ] {
            assert!(has_expansion(&hiding), "{hiding}");
        }
        assert!(!has_expansion(&json!({ "a": ["$A", "$(x)", "{A}", "$ {A}", 1, null, true] })));
    }
}
