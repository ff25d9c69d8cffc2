//! A request to the model's API, and its response.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, TRANSFER_ENCODING};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::body::{Body, BodyEnd, BodyState, Limited};
use super::endpoint::EndpointState;
use super::headers;
use super::lasting::Lasting;
use super::refusal::Refusal;
use super::request;
use super::tap::{Meter, Tap};
use crate::adapter;
use crate::adapter::broker::{ApiCall, UsageReader};
use crate::telemetry::metrics::UpstreamStatus;

/// Longest request body: the API accepts 32 MB.
pub(super) const MAX_BODY_BYTES: u64 = 40 << 20;
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
    if request.body().size_hint().lower() > MAX_BODY_BYTES {
        return Err(Refusal::too_large(MAX_BODY_BYTES));
    }
    let user = &endpoint.plan.user;
    let is_limited = call == ApiCall::Inference && shared.spend.has_limit();
    // Before the check: what runs is charged before its slot is free.
    let user_slot = if is_limited { Some(shared.user_slots.acquire(user).await?) } else { None };
    if call == ApiCall::Inference {
        match shared.spend.check(user, None).await {
            Ok(Ok(())) => {}
            Ok(Err(spent)) => return Err(Refusal::spent(spent)),
            Err(_) => return Err(Refusal::no_account()),
        }
    }
    if request.headers().get(RETRY_COUNT).is_some_and(|count| count != "0") {
        shared.metrics.upstream_retries.increment(1);
    }
    let request_bytes = request.body().size_hint().lower();
    let slot = endpoint.upstream_slots.acquire().await?;
    let (parts, body) = request.into_parts();
    let mut headers = headers::to_upstream(parts.headers);
    let token = upstream.authenticate(&mut headers).await?;
    let (body, state) = Limited::new(body, MAX_BODY_BYTES, shared.config.idle_timeout);
    let mut forwarded = Request::new(body.boxed_unsync());
    *forwarded.method_mut() = parts.method;
    *forwarded.uri_mut() = upstream.address(&path).ok_or_else(Refusal::path)?;
    *forwarded.headers_mut() = headers;

    let session = endpoint.plan.session.clone();
    let meter = Meter::new(shared.clone(), user.clone(), session, (slot, user_slot), request_bytes);
    let exchange = exchange(endpoint.clone(), forwarded, state, path, call, token, meter);
    if is_limited { Lasting::new(shared.clone(), exchange).await } else { exchange.await }
}

/// Sends a request and receives the head of its response.
async fn exchange(
    endpoint: Arc<EndpointState>,
    forwarded: Request<Body>,
    state: Arc<BodyState>,
    path: PathAndQuery,
    call: ApiCall,
    token: Option<HeaderValue>,
    meter: Meter,
) -> Result<Response<Body>, Refusal> {
    let shared = &endpoint.shared;
    let begun = Instant::now();
    let sent = timeout(shared.config.first_byte_timeout, shared.client.send(forwarded)).await;
    let response = match (sent, state.end()) {
        (Ok(Ok(response)), _) => response,
        (_, BodyEnd::TooLarge) => return Err(Refusal::too_large(MAX_BODY_BYTES)),
        (_, BodyEnd::Slow) => return Err(Refusal::slow_body()),
        (Ok(Err(error)), BodyEnd::Fine) => {
            shared.metrics.upstream_requests.increment(UpstreamStatus::Missing);
            tracing::debug!(%error, "a request to the model's API failed");
            return Err(Refusal::unreachable());
        }
        (Err(_), BodyEnd::Fine) => {
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
