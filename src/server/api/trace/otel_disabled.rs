//! Without the feature `otel` a request's span is for the log alone, which has the rest in a line of its own.

use axum::http::{HeaderMap, Method, StatusCode};
use tracing::Span;

/// Nothing to add.
pub(crate) fn begin(_: &Span, _: &HeaderMap, _: &Method, _: Option<&str>) {}

/// Nothing to add.
pub(crate) fn answered(_: &Span, _: StatusCode) {}
