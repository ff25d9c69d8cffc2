//! Metrics of attached clients: how many there are, and why others are refused.

use std::sync::Arc;

use crate::server::api::error::ApiError;
use crate::telemetry::metrics::{AttachRefusal, HttpMetrics};

/// Code of a flag that is not taken.
pub(super) const FLAG: &str = "invalid_flag";

/// Reason of a refusal, by its error.
pub(super) fn reason(error: &ApiError) -> AttachRefusal {
    match error.code() {
        FLAG | "mcp_not_allowed" | "model_not_allowed" => AttachRefusal::Flags,
        "draining" | "storage" | "internal" => AttachRefusal::Server,
        code if code.starts_with("too_many_") => AttachRefusal::Limit,
        // Key, user or name of the session.
        _ => AttachRefusal::Caller,
    }
}

/// A client that is attached, until this is dropped.
pub(super) struct Presence(Arc<HttpMetrics>);

impl Presence {
    pub(super) fn begin(metrics: Arc<HttpMetrics>) -> Self {
        metrics.attached.increment(1.0);
        Self(metrics)
    }

    /// No child could be had.
    pub(super) fn refused(&self) {
        self.0.attach_refused.increment(AttachRefusal::Session);
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.attached.decrement(1.0);
    }
}
