//! The credential broker: the only way of a child to the model's API, with credentials that the child never has.
//!
//! A child gets a random token and the address of a listener of its own. The broker accepts requests with that token, puts
//! the user's credential in its place and forwards them to the configured address. Responses are streamed. With an allow
//! list the same listener is a proxy (CONNECT) to other hosts.
//!
//! # Use
//!
//! One [`Broker`] per system; one [`BrokeredChild`] per start of a child:
//!
//! ```ignore
//! // The credentials leave the environment. An error refuses the start, or is the reason to start without a broker.
//! let child = broker.child(ChildPlan { variables, takes_credentials: true, oauth, egress, user, session, restrictions, token: None })?;
//! // The address in the child's network namespace, or that of a listener on loopback.
//! let variables = child.environment("127.0.0.1:4180");
//! // The listener, bound here or received from the shim. The guard lives as long as the child.
//! let guard = child.serve(listener)?;
//! ```
//!
//! Dropping the guard ends the listener, its connections and the token. `oauth` is [`Workspace::oauth_store`], for a
//! session with credentials of its own; [`Workspace::withdraw_credentials`] goes before.
//!
//! [`Workspace::oauth_store`]: crate::workspace::Workspace::oauth_store
//! [`Workspace::withdraw_credentials`]: crate::workspace::Workspace::withdraw_credentials

mod address;
mod body;
mod child;
mod client;
mod connection;
mod connector;
mod egress;
mod endpoint;
mod forward;
mod headers;
mod lasting;
mod oauth;
#[cfg(feature = "failpoints")]
pub mod probe;
mod refusal;
mod request;
mod shares;
mod slots;
mod tap;
mod token;
mod tunnel;
mod upstream;

use std::io;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapter::ModelList;
use crate::config;
use crate::config::{ConfigError, Egress};
use crate::error::StartError;
use crate::model::ids::{SessionHash, UserId};
use crate::spend::Spend;
use crate::support::cause::Cause;
use crate::support::tls::TlsError;
use crate::telemetry::metrics::Metrics;
use crate::workspace::OauthStore;

pub(crate) use child::{BrokeredChild, ChildPlan, proxy};
#[cfg(feature = "server")]
pub(crate) use client::Client;
#[cfg(not(feature = "server"))]
use client::Client;
pub(crate) use endpoint::{Endpoint, EndpointGuard};
pub(crate) use oauth::OauthSource;
use oauth::Renewals;
use shares::{Seen, Shares};
use slots::UserSlots;
pub(crate) use token::Token;
pub(crate) use upstream::Upstream;

/// The broker of one system.
#[derive(Debug, Clone)]
pub(crate) struct Broker(Arc<Shared>);

/// What a child's endpoint is for.
#[derive(Debug)]
pub(crate) struct EndpointPlan {
    /// The real destination of requests; `None` if the user has no credentials: they are then refused.
    pub(crate) upstream: Option<Upstream>,
    /// Other hosts that the child may reach.
    pub(crate) egress: Egress,
    /// Who is charged.
    pub(crate) user: UserId,
    /// The session of the child.
    pub(crate) session: SessionHash,
    /// What the key of the child's turns may use.
    pub(crate) policy: Policy,
}

/// What the key of a child's turns may use. A child is started for one set of restrictions, so this never changes.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    /// `None`: all models.
    pub(crate) models: Option<ModelList>,
    /// Maximum cost of the user per day.
    pub(crate) usd_per_day: Option<f64>,
}

/// What all endpoints share.
#[derive(Debug)]
struct Shared {
    config: config::Broker,
    client: Client,
    /// Connections beyond those that each endpoint has of its own.
    connections: Arc<Semaphore>,
    /// `broker.upstream_concurrency`.
    upstream: Option<Arc<Shares>>,
    /// Memory for bodies of requests, see [`MAX_BODIES`].
    bodies: Arc<Shares>,
    /// Of users with a spending limit.
    user_slots: UserSlots,
    /// Lookups of names, see [`MAX_LOOKUPS`].
    lookups: Arc<Semaphore>,
    renewals: Renewals,
    spend: Arc<Spend>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    /// Cancelled when the system has ended.
    ended: CancellationToken,
}

/// Maximum memory for bodies of requests that have not been sent yet, in units of a kilobyte: those of some hundred long
/// conversations, or of six requests of maximum size.
const MAX_BODIES: usize = 256 << 10;

/// Maximum number of names that are looked up at the same time: each occupies a thread of the runtime's pool, of which
/// work on files needs the rest.
const MAX_LOOKUPS: usize = 16;

/// What a broker needs of its system.
#[derive(Debug)]
pub(crate) struct BrokerParts {
    pub(crate) config: config::Broker,
    pub(crate) spend: Arc<Spend>,
    pub(crate) metrics: Arc<Metrics>,
    /// Every task of the system.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the system has ended.
    pub(crate) ended: CancellationToken,
}

/// Why there is no broker.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum BrokerError {
    /// The certificates are unusable.
    #[error("broker.ca_file: cannot use {}: {problem}", .path.display())]
    CaFile {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        problem: String,
    },
    /// The TLS library is unusable.
    #[error("cannot prepare TLS for the model's API: {0}")]
    Tls(Cause),
    /// The destination of an endpoint cannot be used.
    #[error("the base address or a header of the model's API cannot be used")]
    Upstream,
}

impl From<TlsError> for BrokerError {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::File { path, problem } => Self::CaFile { path, problem },
            TlsError::Library(error) => Self::Tls(error.into()),
        }
    }
}

impl From<BrokerError> for StartError {
    fn from(error: BrokerError) -> Self {
        let (key, problem) = match error {
            BrokerError::CaFile { path, problem } => {
                ("broker.ca_file", format!("cannot use {}: {problem}", path.display()))
            }
            other => ("broker", other.to_string()),
        };
        Self::Config(ConfigError::Key { key: key.to_owned(), problem })
    }
}

impl Broker {
    /// Reads certificates. Blocking.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub(crate) fn new(parts: BrokerParts) -> Result<Self, BrokerError> {
        let BrokerParts { config, spend, metrics, tasks, ended } = parts;
        let client = Client::new(&config)?;
        let connections = Arc::new(Semaphore::new(config.max_connections));
        let seen = if spend.has_several_accounts() { || Seen::Several } else { Seen::default };
        let upstream = config.upstream_concurrency.map(|most| Shares::new(most, seen(), metrics.clone()));
        let bodies = Shares::new(MAX_BODIES, seen(), metrics.clone());
        let renewals = Renewals::default();
        Ok(Self(Arc::new(Shared {
            config,
            client,
            connections,
            upstream,
            bodies,
            user_slots: UserSlots::default(),
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            renewals,
            spend,
            metrics,
            tasks,
            ended,
        })))
    }

    /// An endpoint. `token`: of a child that was started before its user was known; otherwise new.
    ///
    /// # Errors
    /// The system has no randomness.
    pub(crate) fn endpoint(&self, plan: EndpointPlan, token: Option<Token>) -> io::Result<Endpoint> {
        let shared = &self.0;
        for shares in shared.upstream.iter().chain([&shared.bodies]) {
            shares.meet(&plan.user);
        }
        Ok(Endpoint::new(shared.clone(), plan, token.map_or_else(Token::random, Ok)?))
    }

    /// The OAuth credentials of a session, renewed here.
    pub(crate) fn oauth(&self, store: OauthStore) -> Arc<OauthSource> {
        Arc::new(OauthSource::new(Arc::downgrade(&self.0), store))
    }
}

#[cfg(test)]
mod tests;
