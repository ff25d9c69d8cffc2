//! Routes, and the outermost layer: authentication, request ids, error bodies, metrics, one log line per request.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::HttpBody;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use tokio::time::Instant;
use tracing::Instrument as _;

#[cfg(feature = "cluster")]
use super::cluster as nodes;
use super::{
    events, health, models, openapi, overview, responses, sessions, stats, trace, turns as kept_turns, usage,
    users,
};
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::app::App;
use crate::server::auth::AuthPolicy;
use crate::server::auth::caller::{Caller, REQUEST_ID_HEADER, request_id};
use crate::server::auth::limits::RequestQuota;
use crate::server::auth::revoked;
#[cfg(feature = "cluster")]
use crate::server::cluster;
use crate::server::exporter::labels;
use crate::server::net::cors;
use crate::server::{dialect, page, turns};
use crate::telemetry::metrics::{HttpLimit, HttpMetrics};

/// Paths of the streams that do not belong to a turn.
const SESSION_EVENTS: [&str; 3] = ["/v1/events/stream", "/v1/happenings", "/v1/sessions/{id}/live"];
/// Retry delay when all connections are in use: streams end all the time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Request id, in the extensions of each request.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// Marks the response of an accepted turn, which has its own log line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OfTurn;

/// Marks a replayed response, which keeps its original request id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replayed;

/// Marks a response whose request body was read completely.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyRead;

pub(crate) fn public(app: Arc<App>, policy: AuthPolicy) -> Router {
    let router = routes();
    let cors = cors::layer(&app.pilot.current().http.cors_origins);
    let counted = app.clone();
    let router = finish(router, app, policy);
    match cors {
        // Outermost: applies before authentication and to refusals.
        Some(cors) => router.layer(cors).layer(from_fn_with_state(counted, count_preflight)),
        None => router,
    }
}

fn routes() -> Router<Arc<App>> {
    let router = Router::new()
        .route("/", get(page::root))
        .route("/page/{file}", get(page::file))
        .route("/openapi.json", get(openapi::serve))
        .route("/v1/messages", turns::post(dialect::messages))
        .route("/v1/messages/keepalive", turns::post(dialect::legacy::parse_stream))
        .route("/v1/messages/pooled", turns::post(dialect::legacy::parse_stream))
        .route("/v1/messages/count_tokens", post(models::count_tokens))
        .route("/v1/chat/completions", turns::post(dialect::openai::parse))
        .route("/v1/responses", turns::post(dialect::responses::parse))
        .route("/v1/responses/{id}", get(responses::one).delete(responses::delete))
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route("/v1/responses/{id}/input_items", get(responses::input_items))
        .route("/v1/turns/{id}", get(kept_turns::one).delete(kept_turns::delete))
        .route("/v1/turns/{id}/events", get(kept_turns::events))
        .route("/v1/turns/{id}/cancel", post(kept_turns::cancel))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{id}", get(models::one))
        .route("/v1/pool/stats", get(stats::pool))
        .route("/v1/usage", get(usage::report))
        .route("/v1/overview", get(overview::show))
        .route("/v1/events/stream", get(events::stream))
        .route("/v1/happenings", get(events::deprecated))
        .merge(sessions::routes());
    #[cfg(feature = "cluster")]
    let router = router
        .route("/v1/cluster", get(nodes::show))
        .route("/v1/cluster/drain", post(nodes::drain))
        .route("/v1/cluster/resume", post(nodes::resume))
        .route("/v1/cluster/rebalance", post(nodes::rebalance))
        .route("/v1/cluster/nodes/{name}", delete(nodes::forget));
    router
}

/// Counts preflights, which do not reach the outermost layer. Every OPTIONS request is one.
async fn count_preflight(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if request.method() != Method::OPTIONS {
        return next.run(request).await;
    }
    let begin = Instant::now();
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = next.run(request).await;
    count(&app.exporter.metrics, path.as_deref(), response.status(), None, begin.elapsed());
    response
}

/// Router of the listener for other nodes of a cluster: what they may send on.
#[cfg(feature = "cluster")]
pub(crate) fn peers(app: Arc<App>, policy: AuthPolicy) -> Router {
    let router = routes().merge(user_routes());
    finish(router, app, policy)
}

fn user_routes() -> Router<Arc<App>> {
    Router::new().route("/v1/users", delete(users::delete)).route("/v1/users/{id}", delete(users::delete))
}

pub(crate) fn admin(app: Arc<App>, policy: AuthPolicy) -> Router {
    let router = Router::new().route("/metrics", get(health::metrics)).merge(user_routes());
    finish(router, app, policy)
}

/// Router of connections beyond the limit: refuses all but `/livez`, because a prober must not mistake overload for a
/// crash.
pub(crate) fn overloaded(metrics: Arc<HttpMetrics>) -> Router {
    async fn refuse(State(metrics): State<Arc<HttpMetrics>>, uri: Uri, headers: HeaderMap) -> Response {
        metrics.limited.increment(HttpLimit::Connections);
        let message = "all connections are in use (http.max_connections)";
        let id = request_id(&headers);
        let form = error_form(uri.path(), &headers);
        let mut response = ApiError::overloaded(message, RETRY_AFTER).render(form, &id);
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID_HEADER, id);
        }
        response
    }
    let leave = |mut response: Response| async {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    };
    Router::new()
        .route("/livez", get(health::livez))
        .fallback(refuse)
        .layer(map_response(leave))
        .with_state(metrics)
}

/// Adds routes and the outermost layer of both listeners. One layer, because each allocates its future and moves the
/// request once more. Bodies are limited where they are read.
fn finish(router: Router<Arc<App>>, app: Arc<App>, policy: AuthPolicy) -> Router {
    router
        .route("/health", get(health::health))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .fallback(|method: Method, uri: Uri| async move { ApiError::no_such_path(&method, &uri) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::no_such_method(&method, &uri)
        })
        .layer(from_fn_with_state((app.clone(), policy), handle_request))
        .with_state(app)
}

async fn handle_request(
    State((app, policy)): State<(Arc<App>, AuthPolicy)>,
    mut request: Request,
    next: Next,
) -> Response {
    let begin = Instant::now();
    let id = request_id(request.headers());
    // The pattern, because the path is arbitrary text.
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let has_body = !request.body().is_end_stream();
    request.extensions_mut().insert(RequestId(id.clone()));
    let form = error_form(request.uri().path(), request.headers());
    let (mut key, mut is_admitted, mut revoked, mut entry) = (None, false, None, None);
    let is_turn_stream = path.as_deref().is_none_or(|path| !SESSION_EVENTS.contains(&path));
    let (admitted, quota) = admit(&app, &policy, &mut request);
    let response = match admitted {
        Ok(caller) => {
            is_admitted = true;
            key = caller.as_ref().and_then(Caller::key_id).map(str::to_owned);
            revoked = caller.as_ref().and_then(Caller::revoked).cloned();
            // Requests of other nodes are recorded there.
            let recorded = |caller: &Caller| match policy.is_for_peers() {
                true => None,
                false => app.audit.begin(&method, path.as_deref(), caller.recorded_as(), &id, request.uri()),
            };
            entry = caller.as_ref().and_then(recorded);
            let caller = caller.map(|caller| caller.recorded(entry.clone()));
            caller.and_then(|caller| request.extensions_mut().insert(caller));
            let span =
                tracing::info_span!("request", request_id = id, trace_id = trace::id(request.headers()));
            trace::begin(&span, request.headers(), &method, path.as_deref());
            #[cfg(feature = "cluster")]
            let answering = cluster::answer(&app, request, next, policy.is_for_peers(), form);
            #[cfg(not(feature = "cluster"))]
            let answering = next.run(request);
            let answering = answering.instrument(span.clone());
            let response = match &revoked {
                Some(revoked) => tokio::select! {
                    biased;
                    response = answering => response,
                    () = revoked.cancelled() => revoked::error().into_response(),
                },
                None => answering.await,
            };
            trace::answered(&span, response.status());
            response
        }
        Err(error) => error.into_response(),
    };
    let is_body_left = has_body && response.extensions().get::<BodyRead>().is_none();
    let is_of_turn = response.extensions().get::<OfTurn>().is_some();
    let form = response.extensions().get::<ErrorForm>().copied().unwrap_or(form);
    let mut response = typed(response, form, &id);
    if let Some(quota) = quota {
        quota.describe(response.headers_mut(), form, SystemTime::now());
    }
    if is_body_left {
        // Unread bytes would be parsed as the next request.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if response.extensions().get::<Replayed>().is_none() {
        with_request_id(response.headers_mut(), &id);
    }
    if let Some(revoked) = revoked {
        response = revoked::watched(response, revoked, form, is_turn_stream);
    }
    let code = response.extensions().get::<ApiError>().map(ApiError::code);
    count(&app.exporter.metrics, path.as_deref(), response.status(), code, begin.elapsed());
    if let Some(entry) = entry {
        entry.answered(&response, code);
    }
    if let (Some(code), true, false) = (code, is_admitted, is_of_turn) {
        // Unauthenticated requests are counted but not logged: a stranger must not fill the log.
        tracing::info!(request_id = id, code, status = response.status().as_u16(), "request refused");
    }
    tracing::debug!(
        request_id = id, %method, path, key, status = response.status().as_u16(), code,
        took_ms = begin.elapsed().as_millis(), "request"
    );
    response
}

pub(crate) fn with_request_id(headers: &mut HeaderMap, id: &str) {
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID_HEADER, value.clone());
        headers.insert(MESSAGES_REQUEST_ID, value);
    }
}

fn count(
    counted: &HttpMetrics,
    path: Option<&str>,
    status: StatusCode,
    code: Option<&'static str>,
    took: Duration,
) {
    counted.answered(labels::route(path), labels::class(status), took);
    let Some(code) = code else { return };
    if let Some(why) = labels::auth_failure(code, status) {
        counted.auth_failures.increment(why);
    }
    if let Some(what) = labels::limit(code) {
        counted.limited.increment(what);
    }
}

/// Header in which SDKs of the Messages API expect the request id.
pub(crate) const MESSAGES_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

pub(crate) fn error_form(path: &str, headers: &HeaderMap) -> ErrorForm {
    let is_shared = path.starts_with("/v1/models") && !headers.contains_key(models::ANTHROPIC_VERSION);
    match path {
        _ if is_shared || path.starts_with("/v1/chat/") => ErrorForm::ChatCompletions,
        "/v1/messages" | "/v1/messages/count_tokens" => ErrorForm::Messages,
        _ if path == "/v1/responses" || path.starts_with("/v1/responses/") => ErrorForm::Responses,
        _ => ErrorForm::Own,
    }
}

/// Authenticates a request and counts it against the rate limit: its caller, and what the caller has left.
fn admit(
    app: &App,
    policy: &AuthPolicy,
    request: &mut Request,
) -> (Result<Option<Caller>, ApiError>, Option<RequestQuota>) {
    #[cfg(feature = "cluster")]
    if let Some(peers) = &policy.peers {
        return (peers.admit_whole(request).map(Some), None);
    }
    match policy.admit(request.uri(), request.headers()) {
        Ok(Some(caller)) if policy.counts(request.uri()) => match app.rate_limits.count(&caller) {
            Ok(quota) => (Ok(Some(caller)), quota),
            Err(exceeded) => {
                app.audit.refused(exceeded.error.code(), caller.recorded_as());
                (Err(exceeded.error), Some(exceeded.quota))
            }
        },
        Err(error) => {
            let (key, role) = policy.refused_as(request.headers());
            app.audit.refused(error.code(), (key.as_deref(), role));
            (Err(error), None)
        }
        admitted => (admitted, None),
    }
}

/// Gives every error a typed body, also bare statuses of lower layers.
fn typed(mut response: Response, form: ErrorForm, request_id: &str) -> Response {
    let status = response.status();
    let error = response.extensions_mut().remove::<ApiError>();
    let is_bare = || {
        let json = HeaderValue::from_static("application/json");
        (status.is_client_error() || status.is_server_error())
            && response.headers().get(header::CONTENT_TYPE) != Some(&json)
    };
    let Some(error) = error.or_else(|| is_bare().then(|| ApiError::of_status(status))) else {
        return response;
    };
    let mut rendered = error.render(form, request_id);
    let kept = [header::ALLOW, turns::SESSION_HEADER];
    #[cfg(feature = "cluster")]
    let kept = kept.into_iter().chain(cluster::OF_ERRORS);
    for kept in kept {
        if let Some(value) = response.headers_mut().remove(&kept) {
            rendered.headers_mut().insert(kept, value);
        }
    }
    rendered.extensions_mut().insert(error);
    rendered
}
