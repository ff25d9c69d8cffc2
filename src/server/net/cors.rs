//! CORS: origins allowed to call, from `http.cors_origins`. A preflight is answered before authentication, because
//! browsers send it without a key.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::server::api::error::RETRY_AFTER_MS;
use crate::server::api::router::MESSAGES_REQUEST_ID;
use crate::server::auth::caller::REQUEST_ID_HEADER;
use crate::server::auth::limits::quota_headers;
use crate::server::turns::idempotency::REPLAYED_HEADER;
use crate::server::turns::prefer::APPLIED_HEADER;
use crate::server::turns::{IGNORED_HEADER, SESSION_HEADER};

/// Maximum age of a cached preflight. Browsers allow hours, but a removed origin should lose access sooner.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Layer around all routes; `None` without origins. Origins match exactly. Keys travel in headers, never in cookies, so
/// credentials are not allowed.
pub(crate) fn layer(origins: &[String]) -> Option<CorsLayer> {
    let origins: Vec<_> = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
    if origins.is_empty() {
        return None;
    }
    let exposed = [
        SESSION_HEADER,
        HeaderName::from_static(IGNORED_HEADER),
        HeaderName::from_static(REQUEST_ID_HEADER),
        MESSAGES_REQUEST_ID,
        REPLAYED_HEADER,
        APPLIED_HEADER,
        header::LOCATION,
        header::RETRY_AFTER,
        RETRY_AFTER_MS,
        HeaderName::from_static("x-should-retry"),
    ];
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        // SDKs send a dozen headers that change with versions; a header alone grants nothing.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(Vec::from_iter(exposed.into_iter().chain(quota_headers())))
        .max_age(REMEMBERED);
    Some(layer)
}
