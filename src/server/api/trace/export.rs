//! Span attributes for the collector, beyond those in the log. Does nothing without an exporter.

use axum::http::{HeaderMap, Method, StatusCode};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::Status;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Sets the caller's trace as parent, if valid, and the attributes of the request. `pattern` is that of the route,
/// because a path is arbitrary text.
pub(crate) fn begin(span: &Span, headers: &HeaderMap, method: &Method, pattern: Option<&str>) {
    // Must come before the span is entered. Fails only without an exporter.
    span.set_parent(TraceContextPropagator::new().extract(&Headers(headers))).ok();
    // Other methods are arbitrary text.
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

/// Records the status; a turn may continue in the body, and its span with it.
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
