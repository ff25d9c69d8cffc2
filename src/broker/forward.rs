//! A request to the model's API, and its response.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, TRANSFER_ENCODING};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::Policy;
use super::body::{Body, BodyFault, Limited, full};
use super::endpoint::EndpointState;
use super::headers;
use super::lasting::Lasting;
use super::refusal::Refusal;
use super::request;
use super::shares::Share;
use super::tap::{Meter, Tap};
use crate::adapter;
use crate::adapter::broker::{ApiCall, UsageReader};
use crate::telemetry::metrics::UpstreamStatus;

/// Longest request body: the API accepts 32 MB.
pub(super) const MAX_BODY_BYTES: u64 = 40 << 20;
/// A longer body is read for its models elsewhere: a megabyte takes a millisecond or two.
const CHECK_INLINE_BYTES: usize = 256 << 10;
/// Set by the CLI's HTTP library on each attempt but the first.
const RETRY_COUNT: &str = "x-stainless-retry-count";

/// Forwards a request that has the token.
pub(super) async fn forward(
    endpoint: &Arc<EndpointState>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let shared = &endpoint.shared;
    let (call, path) = request::api_call(request.method(), request.uri())?;
    // The CLI states the length of each body. Without codings there is one way to read where a request ends: the parser
    // leaves a length beside a coding out, so the pair cannot be seen here.
    if request.headers().contains_key(TRANSFER_ENCODING) {
        return Err(Refusal::without_length());
    }
    let Some(upstream) = &endpoint.plan.upstream else {
        let message =
            "there are no credentials of the model's API for this user (cli.env, cli.user_env_file)";
        return Err(Refusal::no_credentials(message));
    };
    let stated = request.body().size_hint().lower();
    if stated > MAX_BODY_BYTES {
        return Err(Refusal::too_large(MAX_BODY_BYTES));
    }
    let user = &endpoint.plan.user;
    // The whole body is here before the request gets a slot at the API: a child that sends slowly holds none.
    let kilobytes = usize::try_from(stated.div_ceil(1 << 10)).unwrap_or(usize::MAX);
    let room = shared.bodies.acquire(user, kilobytes).await?;
    let (parts, body) = request.into_parts();
    let body =
        Limited::new(body, MAX_BODY_BYTES, shared.config.idle_timeout).receive().await.map_err(unreceived)?;
    let policy = &endpoint.plan.policy;
    let is_limited = call == ApiCall::Inference && (shared.spend.has_limit() || policy.usd_per_day.is_some());
    let mut user_slot = None;
    if call == ApiCall::Inference {
        check_models(policy, &body).await?;
        if is_limited {
            // Before the check: what runs is charged before its slot is free.
            user_slot = Some(shared.user_slots.acquire(user).await?);
        }
        match shared.spend.check(user, policy.usd_per_day).await {
            Ok(Ok(())) => {}
            Ok(Err(spent)) => return Err(Refusal::spent(spent)),
            Err(_) => return Err(Refusal::no_account()),
        }
    }
    if parts.headers.get(RETRY_COUNT).is_some_and(|count| count != "0") {
        shared.metrics.upstream_retries.increment(1);
    }
    let slot = match &shared.upstream {
        Some(slots) => Some(slots.acquire(user, 1).await?),
        None => None,
    };
    let mut headers = headers::to_upstream(parts.headers);
    let token = upstream.authenticate(&mut headers).await?;
    let session = endpoint.plan.session.clone();
    let meter = Meter::new(shared.clone(), user.clone(), session, (slot, user_slot), body.len() as u64);
    let mut forwarded = Request::new(full(Bytes::from_owner(Stored { bytes: body, _room: room })));
    *forwarded.method_mut() = parts.method;
    *forwarded.uri_mut() = upstream.address(&path).ok_or_else(Refusal::path)?;
    *forwarded.headers_mut() = headers;

    let exchange = exchange(endpoint.clone(), forwarded, path, call, token, meter);
    if is_limited { Lasting::new(shared.clone(), exchange).await } else { exchange.await }
}

/// A body with its share of memory, which is free once it has been sent.
struct Stored {
    bytes: Bytes,
    _room: Share,
}

impl AsRef<[u8]> for Stored {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn unreceived(fault: BodyFault) -> Refusal {
    match fault {
        BodyFault::TooLarge => Refusal::too_large(MAX_BODY_BYTES),
        BodyFault::Silent => Refusal::slow_body(),
        BodyFault::Broken(_) => Refusal::broken_body(),
    }
}

/// Checks the models that a request names. A long body is read on a thread for blocking work.
async fn check_models(policy: &Policy, body: &Bytes) -> Result<(), Refusal> {
    let Some(models) = &policy.models else { return Ok(()) };
    if body.len() <= CHECK_INLINE_BYTES {
        return models.check(body).map_err(|refused| Refusal::model(&refused));
    }
    let (models, body) = (models.clone(), body.clone());
    let checked = tokio::task::spawn_blocking(move || models.check(&body)).await;
    checked.map_err(|_| Refusal::broken_body())?.map_err(|refused| Refusal::model(&refused))
}

/// Sends a request and receives the head of its response.
async fn exchange(
    endpoint: Arc<EndpointState>,
    forwarded: Request<Body>,
    path: PathAndQuery,
    call: ApiCall,
    token: Option<HeaderValue>,
    meter: Meter,
) -> Result<Response<Body>, Refusal> {
    let shared = &endpoint.shared;
    let begun = Instant::now();
    let sent = timeout(shared.config.first_byte_timeout, shared.client.send(forwarded)).await;
    let response = match sent {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            shared.metrics.upstream_requests.increment(UpstreamStatus::Missing);
            tracing::debug!(%error, "a request to the model's API failed");
            return Err(Refusal::unreachable());
        }
        Err(_) => {
            meter.count_unanswered();
            shared.metrics.upstream_requests.increment(UpstreamStatus::Missing);
            return Err(Refusal::slow_upstream());
        }
    };
    shared.metrics.upstream_first_byte.record(begun.elapsed());
    shared.metrics.upstream_requests.increment(status_label(response.status()));
    if let (Some(token), Some(upstream)) = (token, &endpoint.plan.upstream)
        && response.status() == StatusCode::UNAUTHORIZED
    {
        upstream.rejected(token);
    }
    answer(&endpoint, &path, call, response, meter)
}

/// The response for the child.
fn answer(
    endpoint: &EndpointState,
    path: &PathAndQuery,
    call: ApiCall,
    response: Response<Incoming>,
    meter: Meter,
) -> Result<Response<Body>, Refusal> {
    let (mut parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::unreachable());
    }
    if parts.status.is_redirection()
        && let Some(location) = parts.headers.get(LOCATION)
    {
        let upstream = endpoint.plan.upstream.as_ref();
        let location = upstream.and_then(|upstream| upstream.redirection(path, location));
        parts.headers.insert(LOCATION, location.ok_or_else(Refusal::redirect)?);
    }
    let is_counted = call == ApiCall::Inference && parts.status.is_success();
    let reader = if is_counted { reader(&parts.headers) } else { None };
    parts.headers = headers::to_child(parts.headers);
    parts.extensions = Default::default();
    Ok(Response::from_parts(parts, Tap::new(body, reader, meter).boxed_unsync()))
}

/// Reader of the tokens; `None` for a response in a form that was not asked for.
fn reader(headers: &HeaderMap) -> Option<Box<dyn UsageReader>> {
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        tracing::debug!("the model's API compresses although it should not: the tokens are not counted");
        return None;
    }
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes().to_ascii_lowercase()).unwrap_or_default();
    Some(adapter::usage_reader(kind.starts_with(b"text/event-stream")))
}

fn status_label(status: StatusCode) -> UpstreamStatus {
    match status.as_u16() {
        429 => UpstreamStatus::Limited,
        529 => UpstreamStatus::Overloaded,
        300..400 => UpstreamStatus::Redirected,
        400..500 => UpstreamStatus::Refused,
        500.. => UpstreamStatus::Failed,
        _ => UpstreamStatus::Served,
    }
}
