//! A child that uses the broker.

use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::net::TcpListener;

use pilotlight_shim::isolation::Network;

use super::{Access, AccessRules};
use crate::adapter;
use crate::adapter::broker::{Brokered, ChildProxy};
use crate::broker::{BrokeredChild, ChildPlan, EndpointGuard};
use crate::child::ShimHandle;
use crate::error::StartFailure;
use crate::isolation::{NetworkMeans, PRIVATE_PORT};
use crate::session::env::Env;
use crate::session::lifecycle::Plan;
use crate::session::opening::Prepared;

/// Token of a trial start, which sends nothing to the API.
const TRIAL_TOKEN: &str = "trial";

/// An endpoint whose child has not started yet.
pub(in crate::session) struct Endpoint {
    /// `None` in a trial start: requests then find no listener.
    child: Option<BrokeredChild>,
    /// The listener that was bound before the start; else the child's network has it.
    bound: Option<TcpListener>,
}

impl Endpoint {
    pub(super) fn prepare(
        plan: &Plan,
        prepared: &Prepared,
        variables: Vec<(OsString, OsString)>,
    ) -> Result<Access, StartFailure> {
        let env = plan.env();
        let (bound, network, port) = listener(env).map_err(|error| failed(&error))?;
        let authority = format!("127.0.0.1:{port}");
        let Some(broker) = &env.broker else {
            let variables = of_trial(variables, &env.access, prepared.own_credentials, &authority)?;
            return Ok(Access { variables, network, endpoint: Some(Self { child: None, bound }) });
        };
        let key = &plan.entry.key;
        let child = broker.child(ChildPlan {
            variables,
            takes_credentials: env.access.is_brokered,
            oauth: prepared.own_credentials.then(|| plan.workspace.oauth_store()),
            egress: env.access.egress.with_servers(&prepared.settings.mcp_servers),
            user: key.user().clone(),
            session: key.hash(),
            restrictions: prepared.restrictions.clone(),
        });
        let child = child.map_err(|error| failed(&error))?;
        let variables = child.environment(&authority);
        Ok(Access { variables, network, endpoint: Some(Self { child: Some(child), bound }) })
    }

    /// The child's token, which its standard error may repeat.
    pub(in crate::session) fn token(&self) -> Option<&str> {
        self.child.as_ref().map(BrokeredChild::token)
    }

    /// Serves the child that has started. Its requests end with the guard.
    ///
    /// # Errors
    /// The child has no listener, or it cannot be used.
    pub(in crate::session) fn serve(self, shim: &mut ShimHandle) -> io::Result<Option<EndpointGuard>> {
        let listener = self.bound.or_else(|| shim.take_listener());
        let Some(child) = self.child else { return Ok(None) };
        let listener = listener.ok_or_else(|| io::Error::other("the child's network has no listener"))?;
        child.serve(listener).map(Some)
    }
}

/// The listener that is bound here, and the network of the child.
fn listener(env: &Env) -> std::io::Result<(Option<TcpListener>, Network, u16)> {
    let bind = || {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        Ok::<_, std::io::Error>((listener, port))
    };
    Ok(match env.access.means {
        NetworkMeans::Private => (None, Network::Private { port: PRIVATE_PORT }, PRIVATE_PORT),
        NetworkMeans::Ports => {
            let (listener, port) = bind()?;
            (Some(listener), Network::Ports(vec![port]), port)
        }
        NetworkMeans::Open => {
            let (listener, port) = bind()?;
            (Some(listener), Network::Open, port)
        }
    })
}

/// The environment of a trial start: as that of a session, with a token that nobody accepts.
fn of_trial(
    variables: Vec<(OsString, OsString)>,
    access: &AccessRules,
    own_credentials: bool,
    authority: &str,
) -> Result<Vec<(OsString, OsString)>, StartFailure> {
    let brokered = match access.is_brokered {
        true => adapter::brokered(variables, own_credentials).map_err(|error| failed(&error))?,
        false => Brokered::without_upstream(variables),
    };
    Ok(brokered.environment(authority, TRIAL_TOKEN, ChildProxy::None))
}

fn failed(error: &dyn Display) -> StartFailure {
    StartFailure::Spawn { reason: "broker", message: error.to_string(), source: None }
}
