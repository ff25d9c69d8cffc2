//! Spans to an OpenTelemetry collector, where the environment names one (the feature `otel`).
//!
//! Owned by the program: an embedding service has its own subscriber and decides itself. Spans are queued without
//! waiting and sent by a thread of the exporter; a full queue drops them, so a collector that is slow or gone costs
//! nobody a turn. It must not know what a span means, only which may leave: those named in [`may_leave`], whose fields
//! hold ids, hashes, numbers and fixed words. Everything else that is logged stays in the log.

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

/// The variables that name a collector, the stronger one first.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// What the service is called, unless the environment says otherwise.
const NAME: &str = "pilotlight";
/// Spans that wait for the collector: about a megabyte, and several seconds of a busy service.
const QUEUE: usize = 2048;
/// Spans in one message to it.
const BATCH: usize = 512;
/// How long a span waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// How long the stop of the service may wait for the collector.
const FLUSH: Duration = Duration::from_secs(1);

/// What is sent while the service runs, and still has to be sent when it stops.
pub(crate) struct Export(Option<SdkTracerProvider>);

impl Export {
    /// What the environment asks for: a layer for the subscriber, if there is a collector.
    pub(crate) fn from_environment() -> Result<(Self, Option<ExportLayer>), ConfigError> {
        let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let Some(key) = ENDPOINTS.into_iter().find(is_set) else { return Ok((Self(None), None)) };
        let refuse = |problem: String| ConfigError::Key { key: key.to_owned(), problem };
        // Neither its text nor the builder's is repeated: an address may hold a password.
        if !std::env::var(key).is_ok_and(|address| address.starts_with("http://")) {
            return Err(refuse(
                "must be the http:// address of a collector; there is no TLS here".to_owned(),
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
        let batches = BatchSpanProcessor::builder(Telling { exporter, failed: AtomicBool::new(false) })
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
            .with_filter(filter_fn(may_leave));
        Ok((Self(Some(provider)), Some(Box::new(layer) as Box<dyn Layer<Registry> + Send + Sync>)))
    }

    /// Sends what is queued, as far as that is quickly done. Nothing is sent afterwards.
    pub(crate) async fn flush(self) {
        let Some(provider) = self.0 else { return };
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("the last spans did not reach the collector");
        }
    }
}

/// Whether a span or an event goes to the collector: a request's span, a turn's with what happens to it.
fn may_leave(metadata: &Metadata<'_>) -> bool {
    match metadata.target() {
        "pilotlight::turn::trace" => true,
        "pilotlight::server::router" => metadata.is_span() && metadata.name() == "request",
        _ => false,
    }
}

/// Who we are for the collector.
fn resource() -> Resource {
    let is_named = Resource::builder()
        .build()
        .iter()
        .any(|(key, value)| key.as_str() == "service.name" && !value.as_str().starts_with("unknown_service"));
    let resource = Resource::builder();
    if is_named { resource.build() } else { resource.with_service_name(NAME).build() }
}

/// Tells when the collector gets out of reach and when it is back, once each, and not for every message.
#[derive(Debug)]
struct Telling<E> {
    exporter: E,
    failed: AtomicBool,
}

impl<E: Exporter> Exporter for Telling<E> {
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
