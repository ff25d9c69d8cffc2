//! Handles for every series of a metric, registered at zero.

use std::marker::PhantomData;

use ::metrics::{Counter, Gauge, Histogram, Key, KeyName, Level, Metadata, Recorder, Unit as RecorderUnit};

use super::catalogue::{Kind, Metric, Unit};
use super::labels::Label;

/// One handle per value of a label.
pub(super) struct By<L, H> {
    handles: Box<[H]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label, H> By<L, H> {
    fn new(handle: impl Fn(&'static str) -> H) -> Self {
        Self { handles: L::VALUES.iter().map(|value| handle(value)).collect(), label: PhantomData }
    }

    pub(super) fn of(&self, label: L, count: impl FnOnce(&H)) {
        // There is one for every variant: a test sees to that.
        if let Some(handle) = self.handles.get(label.index()) {
            count(handle);
        }
    }

    pub(super) fn each(&self, set: impl Fn(&'static str, &H)) {
        for (value, handle) in L::VALUES.iter().zip(&self.handles) {
            set(value, handle);
        }
    }
}

/// One handle per pair of values of two labels.
pub(super) struct ByBoth<A, B, H> {
    rows: Box<[By<B, H>]>,
    label: PhantomData<fn(A)>,
}

impl<A: Label, B: Label, H> ByBoth<A, B, H> {
    pub(super) fn of(&self, first: A, second: B, count: impl FnOnce(&H)) {
        if let Some(row) = self.rows.get(first.index()) {
            row.of(second, count);
        }
    }
}

/// Registers with one recorder under one prefix. Describes each metric on the way.
pub(super) struct Registrar<'a> {
    recorder: &'a dyn Recorder,
    prefix: &'a str,
}

const METADATA: Metadata<'_> = Metadata::new("pilotlight", Level::INFO, None);

impl<'a> Registrar<'a> {
    pub(super) fn new(recorder: &'a dyn Recorder, prefix: &'a str) -> Self {
        Self { recorder, prefix }
    }

    pub(super) fn counter(&self, metric: &Metric) -> Counter {
        self.describe(metric);
        self.counter_series(metric, &[])
    }

    pub(super) fn counters<L: Label>(&self, metric: &Metric) -> By<L, Counter> {
        self.counters_with(metric, |value| vec![(L::KEY, value)])
    }

    /// For a metric with a second label that follows from the first.
    pub(super) fn counters_with<L: Label>(
        &self,
        metric: &Metric,
        labels: impl Fn(&'static str) -> Vec<(&'static str, &'static str)>,
    ) -> By<L, Counter> {
        self.describe(metric);
        By::new(|value| self.counter_series(metric, &labels(value)))
    }

    pub(super) fn counters_by_both<A: Label, B: Label>(&self, metric: &Metric) -> ByBoth<A, B, Counter> {
        self.describe(metric);
        let row = |first| By::new(|second| self.counter_series(metric, &[(A::KEY, first), (B::KEY, second)]));
        ByBoth { rows: A::VALUES.iter().map(|first| row(*first)).collect(), label: PhantomData }
    }

    pub(super) fn gauge(&self, metric: &Metric) -> Gauge {
        self.describe(metric);
        self.gauge_series(metric, &[])
    }

    pub(super) fn gauges<L: Label>(&self, metric: &Metric) -> By<L, Gauge> {
        self.describe(metric);
        By::new(|value| self.gauge_series(metric, &[(L::KEY, value)]))
    }

    pub(super) fn histogram(&self, metric: &Metric) -> Histogram {
        self.describe(metric);
        self.recorder.register_histogram(&self.key(metric, &[]), &METADATA)
    }

    pub(super) fn histograms<L: Label>(&self, metric: &Metric) -> By<L, Histogram> {
        self.describe(metric);
        By::new(|value| self.recorder.register_histogram(&self.key(metric, &[(L::KEY, value)]), &METADATA))
    }

    /// A gauge that is always 1: its labels are what it tells.
    pub(super) fn info(&self, metric: &Metric, labels: &[(&'static str, &'static str)]) {
        self.describe(metric);
        self.gauge_series(metric, labels).set(1.0);
    }

    fn counter_series(&self, metric: &Metric, labels: &[(&'static str, &'static str)]) -> Counter {
        let counter = self.recorder.register_counter(&self.key(metric, labels), &METADATA);
        // Some recorders show nothing that was not touched.
        counter.increment(0);
        counter
    }

    fn gauge_series(&self, metric: &Metric, labels: &[(&'static str, &'static str)]) -> Gauge {
        let gauge = self.recorder.register_gauge(&self.key(metric, labels), &METADATA);
        gauge.set(0.0);
        gauge
    }

    fn key(&self, metric: &Metric, labels: &[(&'static str, &'static str)]) -> Key {
        Key::from_parts(metric.full_name(self.prefix), labels)
    }

    fn describe(&self, metric: &Metric) {
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
    }
}
