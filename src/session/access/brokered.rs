//! A child that uses the broker.

use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::net::TcpListener;

use pilotlight_shim::isolation::Network;

use super::{Access, AccessRules};
use crate::adapter;
use crate::adapter::broker::{Brokered, ChildProxy};
use crate::broker::{BrokeredChild, ChildPlan, EndpointGuard, Token};
use crate::child::ShimHandle;
use crate::error::StartFailure;
use crate::isolation::{NetworkMeans, PRIVATE_PORT};
use crate::session::env::Env;
use crate::session::lifecycle::Plan;
use crate::session::opening::Prepared;

/// Token of a trial start, which sends nothing to the API.
const TRIAL_TOKEN: &str = "trial";

/// An endpoint whose child has not started yet, or has no session yet.
#[derive(Debug)]
pub(in crate::session) struct Endpoint {
    child: Kind,
    /// The listener that was bound before the start; else the child's network has it.
    bound: Option<TcpListener>,
    port: u16,
}

#[derive(Debug)]
enum Kind {
    /// Of a trial start: requests find no listener.
    Trial,
    /// Of a child without a session: nothing is accepted yet.
    Spare(Token),
    Brokered(Box<BrokeredChild>),
}

impl Endpoint {
    pub(super) fn prepare(
        plan: &Plan,
        prepared: &Prepared,
        variables: Vec<(OsString, OsString)>,
    ) -> Result<Access, StartFailure> {
        let env = plan.env();
        let (bound, port) = listener(env).map_err(|error| failed(&error))?;
        if env.broker.is_some() {
            return Self { child: Kind::Trial, bound, port }.behind(plan, prepared, variables, None);
        }
        let to = To { authority: authority(port), token: TRIAL_TOKEN, proxy: ChildProxy::None };
        let variables = without_session(variables, &env.access, prepared.own_credentials, &to)?;
        let endpoint = Self { child: Kind::Trial, bound, port };
        Ok(Access { variables, network: network(env.access.means, port), endpoint: Some(endpoint) })
    }

    /// The endpoint of a spare, with its token.
    pub(super) fn of_spare(env: &Env, variables: Vec<(OsString, OsString)>) -> Result<Access, StartFailure> {
        let (bound, port) = listener(env).map_err(|error| failed(&error))?;
        let token = Token::random().map_err(|error| failed(&error))?;
        let proxy = crate::broker::proxy(&env.access.egress);
        let to = To { authority: authority(port), token: token.as_str(), proxy };
        let variables = without_session(variables, &env.access, false, &to)?;
        let endpoint = Self { child: Kind::Spare(token), bound, port };
        Ok(Access { variables, network: network(env.access.means, port), endpoint: Some(endpoint) })
    }

    /// Gives the endpoint of a spare to a session.
    pub(super) fn claim(
        mut self,
        plan: &Plan,
        prepared: &Prepared,
        variables: Vec<(OsString, OsString)>,
    ) -> Result<Access, StartFailure> {
        match std::mem::replace(&mut self.child, Kind::Trial) {
            Kind::Spare(token) => self.behind(plan, prepared, variables, Some(token)),
            _ => Err(failed(&"the endpoint is not that of a spare")),
        }
    }

    fn behind(
        self,
        plan: &Plan,
        prepared: &Prepared,
        variables: Vec<(OsString, OsString)>,
        token: Option<Token>,
    ) -> Result<Access, StartFailure> {
        let (env, key) = (plan.env(), &plan.entry.key);
        let broker = env.broker.as_ref().ok_or_else(|| failed(&"there is no broker"))?;
        let child = broker.child(ChildPlan {
            variables,
            takes_credentials: env.access.is_brokered,
            oauth: prepared.own_credentials.then(|| plan.workspace.oauth_store()),
            egress: env.access.egress.with_servers(&prepared.settings.mcp_servers),
            user: key.user().clone(),
            session: key.hash(),
            restrictions: prepared.restrictions.clone(),
            token,
        });
        let child = child.map_err(|error| failed(&error))?;
        let variables = child.environment(&authority(self.port));
        let network = network(env.access.means, self.port);
        let endpoint = Self { child: Kind::Brokered(Box::new(child)), ..self };
        Ok(Access { variables, network, endpoint: Some(endpoint) })
    }

    /// The child's token, which its standard error may repeat.
    pub(in crate::session) fn token(&self) -> Option<&str> {
        match &self.child {
            Kind::Trial => None,
            Kind::Spare(token) => Some(token.as_str()),
            Kind::Brokered(child) => Some(child.token()),
        }
    }

    /// Serves the child that has started. Its requests end with the guard.
    ///
    /// # Errors
    /// The child has no listener, or it cannot be used.
    pub(in crate::session) fn serve(self, shim: &mut ShimHandle) -> io::Result<Option<EndpointGuard>> {
        let listener = self.bound.or_else(|| shim.take_listener());
        let Kind::Brokered(child) = self.child else { return Ok(None) };
        let listener = listener.ok_or_else(|| io::Error::other("the child's network has no listener"))?;
        child.serve(listener).map(Some)
    }
}

/// The listener that is bound here, and the port of the one that the child will reach.
fn listener(env: &Env) -> io::Result<(Option<TcpListener>, u16)> {
    if env.access.means == NetworkMeans::Private {
        return Ok((None, PRIVATE_PORT));
    }
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    Ok((Some(listener), port))
}

/// The network of a child that reaches the listener at `port`.
fn network(means: NetworkMeans, port: u16) -> Network {
    match means {
        NetworkMeans::Private => Network::Private { port },
        NetworkMeans::Ports => Network::Ports(vec![port]),
        NetworkMeans::Open => Network::Open,
    }
}

fn authority(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// What the environment of a child without a session names.
struct To<'a> {
    authority: String,
    token: &'a str,
    proxy: ChildProxy,
}

/// The environment of a child without a session: as that of one, with a token that nothing accepts.
fn without_session(
    variables: Vec<(OsString, OsString)>,
    access: &AccessRules,
    own_credentials: bool,
    to: &To<'_>,
) -> Result<Vec<(OsString, OsString)>, StartFailure> {
    let brokered = match access.is_brokered {
        true => adapter::brokered(variables, own_credentials).map_err(|error| failed(&error))?,
        false => Brokered::without_upstream(variables),
    };
    Ok(brokered.environment(&to.authority, to.token, to.proxy))
}

fn failed(error: &dyn Display) -> StartFailure {
    StartFailure::Spawn { reason: "broker", message: error.to_string(), source: None }
}
