//! Metrics: a typed catalogue and the handles that count.
//!
//! An entry of the catalogue is the only statement of a metric's name, unit, help and buckets; the type of its handle
//! is the only statement of its kind and labels. All series are registered at the start with the value zero, and
//! counting is an atomic addition. No label names a user or a session.
//!
//! The metrics go to the [`metrics`] recorder of the host program. Histograms need its [`buckets`] to be set, or the
//! recorder exports summaries, which cannot be aggregated over instances.

mod catalogue;
#[cfg(feature = "cluster")]
mod cluster;

#[cfg(feature = "server")]
mod http;
mod labels;
mod series;
mod system;

pub use catalogue::{Kind, LabelSet, Metric, Unit};
#[cfg(feature = "cluster")]
pub(crate) use cluster::ClusterMetrics;
#[cfg(feature = "server")]
pub(crate) use http::HttpMetrics;
pub(crate) use labels::{
    ActorKind, AdmissionRejected, CliNotice, ContextLost, DiskSpace, EvictionReason, ExitReason, FirstOutput,
    HangDetector, JournalError, MemoryKind, ModelClass, ProcessKind, ProtocolError, RecoverySource, Resource,
    RestartCause, RetentionReason, SampleSource, SpareClaim, SpareEnd, SpareState, SpawnPhase, SpawnReason,
    StopHow, StopStep, Stream, ToolWaitEnd, TurnOutcome,
};
#[cfg(feature = "server")]
pub(crate) use labels::{
    AttachRefusal, AuditLoss, AuthFailure, Dialect, HttpLimit, Reload, Route, StatusClass, WebhookAttempt,
    WebhookDrop,
};
#[cfg(feature = "broker")]
pub(crate) use labels::{BrokerRefusal, EgressDirection, EgressOutcome, RefreshOutcome, UpstreamStatus};
#[cfg(feature = "cluster")]
pub(crate) use labels::{ClaimResult, CommitResult, ForwardResult};
pub(crate) use system::{Metrics, flag};

/// All metrics: those of the core by kind, then those of the HTTP server and of a cluster as far as they are compiled in.
pub fn catalogue() -> impl Iterator<Item = &'static Metric> {
    #[cfg(feature = "server")]
    let server = HttpMetrics::ALL;
    #[cfg(not(feature = "server"))]
    let server: &[Metric] = &[];
    #[cfg(feature = "cluster")]
    let cluster = ClusterMetrics::ALL;
    #[cfg(not(feature = "cluster"))]
    let cluster: &[Metric] = &[];
    Metrics::ALL.iter().chain(server).chain(cluster)
}

/// Full names and buckets of all histograms under a prefix, for the set-up of a recorder.
#[must_use]
pub fn buckets(prefix: &str) -> Vec<(String, &'static [f64])> {
    let histograms = catalogue().filter(|metric| metric.kind == Kind::Histogram);
    histograms.map(|metric| (metric.full_name(prefix), metric.buckets)).collect()
}

#[cfg(test)]
mod tests;
