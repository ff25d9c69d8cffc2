//! What the start of a child needs of the broker, in one place.

use std::ffi::OsString;
use std::io;
use std::net::TcpListener;

use super::{Broker, BrokerError, Endpoint, EndpointGuard, EndpointPlan, Policy, Token, Upstream};
use crate::adapter::broker::{Brokered, ChildProxy, NotBrokered};
use crate::adapter::{self, ModelList};
use crate::config::Egress;
use crate::model::ids::{SessionHash, UserId};
use crate::turn::Restrictions;
use crate::workspace::OauthStore;

/// Start of a child, as far as the broker is concerned.
pub(crate) struct ChildPlan {
    /// The whole environment that the child would have without a broker.
    pub(crate) variables: Vec<(OsString, OsString)>,
    /// Takes the credentials out of the environment. Without, the broker is a proxy for the hosts of an allow list only.
    pub(crate) takes_credentials: bool,
    /// The session's own OAuth credentials, if it has some.
    pub(crate) oauth: Option<OauthStore>,
    /// Other hosts that the child may reach.
    pub(crate) egress: Egress,
    /// Who is charged.
    pub(crate) user: UserId,
    /// The session of the child.
    pub(crate) session: SessionHash,
    /// Those of the turns that the child is started for.
    pub(crate) restrictions: Restrictions,
    /// The token of a child that was started before its user was known.
    pub(crate) token: Option<Token>,
}

/// An endpoint, and the environment that belongs to it.
#[derive(Debug)]
pub(crate) struct BrokeredChild {
    endpoint: Endpoint,
    brokered: Brokered,
    proxy: ChildProxy,
}

/// Why a child cannot use the broker. The text is for the operator and has no secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAdmitted {
    /// Its environment.
    #[error(transparent)]
    Environment(#[from] NotBrokered),
    /// The base address or a header.
    #[error(transparent)]
    Upstream(#[from] BrokerError),
    /// The system.
    #[error("cannot make a token for a child: {0}")]
    Token(#[from] io::Error),
}

impl Broker {
    /// Divides the environment of a child and makes its endpoint.
    ///
    /// # Errors
    /// [`NotAdmitted`]: the child is not to start, or starts without a broker (`broker.credentials`).
    pub(crate) fn child(&self, plan: ChildPlan) -> Result<BrokeredChild, NotAdmitted> {
        let ChildPlan { variables, takes_credentials, oauth, egress, user, session, restrictions, token } =
            plan;
        let models = restrictions.models.map(|names| ModelList::new(&names, &variables));
        let policy = Policy { models, usd_per_day: restrictions.usd_per_day };
        let brokered = if takes_credentials {
            adapter::brokered(variables, oauth.is_some())?
        } else {
            Brokered::without_upstream(variables)
        };
        let oauth = oauth.map(|store| self.oauth(store));
        let upstream = brokered.upstream.clone().map(|plan| Upstream::new(plan, oauth)).transpose()?;
        let proxy = proxy(&egress);
        let endpoint = self.endpoint(EndpointPlan { upstream, egress, user, session, policy }, token)?;
        Ok(BrokeredChild { endpoint, brokered, proxy })
    }
}

/// The way to other hosts with `egress`.
pub(crate) fn proxy(egress: &Egress) -> ChildProxy {
    match egress {
        Egress::Open => ChildProxy::Environment,
        Egress::Api => ChildProxy::None,
        Egress::Allow(_) => ChildProxy::Broker,
    }
}

impl BrokeredChild {
    /// The token. Must not appear in logs: the child's standard error may repeat it.
    pub(crate) fn token(&self) -> &str {
        self.endpoint.token()
    }

    /// The child's environment, if it reaches the listener at `authority`: `127.0.0.1:PORT`.
    pub(crate) fn environment(&self, authority: &str) -> Vec<(OsString, OsString)> {
        self.brokered.clone().environment(authority, self.endpoint.token(), self.proxy)
    }

    /// Serves the listener until the guard is dropped. Must be called in a runtime.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub(crate) fn serve(self, listener: TcpListener) -> io::Result<EndpointGuard> {
        self.endpoint.serve(listener)
    }
}
