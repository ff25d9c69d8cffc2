//! Export of spans to an OpenTelemetry collector, if the environment names one (feature `otel`).
//!
//! Spans are queued without waiting and sent by the exporter's thread. A full queue drops spans, so a slow or absent
//! collector delays no turn. Only the spans of [`is_exported`] leave: their fields hold ids, hashes, numbers and fixed
//! words.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter as Exporter,
};
use pilotlight::config::ConfigError;
use tracing::Metadata;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{Layer, Registry};

use crate::args::ExportLayer;

/// Environment variables that name a collector, by precedence.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const NAME: &str = "pilotlight";
/// Maximum spans in the queue: about a megabyte, several seconds of a busy service.
const QUEUE: usize = 2048;
const BATCH: usize = 512;
/// Maximum delay of a span in the queue.
const DELAY: Duration = Duration::from_secs(1);
/// Maximum wait for the last spans at shutdown.
const FLUSH: Duration = Duration::from_secs(1);

/// The exporter, until its last flush.
pub(crate) struct Export(Option<SdkTracerProvider>);

impl Export {
    /// Builds the subscriber layer, if the environment names a collector.
    pub(crate) fn from_environment() -> Result<(Self, Option<ExportLayer>), ConfigError> {
        let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let Some(key) = ENDPOINTS.into_iter().find(is_set) else { return Ok((Self(None), None)) };
        let refuse = |problem: String| ConfigError::Key { key: key.to_owned(), problem };
        // The message repeats neither address nor cause: they may hold a password.
        if !std::env::var(key).is_ok_and(|address| address.starts_with("http://")) {
            return Err(refuse(
                "must be the http:// address of a collector; TLS is not supported".to_owned(),
            ));
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_retry_policy(opentelemetry_otlp::RetryPolicy::disabled())
            .build()
            .map_err(|_| refuse("cannot be used with the other variables OTEL_EXPORTER_OTLP_*".to_owned()))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let batches =
            BatchSpanProcessor::builder(LoggingExporter { exporter, failed: AtomicBool::new(false) })
                .with_batch_config(batches);
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_span_processor(batches.build())
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(NAME))
            .with_context_activation(false)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_filter(filter_fn(is_exported));
        Ok((Self(Some(provider)), Some(Box::new(layer) as Box<dyn Layer<Registry> + Send + Sync>)))
    }

    /// Flushes the queue within the limit and stops the exporter.
    pub(crate) async fn flush(self) {
        let Some(provider) = self.0 else { return };
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("the last spans did not reach the collector");
        }
    }
}

/// Whether a span or event is exported: request spans, and turn spans with their events.
fn is_exported(metadata: &Metadata<'_>) -> bool {
    match metadata.target() {
        "pilotlight::turn::trace" => true,
        "pilotlight::server::api::router" => metadata.is_span() && metadata.name() == "request",
        _ => false,
    }
}

fn resource() -> Resource {
    let is_named = Resource::builder()
        .build()
        .iter()
        .any(|(key, value)| key.as_str() == "service.name" && !value.as_str().starts_with("unknown_service"));
    let resource = Resource::builder();
    if is_named { resource.build() } else { resource.with_service_name(NAME).build() }
}

/// Exporter that logs the loss and the return of the collector once each.
#[derive(Debug)]
struct LoggingExporter<E> {
    exporter: E,
    failed: AtomicBool,
}

impl<E: Exporter> Exporter for LoggingExporter<E> {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.exporter.export(spans).await;
        match (&sent, self.failed.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(%error, "spans do not reach the collector and are dropped"),
            (Ok(()), true) => tracing::info!("spans reach the collector again"),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
