//! Requests of the object store's crate over the HTTP client that this program has already.
//!
//! The crate's own client would bring a second TLS implementation, which needs a C compiler.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
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
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::error::OpenError;

/// Time to connect.
const CONNECT: Duration = Duration::from_secs(3);
/// Idle connections kept per host.
const MAX_IDLE_CONNECTIONS: usize = 16;
/// Time an idle connection is kept: stores close theirs after some 20 seconds.
const IDLE_CONNECTION: Duration = Duration::from_secs(10);
/// Largest file of certificates.
const MAX_CA_FILE_BYTES: u64 = 4 << 20;

/// Makes clients. All of them share their connections.
#[derive(Clone)]
pub(super) struct Connector(legacy::Client<HttpsConnector<Tcp>, HttpRequestBody>);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    pub(super) fn new(ca_file: Option<&Path>) -> Result<Self, OpenError> {
        let mut tcp = Tcp::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls(ca_file)?)
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

/// TLS with the authorities of the host, or a copy of the public ones if it has none, and those of the file.
fn tls(ca_file: Option<&Path>) -> Result<ClientConfig, OpenError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = ca_file {
        let wrong =
            |problem: &str| OpenError::Directory { path: path.to_owned(), problem: problem.to_owned() };
        let content = crate::workspace::read_own(path, MAX_CA_FILE_BYTES);
        let content = content.map_err(|error| wrong(&error.to_string()))?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
        let found = found.map_err(|_| wrong("not a file of certificates"))?;
        if roots.add_parsable_certificates(found).0 == 0 {
            return Err(wrong("no certificate is in it"));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| OpenError::Config(format!("TLS: {error}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
