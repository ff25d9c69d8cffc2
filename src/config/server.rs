//! Sections `http`, `auth` and `admin`: the server.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{Config, ConfigError, validate::invalid, value};
use crate::model::ids::UserId;

mod listen;

pub use listen::listen_address;

section! {
    /// Public listener.
    #[derive(Debug)]
    pub struct Http {
        /// Address and port, `localhost:PORT`, or a port alone (of this machine). Port 0 selects a free port. Loopback only,
        /// unless there are keys ([`Auth`]).
        #[serde(deserialize_with = "listen::deserialize")]
        pub listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 8480)),
        /// Maximum size of a request body, in bytes. Default 16 MiB: the longest prompt with its escapes.
        pub body_limit: usize = 16 << 20,
        /// Silence in a stream after which a comment is sent, so that proxies keep the stream open. Default 15 s.
        #[serde(with = "value::duration")]
        pub heartbeat: Duration = Duration::from_secs(15),
        /// Maximum time a caller may read nothing of a waiting response before the connection is closed. Default 60 s.
        #[serde(with = "value::duration")]
        pub write_timeout: Duration = Duration::from_secs(60),
        /// Maximum number of conversations per user for clients that name none and send the whole history each time. The
        /// least recently used one is deleted for a new one. Default 16.
        pub conversations_per_user: usize = 16,
        /// Behaviour of a turn whose caller disconnects. Default: the turn is interrupted.
        pub on_disconnect: OnDisconnect = OnDisconnect::default(),
        /// Bytes of events kept per turn for a caller that returns (`on_disconnect = "detach"`). Default 256 KiB.
        pub replay_bytes: usize = 256 << 10,
        /// Refuses request fields without effect with 400, instead of naming them in a header. Default false.
        pub strict: bool = false,
        /// Models in the list of `GET /v1/models`. Other models may be requested as well: the CLI decides. Default: its
        /// aliases `opus`, `sonnet`, `haiku`.
        pub models: Vec<String> = ["opus", "sonnet", "haiku"].map(str::to_owned).to_vec(),
        /// User of requests that name none, for clients that cannot set headers. Only without keys and on loopback, where
        /// any caller may act as any user. Default none: such a request is refused with 400.
        pub default_user: Option<String> = None,
        /// Origins of web pages that may call, each exactly as a browser sends it (`https://chat.example.org`). Only with
        /// keys. Default none.
        pub cors_origins: Vec<String> = Vec::new(),
        /// Maximum time to send the headers of a request, and maximum idle time of a connection between requests.
        /// Default 30 s, longer than the pools of common clients keep a connection.
        #[serde(with = "value::duration")]
        pub header_timeout: Duration = Duration::from_secs(30),
        /// Maximum time to send a body. Default 30 s, enough for the longest body over 5 Mbit/s.
        #[serde(with = "value::duration")]
        pub body_timeout: Duration = Duration::from_secs(30),
        /// Maximum number of connections; a stream holds one for its whole turn. At the limit a new connection replaces the
        /// one that has been idle longest, or is answered with 503 if all are in use. Lower if the limit on open files
        /// requires it. Default 1024.
        pub max_connections: usize = 1024,
        /// Maximum number of requests per minute and caller: per key, or without keys per user. 0 is no limit.
        /// Default 6000: above any person and most backends; it stops a runaway loop.
        pub requests_per_minute: u32 = 6000,
        /// Maximum number of users per minute whom unknown OAuth tokens begin, over all callers without keys. 0 is no limit.
        /// Default 120: each is stored, and one without an answer is deleted after ten minutes.
        pub new_users_per_minute: u32 = 120,
        /// Maximum number of running and waiting turns of one user, over all its conversations. Default 64: enough for a
        /// handful of busy conversations, too few to occupy the machine.
        pub turns_per_user: u32 = 64,
    }
}

/// Behaviour of a turn whose caller disconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnDisconnect {
    /// The turn is interrupted; the child stays.
    #[default]
    Interrupt,
    /// The turn continues; the caller may return for its events.
    Detach,
}

/// Authentication of callers.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Auth {
    /// File of keys (`pilotlight keys`). With it, every request except health checks needs a key. Without it, every
    /// caller that reaches a listener is trusted.
    pub keys_file: Option<PathBuf>,
    /// Serves without keys on listeners that other machines can reach. Default false.
    pub allow_unauthenticated: bool,
}

section! {
    /// Listener of the operator: metrics.
    #[derive(Debug)]
    pub struct Admin {
        /// Address, as [`Http::listen`].
        #[serde(deserialize_with = "listen::deserialize")]
        pub listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 8481)),
    }
}

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let (http, auth) = (&config.http, &config.auth);
    for (key, value) in [
        ("http.heartbeat", http.heartbeat),
        ("http.write_timeout", http.write_timeout),
        ("http.header_timeout", http.header_timeout),
        ("http.body_timeout", http.body_timeout),
    ] {
        super::validate::duration(key, value)?;
    }
    for (key, value, smallest, largest) in [
        ("http.body_limit", http.body_limit, 1 << 10, 1 << 30),
        ("http.conversations_per_user", http.conversations_per_user, 1, 10_000),
        ("http.replay_bytes", http.replay_bytes, 4 << 10, 1 << 30),
        ("http.max_connections", http.max_connections, 1, 1 << 20),
        ("http.turns_per_user", http.turns_per_user as usize, 1, 1 << 20),
    ] {
        super::validate::bounded(key, value, smallest, largest)?;
    }
    if auth.keys_file.as_deref().is_some_and(|file| file.as_os_str().is_empty()) {
        return Err(invalid("auth.keys_file", "must be the path of a file"));
    }
    if auth.keys_file.is_some() && auth.allow_unauthenticated {
        return Err(invalid("auth.allow_unauthenticated", "contradicts auth.keys_file; set one of them"));
    }
    if http.models.iter().any(|model| !crate::model::is_model_name(model)) {
        return Err(invalid("http.models", "must be names of models such as \"sonnet\" or full ids"));
    }
    callers(http, auth.keys_file.is_some())
}

fn callers(http: &Http, has_keys: bool) -> Result<(), ConfigError> {
    if let Some(user) = &http.default_user {
        if let Err(error) = UserId::new(user) {
            return Err(invalid("http.default_user", error.to_string()));
        }
        if has_keys || !http.listen.ip().to_canonical().is_loopback() {
            let problem = "works only without keys and where http.listen is a loopback address; a key of a user names it";
            return Err(invalid("http.default_user", problem));
        }
    }
    if !http.cors_origins.is_empty() && !has_keys {
        return Err(invalid(
            "http.cors_origins",
            "needs keys (auth.keys_file): without them every page could call",
        ));
    }
    if let Some(other) = http.cors_origins.iter().find(|origin| !is_origin(origin)) {
        let problem = format!(
            "{other:?} is no exact origin such as \"https://chat.example.org\" or \"http://localhost:3000\""
        );
        return Err(invalid("http.cors_origins", problem));
    }
    Ok(())
}

/// Whether a text is an origin as a browser sends it: scheme, host and port in lower case, nothing after them.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
    ["http", "https"].contains(&scheme) && !host.is_empty() && host.bytes().all(allowed)
}
