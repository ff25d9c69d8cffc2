//! What a request's span says to a collector beyond what it says in the log. It must not know whether there is one: where
//! nobody exports, all of this does nothing.

use axum::http::{HeaderMap, Method, StatusCode};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::Status;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Makes the span a part of the caller's trace, if it names a valid one, and says what is asked for. `pattern` is that of
/// the route: a path is the caller's text.
pub(crate) fn begin(span: &Span, headers: &HeaderMap, method: &Method, pattern: Option<&str>) {
    // Before the span is entered for the first time; later its place is fixed. It fails only where nobody exports.
    span.set_parent(TraceContextPropagator::new().extract(&Headers(headers))).ok();
    // Other methods are the caller's text, too.
    let known = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::HEAD,
        Method::PATCH,
        Method::OPTIONS,
    ];
    let method = if known.contains(method) { method.as_str() } else { "_OTHER" };
    span.set_attribute("http.request.method", method.to_owned());
    if let Some(pattern) = pattern {
        span.set_attribute("http.route", pattern.to_owned());
    }
}

/// The answer's head is there; a turn may go on in its body, and the span with it.
pub(crate) fn answered(span: &Span, status: StatusCode) {
    span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}
