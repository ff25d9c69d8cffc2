//! Requests over HTTP/1.1 with pooled connections.

use std::error::Error;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};

use super::status::Failure;
use crate::cluster::ledger::error::LedgerError;

/// Idle connections kept per endpoint.
const MAX_IDLE_CONNECTIONS: usize = 16;
/// Time an idle connection is kept.
const IDLE_CONNECTION: Duration = Duration::from_secs(50);
/// TCP keep-alive: finds a dead peer below the watch.
const TCP_KEEPALIVE: Duration = Duration::from_secs(10);
/// Causes of an error that are looked at.
const MAX_CAUSES: usize = 8;
/// An endpoint without a leader refuses at once, in place of waiting for one.
const REQUIRE_LEADER: &str = "grpc-metadata-hasleader";

pub(super) struct Transport(legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Transport {
    pub(super) fn new(tls: ClientConfig, connect: Duration) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(connect));
        http.set_keepalive(Some(TCP_KEEPALIVE));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        Self(
            legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_CONNECTION)
                .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
                .build(https),
        )
    }

    /// Sends a request and returns the head of its answer, until the end.
    pub(super) async fn send(
        &self,
        uri: Uri,
        body: Bytes,
        token: Option<&str>,
        end: Instant,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(CONTENT_TYPE, "application/json")
            .header(REQUIRE_LEADER, "true");
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(token)
                .map_err(|_| Failure::Final(LedgerError::BadAnswer("the token")))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Full::new(body)).map_err(|_| Failure::Elsewhere("request"))?;
        match timeout_at(end, self.0.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Failure::Elsewhere(category(&error))),
            Err(_) => Err(Failure::Elsewhere("timeout")),
        }
    }
}

/// Reads a body up to a size.
pub(super) async fn read(mut body: Incoming, limit: usize, end: Instant) -> Result<Bytes, Failure> {
    let mut content = BytesMut::new();
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Failure::Elsewhere("connection closed"))?;
            let Ok(data) = frame.into_data() else { continue };
            if content.len() + data.len() > limit {
                return Err(Failure::Final(LedgerError::TooLarge("answer")));
            }
            content.extend_from_slice(&data);
        }
        Ok(())
    };
    match timeout_at(end, reading).await {
        Ok(result) => result.map(|()| content.freeze()),
        Err(_) => Err(Failure::Elsewhere("timeout")),
    }
}

/// A word for an error, whose own text may hold an address.
fn category(error: &legacy::Error) -> &'static str {
    if is_tls(error, MAX_CAUSES) {
        "TLS"
    } else if error.is_connect() {
        "no connection"
    } else {
        "connection closed"
    }
}

/// One of the causes is an error of TLS. An I/O error wraps its cause beside the usual chain.
fn is_tls(error: &(dyn Error + 'static), depth: usize) -> bool {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || depth > 0
            && (wrapped.is_some_and(|wrapped| is_tls(wrapped, depth - 1))
                || error.source().is_some_and(|cause| is_tls(cause, depth - 1)))
}
