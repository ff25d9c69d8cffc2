//! The HTTP client of the broker: pooled connections, TLS with the host's certificate authorities.

use std::fmt;
use std::path::Path;
use std::time::Duration;

#[cfg(feature = "server")]
use bytes::Bytes;
use hyper::{Request, Response, body::Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

use super::BrokerError;
use super::body::Body;
#[cfg(feature = "server")]
use super::body::full;
use super::connector::Connector;
use crate::config;
use crate::support::tls;

/// Idle connections kept per host. More are opened under load and closed after it.
const MAX_IDLE_CONNECTIONS: usize = 64;
/// Time an idle connection is kept: below what load balancers allow, so that few are closed while a request is sent.
const IDLE_CONNECTION: Duration = Duration::from_secs(50);
/// TCP keep-alive: a response may be silent for minutes.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Client of the model's API, and of other hosts of the configuration. Follows no redirect. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client(legacy::Client<HttpsConnector<Connector>, Body>);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    pub(crate) fn new(config: &config::Broker) -> Result<Self, BrokerError> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(config.connect_timeout));
        http.set_keepalive(Some(TCP_KEEPALIVE));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls(config.ca_file.as_deref())?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector::new(http, config));
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .build(https);
        Ok(Self(client))
    }

    /// Sends a request and returns the status. The body of the response is not read: its connection is closed.
    #[cfg(feature = "server")]
    pub(crate) async fn status(&self, request: Request<Bytes>) -> Result<hyper::StatusCode, legacy::Error> {
        self.send(request.map(full)).await.map(|response| response.status())
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, legacy::Error> {
        self.0.request(request).await
    }
}

/// TLS with the authorities of the host and those of the file.
fn tls(ca_file: Option<&Path>) -> Result<ClientConfig, BrokerError> {
    let mut roots = tls::host_roots();
    if let Some(path) = ca_file {
        tls::trust(&mut roots, path)?;
    }
    Ok(tls::client(roots)?.with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_without_certificates_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("ca.pem");
        assert!(tls(None).is_ok());
        for content in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&file, content).unwrap();
            let error = tls(Some(&file)).unwrap_err().to_string();
            assert!(error.starts_with("broker.ca_file: cannot use") && error.contains("ca.pem"), "{error}");
        }
        assert!(tls(Some(&data.path().join("missing"))).is_err());
    }
}
