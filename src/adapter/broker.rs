//! What the credential broker needs of one CLI and of its model's API. Pure.

use std::ffi::OsString;
use std::fmt::{self, Debug};

use url::Url;

use crate::model::Usage;

/// Kind of a request to the model's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApiCall {
    /// The model answers: tokens are counted and paid.
    Inference,
    /// Lists and estimates, without cost.
    Other,
    /// The CLI checks that the address answers, without a credential: nothing is forwarded.
    Reachability,
}

/// A request names a model that its key may not use, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelNotAllowed {
    /// The model; `None` if the body names none that can be read.
    pub(crate) named: Option<String>,
    /// The names that the key may use.
    pub(crate) allowed: String,
}

/// Reads a response in pieces of any size and keeps a bounded part of it.
pub(crate) trait UsageReader: Send {
    /// Reads the next piece.
    fn read(&mut self, bytes: &[u8]);
    /// Model and tokens that were reported up to now.
    fn reported(&self) -> (Option<&str>, Usage);
    /// Whether the tokens of the whole answer were reported.
    fn is_final(&self) -> bool;
}

/// The real destination of a child's requests. `Debug` is redacted.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct UpstreamPlan {
    /// Address below which all requests go.
    pub(crate) base_url: Url,
    /// What authenticates them.
    pub(crate) credential: CredentialPlan,
    /// Headers of each request, by lower-case name. They replace those of the child, and the credential.
    pub(crate) headers: Vec<(String, String)>,
}

impl Debug for UpstreamPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Address, key and headers may hold secrets.
        f.write_str("UpstreamPlan(redacted)")
    }
}

/// Kind and value of a credential.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum CredentialPlan {
    /// Header `x-api-key`.
    ApiKey(String),
    /// Header `authorization`.
    Bearer(String),
    /// The stored OAuth credentials of the session.
    Oauth,
    /// One of [`UpstreamPlan::headers`].
    Headers,
}

/// A child's environment without credentials.
#[derive(Clone)]
pub(crate) struct Brokered {
    /// The rest of the environment.
    pub(super) env: Vec<(OsString, OsString)>,
    /// The real destination; `None` without credentials.
    pub(crate) upstream: Option<UpstreamPlan>,
    /// Variables that name the base address and the token.
    pub(super) base_variable: &'static str,
    pub(super) token_variable: &'static str,
}

impl Debug for Brokered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Brokered").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

/// The way of a child's tools to other hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildProxy {
    /// None: the proxies of the environment are out of reach.
    None,
    /// The broker, for the hosts of an allow list.
    Broker,
    /// As the environment says.
    Environment,
}

/// Both spellings are in use: curl reads `http_proxy` in lower case only.
const PROXIES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// The broker itself is never reached through a proxy. Many programs know hosts without a port only.
const LOCAL: &str = "127.0.0.1,localhost,::1";

impl Brokered {
    /// The environment of a child that keeps its credentials.
    pub(crate) fn without_upstream(env: Vec<(OsString, OsString)>) -> Self {
        Self { env, upstream: None, base_variable: "", token_variable: "" }
    }

    /// The whole environment of a child that reaches the broker at `authority` (`127.0.0.1:PORT`) with `token`.
    pub(crate) fn environment(
        self,
        authority: &str,
        token: &str,
        proxy: ChildProxy,
    ) -> Vec<(OsString, OsString)> {
        let mut env = self.env;
        let mut set = |name: &str, value: Option<String>| {
            env.retain(|(other, _)| other != name);
            env.extend(value.map(|value| (name.into(), value.into())));
        };
        if self.upstream.is_some() {
            set(self.base_variable, Some(format!("http://{authority}")));
            set(self.token_variable, Some(token.to_owned()));
        }
        if proxy != ChildProxy::Environment {
            let address = format!("http://pilotlight:{token}@{authority}");
            let address = (proxy == ChildProxy::Broker).then_some(address);
            for name in PROXIES {
                set(name, address.clone().filter(|_| !name.eq_ignore_ascii_case("all_proxy")));
            }
        }
        for name in NO_PROXY {
            let before = env.iter().find(|(other, _)| other == name).and_then(|(_, value)| value.to_str());
            let value = match (proxy, before) {
                (ChildProxy::None, _) => None,
                (ChildProxy::Environment, Some(before)) if !before.is_empty() => {
                    Some(format!("{before},{LOCAL}"))
                }
                _ => Some(LOCAL.to_owned()),
            };
            env.retain(|(other, _)| other != name);
            env.extend(value.map(|value| (name.into(), value.into())));
        }
        env
    }
}

/// Why a child cannot use the broker. Contains no value of a variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotBrokered {
    /// The API of another provider, with signatures or tokens of its own.
    #[error(
        "{variable} selects {provider}, which the credential broker cannot forward to: remove the variable, or set \
         broker.credentials = \"child\""
    )]
    Provider {
        /// The variable.
        variable: &'static str,
        /// The provider.
        provider: &'static str,
    },
    /// A credential in a form that only the CLI itself can use.
    #[error(
        "{variable} holds a credential that the credential broker cannot use: set ANTHROPIC_API_KEY or \
         ANTHROPIC_AUTH_TOKEN in its place, or broker.credentials = \"child\""
    )]
    Variable {
        /// The variable.
        variable: &'static str,
    },
    /// The base address is no address.
    #[error("{variable} is not an http or https address without user, query and fragment")]
    BaseUrl {
        /// The variable.
        variable: &'static str,
    },
    /// A header that the broker sets itself, or that is none.
    #[error("{variable} has a header that cannot be sent: it is malformed, or about the connection itself")]
    Header {
        /// The variable.
        variable: &'static str,
    },
}
