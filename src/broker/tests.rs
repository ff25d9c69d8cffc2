//! The broker between sockets: a child on one side, a stand-in of the model's API on the other, both in this process.

mod egress;
mod forwarding;
mod hostile;
mod limits;
mod oauth;
mod policy;
mod programs;
mod site;
mod standin;
mod tokens;

use std::sync::Arc;

use crate::telemetry::metrics::Metrics;

pub(super) fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::register(&::metrics::NoopRecorder, "pilotlight_"))
}
