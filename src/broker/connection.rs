//! One connection of a child: HTTP/1.1, parsed and framed by hyper.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::body::{Body, full};
use super::egress;
use super::endpoint::EndpointState;
use super::forward::forward;
use super::refusal::Refusal;
use super::request::{self, Target};
use super::slots::ConnectionSlot;
use crate::support::idle_timeout::IdleTimeoutIo;
use crate::telemetry::metrics::Metrics;

/// Maximum header lines of a request: the CLI sends some thirty.
const MAX_HEADERS: usize = 100;
/// Maximum size of a request's head.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Maximum time to receive the head of a request; also the time that an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection and its slot: held by the connection, then by its tunnel.
#[derive(Debug)]
pub(super) struct Held {
    _slot: ConnectionSlot,
    metrics: Arc<Metrics>,
}

impl Held {
    fn new(slot: ConnectionSlot, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.broker_connections.increment(1.0);
        Arc::new(Self { _slot: slot, metrics })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.metrics.broker_connections.decrement(1.0);
    }
}

pub(super) async fn serve(state: Arc<EndpointState>, stream: TcpStream, slot: ConnectionSlot) {
    let held = Held::new(slot, state.shared.metrics.clone());
    let stream = IdleTimeoutIo::new(stream, state.shared.config.idle_timeout);
    let service = service_fn(move |request: Request<Incoming>| handle(state.clone(), held.clone(), request));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection of a child ended early");
    }
}

async fn handle(
    state: Arc<EndpointState>,
    held: Arc<Held>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    // A length beside a coding may have been left out by the parser (RFC 9112, 6.1).
    let is_coded = request.headers().contains_key(TRANSFER_ENCODING);
    let has_body = !request.body().is_end_stream();
    let (mut response, is_refused) = match route(&state, held, request).await {
        Ok(response) => (response, false),
        Err(refusal) => {
            state.shared.metrics.broker_refusals.increment(refusal.reason);
            (refusal.into_response(), true)
        }
    };
    if is_coded || (is_refused && has_body) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

async fn route(
    state: &Arc<EndpointState>,
    held: Arc<Held>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let (method, uri, version) = (request.method(), request.uri(), request.version());
    match request::target(method, uri, version, request.headers())? {
        Target::Api if request::is_reachability(method, uri) => Ok(Response::new(full(""))),
        Target::Api if state.is_alive() && state.token.authenticates(request.headers()) => {
            forward(state, request).await
        }
        Target::Api => Err(Refusal::token()),
        _ if !(state.is_alive() && state.token.authenticates_proxy(request.headers())) => {
            Err(Refusal::proxy_token())
        }
        Target::Tunnel { host, port } => egress::tunnel(state, held, request, &host, port).await,
        Target::Plain { host, port } => egress::plain(state, request, &host, port).await,
    }
}
