//! Requests of the object store's crate over the HTTP client that this program has already.
//!
//! The crate's own client would bring a second TLS implementation, which needs a C compiler.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt as _;
use hyper::Uri;
use hyper::http::uri::Scheme;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector as Tcp};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
    HttpResponseBody, HttpService,
};
use rustls::ClientConfig;

use super::error::OpenError;
use crate::support::tls::{self, TlsError};

/// Time to connect.
const CONNECT: Duration = Duration::from_secs(3);
/// Idle connections kept per host.
const MAX_IDLE_CONNECTIONS: usize = 16;
/// Time an idle connection is kept: stores close theirs after some 20 seconds.
const IDLE_CONNECTION: Duration = Duration::from_secs(10);

/// Makes clients. All of them share their connections.
#[derive(Clone)]
pub(super) struct Connector(legacy::Client<HttpsConnector<Tcp>, HttpRequestBody>);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    pub(super) fn new() -> Result<Self, OpenError> {
        let mut tcp = Tcp::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls().map_err(|error| OpenError::Config(error.to_string()))?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .build(https);
        Ok(Self(client))
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if !may_go_to(request.uri()) {
            let clear = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            return Err(HttpError::new(HttpErrorKind::Unknown, clear));
        }
        let failed = |error: legacy::Error| {
            let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted };
            HttpError::new(kind, error)
        };
        let response = self.0.request(request).await.map_err(failed)?;
        let broken = |error: hyper::Error| HttpError::new(HttpErrorKind::Interrupted, error);
        Ok(response.map(|body| HttpResponseBody::new(body.map_err(broken))))
    }
}

/// Conversations and keys cross a network only under TLS. On this machine there is none to cross, nor to the address at
/// which a cloud gives credentials to its machines.
pub(super) fn may_go_to(address: &Uri) -> bool {
    let host = address.host().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_near = match ip {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback(),
        Err(_) => host == "localhost",
    };
    address.scheme() == Some(&Scheme::HTTPS) || (address.scheme() == Some(&Scheme::HTTP) && is_near)
}

/// TLS with the authorities of the host.
fn tls() -> Result<ClientConfig, TlsError> {
    Ok(tls::client(tls::host_roots())?.with_no_client_auth())
}
