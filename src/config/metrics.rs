//! Section `metrics`.

use std::time::Duration;

use serde::Deserialize;

use super::value;

/// Metrics.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MetricsConfig {
    /// Prefix of every metric name. Default `pilotlight_`.
    pub prefix: String,
    /// Interval of memory measurements. Default 5 s.
    #[serde(with = "value::duration")]
    pub sample_interval: Duration,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { prefix: "pilotlight_".to_owned(), sample_interval: Duration::from_secs(5) }
    }
}
