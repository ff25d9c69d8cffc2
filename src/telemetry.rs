//! What operators and embedding programs observe of a running system: metrics and session events.

use std::sync::Arc;

pub(crate) mod emit;
pub mod events;
pub mod metrics;

/// Destinations of telemetry of one instance, besides the log.
#[derive(Debug, Clone)]
pub(crate) struct Telemetry {
    pub(crate) metrics: Arc<metrics::Metrics>,
    pub(crate) events: Arc<events::EventLog>,
}

impl Telemetry {
    pub(crate) fn new(metrics: Arc<metrics::Metrics>) -> Self {
        Self { metrics, events: Arc::default() }
    }
}
