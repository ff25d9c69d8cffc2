//! The broker between sockets.

use std::sync::Arc;

use crate::telemetry::metrics::Metrics;

pub(super) fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::register(&::metrics::NoopRecorder, "pilotlight_"))
}
