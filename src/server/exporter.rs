//! The server's metrics recorder and its Prometheus text. Nothing is global: several servers may share a process.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::Instant;

use super::ServeError;
use crate::config::Config;
use crate::system::Pilotlight;
use crate::telemetry::metrics::HttpMetrics;
use process::Started;

pub(crate) mod labels;
mod process;

/// Interval of histogram upkeep: samples are queued until they are sorted into buckets.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone)]
pub(super) struct Exporter {
    recorded: PrometheusHandle,
    pub(super) metrics: Arc<HttpMetrics>,
    started: Started,
}

impl Exporter {
    pub(super) fn render(&self) -> String {
        let begun = Instant::now();
        let mut text = self.recorded.render();
        self.started.render(&mut text);
        self.metrics.render.record(begun.elapsed());
        text
    }
}

/// Starts the core with its own recorder.
pub(super) async fn start(config: Config) -> Result<(Pilotlight, Exporter), ServeError> {
    let mut builder = PrometheusBuilder::new();
    // Without explicit buckets, histograms become summaries, which cannot be aggregated over instances.
    for (name, buckets) in crate::telemetry::metrics::buckets(&config.metrics.prefix) {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(name), buckets)
            .map_err(|error| ServeError::Metrics(error.to_string()))?;
    }
    let recorder = builder.build_recorder();
    let metrics = Arc::new(HttpMetrics::register(&recorder, &config.metrics.prefix));
    let pilot = Pilotlight::start_with(config, &recorder).await?;
    Ok((pilot, Exporter { recorded: recorder.handle(), metrics, started: Started::now() }))
}

/// Sorts samples into buckets periodically.
pub(super) async fn upkeep(exporter: Exporter) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        exporter.recorded.run_upkeep();
    }
}
