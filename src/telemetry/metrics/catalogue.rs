//! Form of a catalogue entry, and the macro that turns entries into handles.

use super::labels::Label;

/// Kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Cumulative value that only grows.
    Counter,
    /// Value that rises and falls.
    Gauge,
    /// Distribution of values in buckets.
    Histogram,
}

/// Unit of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// Number of items, or a value without unit.
    Count,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

/// Label with all its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LabelSet {
    /// Name of the label.
    pub name: &'static str,
    /// All possible values. Empty if the value is a property of the build.
    pub values: &'static [&'static str],
}

impl LabelSet {
    pub(super) const fn of<L: Label>() -> Self {
        Self { name: L::KEY, values: L::VALUES }
    }
}

/// Entry of the catalogue: one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Metric {
    /// Name without the prefix.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Unit.
    pub unit: Unit,
    /// Description in one sentence, as exported in `# HELP`.
    pub help: &'static str,
    /// Labels.
    pub labels: &'static [LabelSet],
    /// Upper bounds of the buckets of a histogram.
    pub buckets: &'static [f64],
}

impl Metric {
    pub(super) fn full_name(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.name)
    }
}

/// Declares a struct with one handle per metric, its list of metrics and its registration.
///
/// The type of an entry determines the kind and the labels of its metric.
macro_rules! declare {
    ($(#[$meta:meta])* $name:ident: $(
        $field:ident: $family:ty = $metric:literal, $unit:ident, $help:literal $(, $buckets:expr)?;
    )+) => {
        $(#[$meta])*
        pub(crate) struct $name {
            $(#[doc = $help] pub(crate) $field: $family,)+
        }

        impl $name {
            pub(super) const ALL: &'static [Metric] =
                &[$(declare!(@metric $family = $metric, $unit, $help $(, $buckets)?)),+];

            /// Describes and registers all metrics with a recorder.
            pub(crate) fn register(recorder: &dyn ::metrics::Recorder, prefix: &str) -> Self {
                let registrar = Registrar::new(recorder, prefix);
                Self { $(
                    $field: registrar
                        .register(&declare!(@metric $family = $metric, $unit, $help $(, $buckets)?)),
                )+ }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
    (@metric $family:ty = $metric:literal, $unit:ident, $help:literal $(, $buckets:expr)?) => {
        Metric {
            name: $metric,
            kind: <$family as Family>::KIND,
            unit: Unit::$unit,
            help: $help,
            labels: <$family as Family>::LABELS,
            buckets: declare!(@buckets $($buckets)?),
        }
    };
    (@buckets) => { &[] };
    (@buckets $buckets:expr) => { $buckets };
}

pub(super) use declare;
