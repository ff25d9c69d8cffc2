//! Connections to the model's API: direct, or through the proxy of the environment.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::{HttpConnector, proxy::Tunnel};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_service::Service;

use super::body::BodyError;
use crate::config;

/// Connects to an address, for HTTPS through a proxy if there is one.
#[derive(Clone)]
pub(super) struct Connector {
    direct: HttpConnector,
    /// `broker.proxy`, or `HTTPS_PROXY` and `NO_PROXY` of the environment.
    matcher: Arc<Matcher>,
    /// The environment is not meant for addresses of this machine.
    is_configured: bool,
    limit: Duration,
}

impl Connector {
    pub(super) fn new(direct: HttpConnector, config: &config::Broker) -> Self {
        let matcher = match &config.proxy {
            Some(proxy) => Matcher::builder().https(proxy.clone()).build(),
            None => Matcher::from_env(),
        };
        let is_configured = config.proxy.is_some();
        Self { direct, matcher: Arc::new(matcher), is_configured, limit: config.connect_timeout }
    }

    /// The tunnel to this address; `None` for a direct connection.
    fn tunnel(&self, address: &Uri) -> Option<Tunnel<HttpConnector>> {
        let is_local = address.host().is_some_and(|host| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        });
        if address.scheme_str() != Some("https") || (is_local && !self.is_configured) {
            return None;
        }
        let proxy = self.matcher.intercept(address)?;
        let tunnel = Tunnel::new(proxy.uri().clone(), self.direct.clone());
        Some(match proxy.basic_auth() {
            Some(credentials) => tunnel.with_auth(credentials.clone()),
            None => tunnel,
        })
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BodyError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BodyError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let (tunnel, mut direct, limit) = (self.tunnel(&address), self.direct.clone(), self.limit);
        Box::pin(async move {
            let connect = async {
                match tunnel {
                    Some(mut tunnel) => tunnel.call(address).await.map_err(BodyError::from),
                    None => direct.call(address).await.map_err(BodyError::from),
                }
            };
            timeout(limit, connect).await.unwrap_or_else(|_| Err("no connection in time".into()))
        })
    }
}
