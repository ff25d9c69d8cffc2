//! An endpoint by itself, for the benchmarks of this package.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Broker, BrokerParts, EndpointGuard, EndpointPlan, Policy, Upstream};
use crate::adapter::broker::{CredentialPlan, UpstreamPlan};
use crate::config::{self, Egress};
use crate::model::ids::{SessionHash, UserId};
use crate::spend::Spend;
use crate::telemetry::metrics::Metrics;

/// A serving endpoint; it ends when it is dropped.
#[derive(Debug)]
pub struct Probe {
    /// What requests need.
    pub token: String,
    _guard: EndpointGuard,
}

impl Probe {
    /// Serves a listener for a user whose requests go to this address.
    ///
    /// # Errors
    /// The address or the listener cannot be used.
    pub fn serve(base_url: &str, data_dir: &std::path::Path, listener: TcpListener) -> io::Result<Self> {
        let (tasks, ended) = (TaskTracker::new(), CancellationToken::new());
        let broker = Broker::new(BrokerParts {
            config: config::Broker::default(),
            spend: Arc::new(Spend::new(data_dir, Some(1e6), tasks.clone(), ended.clone())),
            metrics: Arc::new(Metrics::register(&::metrics::NoopRecorder, "pilotlight_")),
            tasks,
            ended,
        });
        let plan = UpstreamPlan {
            base_url: base_url.parse().map_err(io::Error::other)?,
            credential: CredentialPlan::ApiKey("key".to_owned()),
            headers: Vec::new(),
        };
        let session = SessionHash::parse(&"0".repeat(32)).ok_or(io::ErrorKind::InvalidInput)?;
        let plan = EndpointPlan {
            upstream: Some(Upstream::new(plan, None).map_err(io::Error::other)?),
            egress: Egress::Api,
            user: UserId::new("user").map_err(io::Error::other)?,
            session,
            policy: Policy::default(),
        };
        let endpoint = broker.map_err(io::Error::other)?.endpoint(plan, None)?;
        Ok(Self { token: endpoint.token().to_owned(), _guard: endpoint.serve(listener)? })
    }
}
