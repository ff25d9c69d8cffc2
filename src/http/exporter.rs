//! The server's own metrics recorder and its text. Nothing global: several servers may live in one process.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::ServeError;
use crate::config::Config;
use crate::pilotlight::Pilotlight;

/// Samples of histograms wait in a list until they are sorted into buckets; without this the list grows for ever.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What the text format calls itself.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Renders what was recorded.
#[derive(Clone)]
pub(super) struct Exporter(PrometheusHandle);

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

impl Exporter {
    pub(super) fn render(&self) -> String {
        self.0.render()
    }
}

/// Starts the core with a recorder of its own.
pub(super) async fn start(config: Config) -> Result<(Pilotlight, Exporter), ServeError> {
    let mut builder = PrometheusBuilder::new();
    // Without explicit buckets histograms come out as summaries, which cannot be added up over instances.
    for (name, buckets) in crate::metrics::buckets(&config.metrics.prefix) {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(name), buckets)
            .map_err(|error| ServeError::Metrics(error.to_string()))?;
    }
    let recorder = builder.build_recorder();
    let pilot = Pilotlight::start_with(config, &recorder).await?;
    Ok((pilot, Exporter(recorder.handle())))
}

/// Sorts samples into buckets, for ever.
pub(super) async fn upkeep(exporter: Exporter) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        exporter.0.run_upkeep();
    }
}
