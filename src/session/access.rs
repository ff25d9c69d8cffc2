//! The way of children to the model's API and to other hosts: through the broker, or their own.
//!
//! [`rules`] decides once for a system, from the configuration and the proven rungs. [`of_start`] prepares one start: the
//! endpoint with its token exists before the child; its listener is bound before, or comes from the child's own network.

use std::ffi::OsString;

use pilotlight_shim::isolation::Network;

use super::env::Env;
use super::lifecycle::Plan;
use super::opening::Prepared;
use crate::config::{Config, ConfigError, Credentials, Egress};
use crate::error::StartFailure;
use crate::isolation::NetworkMeans;

#[cfg(feature = "broker")]
mod brokered;
#[cfg(feature = "broker")]
pub(super) use brokered::Endpoint;
#[cfg(not(feature = "broker"))]
mod direct;
#[cfg(not(feature = "broker"))]
pub(super) use direct::Endpoint;

/// What holds for all children of a system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AccessRules {
    /// Their requests to the model's API go through the broker, which has the credentials.
    pub(crate) is_brokered: bool,
    /// They have a listener of the broker, at least as a proxy.
    pub(crate) has_endpoint: bool,
    /// What keeps them from other ways.
    pub(crate) means: NetworkMeans,
    /// What they reach beside the model's API.
    pub(crate) egress: Egress,
}

/// What Landlock leaves open of a list of hosts: its rules know ports, and no addresses.
const PORT_ONLY: &str = "isolation.egress rests on landlock, which holds a port and no address: a tool reaches every host that \
                         listens on the port of its own listener; the rung namespaces holds addresses";

impl AccessRules {
    /// Whether what is configured or in force is held in part only.
    pub(crate) fn warning(&self) -> Option<&'static str> {
        (self.means == NetworkMeans::Ports && self.egress != Egress::Open).then_some(PORT_ONLY)
    }
}

/// Decides it. `restricted` is the strongest means that the host gives.
///
/// # Errors
/// If a configured restriction cannot be kept.
pub(crate) fn rules(config: &Config, restricted: NetworkMeans) -> Result<AccessRules, ConfigError> {
    let credentials = match config.broker.credentials {
        Credentials::Auto if cfg!(not(feature = "broker")) => Credentials::Child,
        configured => configured,
    };
    let own_way = AccessRules {
        is_brokered: false,
        has_endpoint: false,
        means: NetworkMeans::Open,
        egress: Egress::Open,
    };
    let brokered = |means, egress| AccessRules { is_brokered: true, has_endpoint: true, means, egress };
    let refused =
        |problem: &str| ConfigError::Key { key: "isolation.egress".to_owned(), problem: problem.to_owned() };
    let unrestricted = || {
        refused(
            "this host cannot restrict the network of children: it needs the rung namespaces, or landlock on Linux 6.7 \
             (`pilotlight check` shows both); or set \"open\"",
        )
    };
    let is_open = restricted == NetworkMeans::Open;
    match (credentials, config.isolation.egress.clone()) {
        (_, Some(Egress::Api | Egress::Allow(_))) if is_open => Err(unrestricted()),
        (Credentials::Child, Some(Egress::Api)) => Err(refused(
            "\"api\" leaves a child no way but the broker; leave broker.credentials at \"auto\", or list the host of the API \
             in { allow = [...] }",
        )),
        (Credentials::Child, Some(egress @ Egress::Allow(_))) => {
            Ok(AccessRules { is_brokered: false, ..brokered(restricted, egress) })
        }
        (_, Some(egress @ (Egress::Api | Egress::Allow(_)))) => Ok(brokered(restricted, egress)),
        (Credentials::Broker, None) if !is_open => Ok(brokered(restricted, Egress::Api)),
        (Credentials::Auto, None) if !is_open => Ok(brokered(restricted, Egress::Api)),
        (Credentials::Broker, _) => Ok(brokered(NetworkMeans::Open, Egress::Open)),
        (Credentials::Auto | Credentials::Child, _) => Ok(own_way),
    }
}

/// The way of one child.
pub(super) struct Access {
    /// The child's whole environment.
    pub(super) variables: Vec<(OsString, OsString)>,
    pub(super) network: Network,
    /// To be served once the child has started.
    pub(super) endpoint: Option<Endpoint>,
}

/// Prepares a start with these variables.
///
/// # Errors
/// [`StartFailure`] if the child cannot use the broker.
pub(super) fn of_start(
    plan: &Plan,
    prepared: &Prepared,
    variables: Vec<(OsString, OsString)>,
) -> Result<Access, StartFailure> {
    let env = plan.env();
    if env.access.has_endpoint {
        return Endpoint::prepare(plan, prepared, variables);
    }
    Ok(open(variables))
}

/// Prepares the start of a spare: its endpoint has no user yet and is not served.
///
/// # Errors
/// As [`of_start`].
pub(super) fn of_spare(env: &Env, variables: Vec<(OsString, OsString)>) -> Result<Access, StartFailure> {
    if env.access.has_endpoint { Endpoint::of_spare(env, variables) } else { Ok(open(variables)) }
}

/// The way of a spare that gets a session: its endpoint is from now on that of the session's user.
///
/// # Errors
/// As [`of_start`].
pub(super) fn of_claim(
    plan: &Plan,
    prepared: &Prepared,
    variables: Vec<(OsString, OsString)>,
    of_spare: Option<Endpoint>,
) -> Result<Access, StartFailure> {
    match of_spare {
        Some(endpoint) => endpoint.claim(plan, prepared, variables),
        None => Ok(open(variables)),
    }
}

fn open(variables: Vec<(OsString, OsString)>) -> Access {
    Access { variables, network: Network::Open, endpoint: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(
        credentials: Credentials,
        egress: Option<Egress>,
        restricted: NetworkMeans,
    ) -> Result<AccessRules, String> {
        let mut config = Config::new("/d");
        config.broker.credentials = credentials;
        config.isolation.egress = egress;
        rules(&config, restricted).map_err(|error| error.to_string())
    }

    fn allow() -> Egress {
        Egress::Allow(Vec::new())
    }

    #[cfg(feature = "broker")]
    #[test]
    fn broker_is_default_with_a_restricted_network() {
        use Credentials::{Auto, Broker};
        for means in [NetworkMeans::Private, NetworkMeans::Ports] {
            for credentials in [Auto, Broker] {
                for (egress, expected) in
                    [(None, Egress::Api), (Some(Egress::Api), Egress::Api), (Some(allow()), allow())]
                {
                    let rules = decided(credentials, egress, means).unwrap();
                    assert_eq!((rules.is_brokered, rules.has_endpoint), (true, true));
                    assert_eq!((rules.means, rules.egress), (means, expected));
                }
                let open = decided(credentials, Some(Egress::Open), means).unwrap();
                assert_eq!((open.is_brokered, open.means), (credentials == Broker, NetworkMeans::Open));
            }
        }
        let open = decided(Auto, None, NetworkMeans::Open).unwrap();
        assert_eq!((open.is_brokered, open.egress), (false, Egress::Open));
        assert!(decided(Broker, None, NetworkMeans::Open).unwrap().is_brokered);
    }

    #[test]
    fn restriction_that_cannot_be_kept_is_refused() {
        let none = decided(Credentials::Auto, Some(Egress::Api), NetworkMeans::Open).unwrap_err();
        assert!(none.contains("isolation.egress"), "{none}");
        let child = decided(Credentials::Child, Some(Egress::Api), NetworkMeans::Private).unwrap_err();
        assert!(child.contains("broker.credentials"), "{child}");
        let proxied = decided(Credentials::Child, Some(allow()), NetworkMeans::Private);
        if cfg!(feature = "broker") {
            let proxied = proxied.unwrap();
            assert_eq!((proxied.is_brokered, proxied.has_endpoint), (false, true));
        } else {
            assert!(proxied.is_err());
        }
        for egress in [None, Some(Egress::Open)] {
            let child = decided(Credentials::Child, egress, NetworkMeans::Private).unwrap();
            assert_eq!((child.is_brokered, child.means), (false, NetworkMeans::Open));
        }
    }
}
