//! Section `broker`: the way of children to the model's API.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::validate::{bounded, duration, invalid};
use super::{Config, ConfigError, value};

section! {
    /// The credential broker: a proxy between a child and the model's API that puts the real credential in.
    #[derive(Debug)]
    pub struct Broker {
        /// Where the credentials of the model's API are. Default `auto`.
        pub credentials: Credentials = Credentials::default(),
        /// Maximum number of requests to the model's API at the same time, over all sessions. Others wait up to 30 s, then
        /// the answer is 529. One user gets half of it at most, once there has been a second one. Default: no limit.
        pub upstream_concurrency: Option<usize> = None,
        /// Proxy (CONNECT) for the way to the model's API, such as `http://proxy.example:3128`. Default: `HTTPS_PROXY` and
        /// `NO_PROXY` of the environment, which may have a password.
        pub proxy: Option<String> = None,
        /// File with certificates (PEM) of an own certificate authority. They are trusted beside those of the host.
        pub ca_file: Option<PathBuf> = None,
        /// Maximum number of connections of all children to the broker. Each session has eight of its own and at most 128.
        /// Default 4096.
        pub max_connections: usize = 4096,
        /// Maximum time to connect to the model's API, or to a host of the allow list. Default 10 s.
        #[serde(with = "value::duration")]
        pub connect_timeout: Duration = Duration::from_secs(10),
        /// Maximum time from a request to the head of its response. Default 10 min, as of the API itself.
        #[serde(with = "value::duration")]
        pub first_byte_timeout: Duration = Duration::from_secs(600),
        /// Maximum time without a byte in either direction of a request, a response or a tunnel. Default 5 min.
        #[serde(with = "value::duration")]
        pub idle_timeout: Duration = Duration::from_secs(300),
        /// Address that renews OAuth tokens. Default: that of the CLI's provider.
        pub token_url: Option<String> = None,
    }
}

/// Where the credentials of the model's API are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Credentials {
    /// At the broker where children cannot reach the network past it, in the children otherwise.
    #[default]
    Auto,
    /// At the broker. A child that cannot be brokered does not start.
    Broker,
    /// In the environment and the files of each child.
    Child,
}

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let broker = &config.broker;
    if broker.credentials == Credentials::Broker && !cfg!(feature = "broker") {
        let problem = "\"broker\" needs the feature `broker`, which this program was built without";
        return Err(invalid("broker.credentials", problem));
    }
    for (key, value) in [
        ("broker.connect_timeout", broker.connect_timeout),
        ("broker.first_byte_timeout", broker.first_byte_timeout),
        ("broker.idle_timeout", broker.idle_timeout),
    ] {
        duration(key, value)?;
    }
    bounded("broker.max_connections", broker.max_connections, 1, 1 << 20)?;
    if let Some(most) = broker.upstream_concurrency {
        bounded("broker.upstream_concurrency", most, 1, 1 << 16)?;
    }
    let is_http =
        |url: &String| url::Url::parse(url).is_ok_and(|url| url.scheme() == "https" || is_local(&url));
    if broker.token_url.as_ref().is_some_and(|url| !is_http(url)) {
        let problem = "must be an https address, or an http address of this machine";
        return Err(invalid("broker.token_url", problem));
    }
    if broker.proxy.as_ref().is_some_and(|proxy| !is_proxy(proxy)) {
        let problem =
            "must be an http address without user and path; with a password it belongs into HTTPS_PROXY";
        return Err(invalid("broker.proxy", problem));
    }
    let dollars = config.limits.usd_per_user_day;
    if dollars.is_some_and(|dollars| !dollars.is_finite() || dollars <= 0.0) {
        return Err(invalid("limits.usd_per_user_day", "must be an amount above 0, such as 2.5"));
    }
    Ok(())
}

fn is_proxy(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| {
        let is_bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        url.scheme() == "http" && url.has_host() && is_bare && url.path() == "/"
    })
}

/// Secrets never cross a network in clear text.
pub(super) fn is_local(url: &url::Url) -> bool {
    let is_loopback = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "http" && is_loopback
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string()).map(|()| config)
    }

    #[test]
    fn broker_keys_have_defaults_and_bounds() {
        assert_eq!(config("").unwrap().broker, Broker::default());
        let given = config("[broker]\ncredentials = \"child\"\nupstream_concurrency = 3").unwrap().broker;
        assert_eq!((given.credentials, given.upstream_concurrency), (Credentials::Child, Some(3)));
        for (wrong, named) in [
            ("[broker]\nupstream_concurrency = 0", "broker.upstream_concurrency"),
            ("[broker]\nmax_connections = 0", "broker.max_connections"),
            ("[broker]\nidle_timeout = 0", "broker.idle_timeout"),
            ("[broker]\ncredentials = \"none\"", "credentials"),
            ("[broker]\ntoken_url = \"http://example.com/\"", "broker.token_url"),
            ("[broker]\ntoken_url = \"ftp://127.0.0.1/\"", "broker.token_url"),
            ("[broker]\nproxy = \"http://user:secret@proxy:3128\"", "broker.proxy"),
            ("[broker]\nproxy = \"proxy:3128\"", "broker.proxy"),
            ("[limits]\nusd_per_user_day = 0.0", "limits.usd_per_user_day"),
            ("[limits]\nusd_per_user_day = nan", "limits.usd_per_user_day"),
        ] {
            let problem = config(wrong).unwrap_err();
            assert!(problem.contains(named), "{wrong}: {problem}");
        }
        assert!(config("[broker]\ntoken_url = \"http://127.0.0.1:9/token\"").is_ok());
    }
}
