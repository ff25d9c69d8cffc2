//! Sends a request to another node, and passes its answer through as it arrives.

use std::error::Error;
use std::sync::Mutex;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;

use super::lost::{EndsOnLoss, Gone};
use super::peer::Peers;
use super::tls::PeerTls;
use crate::server::api::error::ErrorForm;
use crate::server::api::router::RequestId;
use crate::server::auth::caller::{Caller, REQUEST_ID_HEADER};
use crate::support::lock::MutexExt as _;

/// Maximum time to reach another node of the cluster: one that is there answers in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Idle connections to one node; a burst beyond it opens others.
const IDLE_CONNECTIONS: usize = 64;
/// Time after which an idle connection is closed, before the other node does it (`http.header_timeout`).
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers of one connection, which do not go on to the next.
const OF_CONNECTION: [HeaderName; 5] = [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
/// The same, formerly.
const KEEP_ALIVE: &str = "keep-alive";
/// Headers of the request that are not sent as they are. Who the caller is goes signed; its credentials open more than this request.
const NOT_FORWARDED: [HeaderName; 6] =
    [HOST, CONTENT_LENGTH, AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE, HeaderName::from_static("x-api-key")];

/// Minimum interval between log lines about nodes that are not reached: each request tries several times.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Forwarder {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    logged: Mutex<Option<Instant>>,
}

/// Why a request has no answer of the other node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ForwardError {
    /// The other node has not received it: it may be sent again.
    Unreached,
    /// The other node may have begun it.
    Lost,
}

impl Forwarder {
    pub(super) fn new(tls: &PeerTls) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(tls.connector(connector));
        Self { client, logged: Mutex::default() }
    }

    /// Certificates that are not trusted show in no other place.
    fn log(&self, address: &str, error: &dyn Error) {
        let mut logged = self.logged.lock_unpoisoned();
        if logged.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
            *logged = Some(Instant::now());
            let mut cause = error.to_string();
            let mut next = error.source();
            while let Some(error) = next {
                cause = error.to_string();
                next = error.source();
            }
            tracing::warn!(address, %error, cause, "another node cannot be reached");
        }
    }

    /// Sends a request to the node at `address`, until that is `gone`. Dropping the answer ends the request there.
    pub(super) async fn send(
        &self,
        peers: &Peers,
        (parts, body): (&Parts, Bytes),
        caller: &Caller,
        (address, gone): (&str, impl Future<Output = ()> + Send + 'static),
        form: ErrorForm,
    ) -> Result<Response, ForwardError> {
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let uri = format!("{}://{address}{target}", peers.tls.scheme());
        let uri: Uri = uri.parse().map_err(|_| ForwardError::Unreached)?;
        let mut headers = forwarded(&parts.headers);
        if !body.is_empty() {
            headers.insert(CONTENT_LENGTH, body.len().into());
        }
        // One request, one id on both nodes.
        if let Some(RequestId(id)) = parts.extensions.get()
            && let Ok(id) = HeaderValue::try_from(id)
        {
            headers.insert(REQUEST_ID_HEADER, id);
        }
        peers.sign(&mut headers, &parts.method, &uri, caller, &body).ok_or(ForwardError::Unreached)?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let mut gone: Gone = Box::pin(gone);
        let sent = tokio::select! {
            sent = self.client.request(request) => sent,
            () = &mut gone => return Err(ForwardError::Lost),
        };
        let mut response = sent.map_err(|error| {
            self.log(address, &error);
            if error.is_connect() { ForwardError::Unreached } else { ForwardError::Lost }
        })?;
        without_connection(response.headers_mut());
        Ok(EndsOnLoss::wrap(response.map(Body::new), form, &parts.uri, gone))
    }
}

/// What goes on to another node of the headers of a request.
fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    without_connection(&mut headers);
    for name in &NOT_FORWARDED {
        headers.remove(name);
    }
    headers
}

/// Removes what is about one connection, also what `Connection` names.
fn without_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in OF_CONNECTION.iter().chain(&named) {
        headers.remove(name);
    }
    headers.remove(KEEP_ALIVE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_headers_of_the_connection_stay() {
        let lines = [
            ("connection", "close, x-mine"),
            ("keep-alive", "timeout=5"),
            ("x-mine", "1"),
            ("transfer-encoding", "chunked"),
            ("accept", "text/event-stream"),
            ("authorization", "Bearer k"),
            ("x-api-key", "k"),
            ("cookie", "k=v"),
            ("content-length", "5"),
        ];
        let headers: HeaderMap =
            lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        assert_eq!(forwarded(&headers).keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }
}
