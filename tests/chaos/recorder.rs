//! A metrics recorder that keeps the sum of each counter, the value of each gauge and the largest of each histogram:
//! its own memory does not grow, whatever is recorded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use crate::wire::Report;

#[derive(Default)]
pub struct Metrics {
    counters: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    gauges: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    most: Mutex<BTreeMap<String, Arc<Most>>>,
}

#[derive(Default)]
struct Most(AtomicU64);

impl HistogramFn for Most {
    fn record(&self, value: f64) {
        // Positive numbers are in the same order as their bits.
        self.0.fetch_max(value.max(0.0).to_bits(), Ordering::Relaxed);
    }
}

impl Metrics {
    pub fn fill(&self, report: &mut Report) {
        let float = |bits: u64| f64::from_bits(bits);
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let counters = self.counters.lock().unwrap();
        report.counters = counters.iter().map(|(name, value)| (name.clone(), load(value))).collect();
        let gauges = self.gauges.lock().unwrap();
        report.gauges = gauges.iter().map(|(name, value)| (name.clone(), float(load(value)))).collect();
        let most = self.most.lock().unwrap();
        report.most = most.iter().map(|(name, value)| (name.clone(), float(load(&value.0)))).collect();
    }
}

fn entry<T: Default>(of: &Mutex<BTreeMap<String, Arc<T>>>, key: &Key) -> Arc<T> {
    let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
    let name = key.name().trim_start_matches("pilotlight_");
    let name = if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) };
    of.lock().unwrap().entry(name).or_default().clone()
}

impl Recorder for Metrics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(entry(&self.counters, key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(entry(&self.gauges, key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(entry(&self.most, key))
    }
}
