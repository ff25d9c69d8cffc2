//! What operators and embedding programs see of a running system: metrics and the stream of events.

pub mod events;
pub mod metrics;
