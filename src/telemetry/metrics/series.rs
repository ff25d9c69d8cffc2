//! Families of series: one handle per label value, registered at zero.

use std::marker::PhantomData;

use ::metrics::{
    Counter, Gauge, Histogram, IntoF64, Key, KeyName, Level, Metadata, Recorder, Unit as RecorderUnit,
};

use super::catalogue::{Kind, LabelSet, Metric, Unit};
use super::labels::{Label, SpawnReason};

const METADATA: Metadata<'_> = Metadata::new("pilotlight", Level::INFO, None);

/// Labels of one series.
type Labels<'a> = &'a [(&'static str, &'static str)];

/// Handle of one series.
pub(crate) trait Handle {
    const KIND: Kind;
    fn register(recorder: &dyn Recorder, key: &Key) -> Self;
}

impl Handle for Counter {
    const KIND: Kind = Kind::Counter;
    fn register(recorder: &dyn Recorder, key: &Key) -> Self {
        let counter = recorder.register_counter(key, &METADATA);
        // Some recorders show only series that were touched.
        counter.increment(0);
        counter
    }
}

impl Handle for Gauge {
    const KIND: Kind = Kind::Gauge;
    fn register(recorder: &dyn Recorder, key: &Key) -> Self {
        let gauge = recorder.register_gauge(key, &METADATA);
        gauge.set(0.0);
        gauge
    }
}

impl Handle for Histogram {
    const KIND: Kind = Kind::Histogram;
    fn register(recorder: &dyn Recorder, key: &Key) -> Self {
        recorder.register_histogram(key, &METADATA)
    }
}

/// All series of one metric. Its type determines the kind and the labels of the metric.
pub(crate) trait Family {
    const KIND: Kind;
    const LABELS: &'static [LabelSet];
    fn register(registrar: &Registrar<'_>, metric: &Metric) -> Self;
}

/// A metric without labels.
impl<H: Handle> Family for H {
    const KIND: Kind = H::KIND;
    const LABELS: &'static [LabelSet] = &[];
    fn register(registrar: &Registrar<'_>, metric: &Metric) -> Self {
        registrar.series(metric, &[])
    }
}

/// A metric with one label.
pub(crate) struct By<L, H> {
    handles: Box<[H]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label, H: Handle> By<L, H> {
    fn new(series: impl Fn(&'static str) -> H) -> Self {
        Self { handles: L::VALUES.iter().map(|value| series(value)).collect(), label: PhantomData }
    }

    fn with(&self, label: L, apply: impl FnOnce(&H)) {
        // Every variant has a handle; a test verifies it.
        if let Some(handle) = self.handles.get(label.index()) {
            apply(handle);
        }
    }
}

impl<L: Label, H: Handle> Family for By<L, H> {
    const KIND: Kind = H::KIND;
    const LABELS: &'static [LabelSet] = &[LabelSet::of::<L>()];
    fn register(registrar: &Registrar<'_>, metric: &Metric) -> Self {
        Self::new(|value| registrar.series(metric, &[(L::KEY, value)]))
    }
}

impl<L: Label> By<L, Counter> {
    pub(crate) fn increment(&self, label: L) {
        self.add(label, 1);
    }

    pub(crate) fn add(&self, label: L, count: u64) {
        self.with(label, |counter| counter.increment(count));
    }
}

impl<L: Label> By<L, Gauge> {
    pub(crate) fn set(&self, label: L, value: f64) {
        self.with(label, |gauge| gauge.set(value));
    }

    pub(crate) fn add(&self, label: L, difference: f64) {
        self.with(label, |gauge| gauge.increment(difference));
    }

    /// Sets the gauge of `label` to 1 and all others to 0.
    pub(crate) fn select(&self, label: L) {
        for (index, gauge) in self.handles.iter().enumerate() {
            gauge.set(if index == label.index() { 1.0 } else { 0.0 });
        }
    }
}

impl<L: Label> By<L, Histogram> {
    pub(crate) fn record(&self, label: L, value: impl IntoF64) {
        self.with(label, |histogram| histogram.record(value));
    }
}

/// A metric with two labels.
pub(crate) struct ByBoth<A, B, H> {
    rows: Box<[By<B, H>]>,
    label: PhantomData<fn(A)>,
}

impl<A: Label, B: Label, H: Handle> Family for ByBoth<A, B, H> {
    const KIND: Kind = H::KIND;
    const LABELS: &'static [LabelSet] = &[LabelSet::of::<A>(), LabelSet::of::<B>()];
    fn register(registrar: &Registrar<'_>, metric: &Metric) -> Self {
        let row = |first| By::new(|second| registrar.series(metric, &[(A::KEY, first), (B::KEY, second)]));
        Self { rows: A::VALUES.iter().map(|first| row(*first)).collect(), label: PhantomData }
    }
}

impl<A: Label, B: Label> ByBoth<A, B, Counter> {
    pub(crate) fn add(&self, first: A, second: B, count: u64) {
        if let Some(row) = self.rows.get(first.index()) {
            row.add(second, count);
        }
    }
}

/// Starts of children. The label `outcome` follows from the reason.
pub(crate) struct Starts(By<SpawnReason, Counter>);

impl Starts {
    pub(crate) fn increment(&self, reason: SpawnReason) {
        self.0.increment(reason);
    }
}

impl Family for Starts {
    const KIND: Kind = Kind::Counter;
    const LABELS: &'static [LabelSet] =
        &[LabelSet { name: "outcome", values: &["ok", "failed"] }, LabelSet::of::<SpawnReason>()];
    fn register(registrar: &Registrar<'_>, metric: &Metric) -> Self {
        Self(By::new(|reason| {
            let outcome = if reason == SpawnReason::None.as_str() { "ok" } else { "failed" };
            registrar.series(metric, &[("outcome", outcome), ("reason", reason)])
        }))
    }
}

/// Commit of a release build.
pub(super) const COMMIT: &str = match option_env!("PILOTLIGHT_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Constant gauge whose labels describe the build.
pub(crate) struct BuildInfo;

impl Family for BuildInfo {
    const KIND: Kind = Kind::Gauge;
    const LABELS: &'static [LabelSet] =
        &[LabelSet { name: "version", values: &[] }, LabelSet { name: "commit", values: &[] }];
    fn register(registrar: &Registrar<'_>, metric: &Metric) -> Self {
        let labels = &[("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT)];
        registrar.series::<Gauge>(metric, labels).set(1.0);
        Self
    }
}

/// Registers metrics with one recorder under one prefix.
pub(crate) struct Registrar<'a> {
    recorder: &'a dyn Recorder,
    prefix: &'a str,
}

impl<'a> Registrar<'a> {
    pub(super) fn new(recorder: &'a dyn Recorder, prefix: &'a str) -> Self {
        Self { recorder, prefix }
    }

    /// Describes a metric and registers all its series.
    pub(super) fn register<F: Family>(&self, metric: &Metric) -> F {
        let name = KeyName::from(metric.full_name(self.prefix));
        let unit = Some(match metric.unit {
            Unit::Count => RecorderUnit::Count,
            Unit::Seconds => RecorderUnit::Seconds,
            Unit::Bytes => RecorderUnit::Bytes,
        });
        let help = metric.help.into();
        match metric.kind {
            Kind::Counter => self.recorder.describe_counter(name, unit, help),
            Kind::Gauge => self.recorder.describe_gauge(name, unit, help),
            Kind::Histogram => self.recorder.describe_histogram(name, unit, help),
        }
        F::register(self, metric)
    }

    fn series<H: Handle>(&self, metric: &Metric, labels: Labels<'_>) -> H {
        H::register(self.recorder, &Key::from_parts(metric.full_name(self.prefix), labels))
    }
}
