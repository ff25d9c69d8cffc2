//! Section `webhooks`: endpoints of the operator that are sent events.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::validate::{bounded, duration, invalid};
use super::{Config, ConfigError, value};

/// Maximum number of endpoints: each has a task and a queue.
const MAX_ENDPOINTS: usize = 16;
/// Longest name of an endpoint.
const MAX_NAME: usize = 64;
/// Most attempts for a message: with the longest delay between them, a day.
const MAX_ATTEMPTS: u32 = 100;

section! {
    /// Webhooks: signed requests to configured endpoints, and to no other address.
    #[derive(Debug)]
    pub struct Webhooks {
        /// Endpoints by their names. Default none.
        pub endpoints: BTreeMap<String, WebhookEndpoint> = BTreeMap::new(),
        /// Maximum time of an attempt, to the head of the response. Default 10 s.
        #[serde(with = "value::duration")]
        pub timeout: Duration = Duration::from_secs(10),
        /// Maximum number of attempts for a message. Default 6: with the default delays some 20 minutes.
        pub attempts: u32 = 6,
        /// Delay before the second attempt; grows by 4, to 15 min. Up to a half of it is taken off at random. Default 5 s.
        #[serde(with = "value::duration")]
        pub backoff: Duration = Duration::from_secs(5),
    }
}

/// An endpoint of webhooks.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct WebhookEndpoint {
    /// Address: `https`, or `http` of this machine.
    pub url: String,
    /// File with one or two secrets (`whsec_…`), a line each, that only its owner may read. It is followed.
    pub secret_file: PathBuf,
    /// The events that it gets. Default all.
    #[serde(default = "all")]
    pub events: Vec<WebhookEvent>,
}

impl fmt::Debug for WebhookEndpoint {
    /// Without the address, which may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookEndpoint")
            .field("secret_file", &self.secret_file)
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

/// Event of webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WebhookEvent {
    /// A turn ended whose caller is not attached any more.
    TurnEnded,
    /// A tool waits for a permission.
    PermissionNeeded,
}

fn all() -> Vec<WebhookEvent> {
    vec![WebhookEvent::TurnEnded, WebhookEvent::PermissionNeeded]
}

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let webhooks = &config.webhooks;
    duration("webhooks.timeout", webhooks.timeout)?;
    duration("webhooks.backoff", webhooks.backoff)?;
    bounded("webhooks.attempts", webhooks.attempts, 1, MAX_ATTEMPTS)?;
    if webhooks.endpoints.len() > MAX_ENDPOINTS {
        return Err(invalid("webhooks.endpoints", format!("must be at most {MAX_ENDPOINTS} endpoints")));
    }
    for (name, endpoint) in &webhooks.endpoints {
        let key = |field: &str| format!("webhooks.endpoints.{name}{field}");
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(plain) {
            return Err(invalid(key(""), "the name must hold only letters, digits, \"-\" and \"_\""));
        }
        if !is_address(&endpoint.url) {
            let problem =
                "must be an https address, or an http address of this machine, without user and fragment";
            return Err(invalid(key(".url"), problem));
        }
        if endpoint.secret_file.as_os_str().is_empty() {
            return Err(invalid(key(".secret_file"), "must be the path of a file"));
        }
        if endpoint.events.is_empty() {
            return Err(invalid(key(".events"), "must be turn_ended, permission_needed or both"));
        }
    }
    Ok(())
}

fn is_address(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| {
        let is_bare = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
        is_bare && (url.scheme() == "https" && url.has_host() || super::broker::is_local(&url))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(endpoint: &str) -> Result<Config, String> {
        let text = format!("[webhooks.endpoints.ops]\nsecret_file = \"/run/secret\"\n{endpoint}");
        let config: Config = toml::from_str(&text).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string()).map(|()| config)
    }

    #[test]
    fn endpoints_are_https_or_of_this_machine() {
        for url in [
            "https://a.example/hook?token=s3cret",
            "http://127.0.0.1:9/x",
            "http://[::1]:9/",
            "http://localhost/",
        ] {
            let config = checked(&format!("url = \"{url}\"")).unwrap();
            assert_eq!(config.webhooks.endpoints["ops"].events, all(), "{url}");
            assert!(!format!("{config:?}").contains("s3cret"));
        }
        for url in [
            "http://a.example/",
            "ftp://127.0.0.1/",
            "https://u:p@a.example/",
            "https://a.example/#x",
            "nonsense",
            "",
        ] {
            let problem = checked(&format!("url = \"{url}\"")).unwrap_err();
            assert!(problem.contains("webhooks.endpoints.ops.url"), "{url}: {problem}");
        }
    }

    #[test]
    fn fields_are_checked() {
        let url = "url = \"https://a.example/\"\n";
        for (wrong, named) in [
            ("events = []", "events"),
            ("events = [\"all\"]", "turn_ended"),
            ("secret = \"x\"", "secret"),
            ("[webhooks]\nattempts = 0", "webhooks.attempts"),
            ("[webhooks]\ntimeout = 0", "webhooks.timeout"),
            ("[webhooks.endpoints.\"a b\"]\nurl = \"https://a.example/\"\nsecret_file = \"x\"", "letters"),
        ] {
            let problem = checked(&format!("{url}{wrong}")).unwrap_err();
            assert!(problem.contains(named), "{wrong}: {problem}");
        }
        assert!(checked(&format!("{url}events = [\"turn_ended\"]")).is_ok());
    }
}
