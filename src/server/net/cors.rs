//! Web pages of other origins that may call, as `http.cors_origins` names them. A preflight is answered before a key is
//! looked at: a browser sends none with it.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::server::api::router::MESSAGES_REQUEST_ID;
use crate::server::auth::caller::REQUEST_ID_HEADER;
use crate::server::turns::idempotency::REPLAYED_HEADER;
use crate::server::turns::{IGNORED_HEADER, SESSION_HEADER};

/// How long a browser may remember the answer to a preflight. Browsers allow hours; an origin that is taken out should not
/// keep its pages that long.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The layer around all routes; none where no page may call. Origins are exact, so a page of another one gets an answer
/// that its browser does not hand out. Keys are in headers, never in cookies: credentials are not allowed.
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
        header::RETRY_AFTER,
        HeaderName::from_static("x-should-retry"),
    ];
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // SDKs send a dozen of their own, others in each version; a header alone opens nothing.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed)
        .max_age(REMEMBERED);
    Some(layer)
}
