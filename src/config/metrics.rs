//! Section `metrics`.

use std::time::Duration;

use super::value;

section! {
    /// Metrics.
    #[derive(Debug)]
    pub struct MetricsConfig {
        /// Prefix of every metric name. Default `pilotlight_`.
        pub prefix: String = "pilotlight_".to_owned(),
        /// Interval of memory measurements. Default 5 s.
        #[serde(with = "value::duration")]
        pub sample_interval: Duration = Duration::from_secs(5),
    }
}
