//! Parser of the Prometheus text of `/metrics`. Pure.

use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Metrics {
    prefix: String,
    samples: Vec<(String, f64)>,
}

/// A histogram, summed over the labels that were not selected.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Histogram {
    pub(super) count: f64,
    pub(super) sum: f64,
    /// Upper bound of all values; infinite if unknown.
    pub(super) below: f64,
}

impl Histogram {
    pub(super) fn mean(&self) -> Option<Duration> {
        (self.count > 0.0).then(|| Duration::try_from_secs_f64(self.sum / self.count).ok()).flatten()
    }
}

impl Metrics {
    /// Parses a scrape whose names start with `prefix`.
    pub(super) fn read(text: &str, prefix: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        });
        Self { prefix: prefix.to_owned(), samples: samples.collect() }
    }

    /// Sum of all series with this name and these labels (`reason="idle"`). `None` without such a series, so that a
    /// misspelt name is not taken for zero.
    pub(super) fn sum(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let mut values = self.series(name, labels).map(|(_, value)| value).peekable();
        values.peek()?;
        Some(values.sum())
    }

    pub(super) fn histogram(&self, name: &str, labels: &[&str]) -> Option<Histogram> {
        let count = self.sum(&format!("{name}_count"), labels)?;
        let sum = self.sum(&format!("{name}_sum"), labels)?;
        // Buckets are cumulative: the smallest that holds all values is the bound.
        let mut bounds: Vec<(f64, f64)> = Vec::new();
        for (series, value) in self.series(&format!("{name}_bucket"), labels) {
            let Some(bound) = bound(series) else { continue };
            match bounds.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
                Some((_, total)) => *total += value,
                None => bounds.push((bound, value)),
            }
        }
        let full = bounds.into_iter().filter(|(_, total)| *total >= count).map(|(bound, _)| bound);
        Some(Histogram { count, sum, below: full.fold(f64::INFINITY, f64::min) })
    }

    fn series<'a>(&'a self, name: &str, labels: &'a [&str]) -> impl Iterator<Item = (&'a str, f64)> {
        let wanted = format!("{}{name}", self.prefix);
        self.samples.iter().filter_map(move |(series, value)| {
            let (found, carried) = series.split_once('{').unwrap_or((series, ""));
            let mut carried = carried.trim_end_matches('}').split(',');
            let all: Vec<&str> = carried.by_ref().collect();
            (found == wanted && labels.iter().all(|label| all.contains(label)))
                .then_some((series.as_str(), *value))
        })
    }
}

fn bound(series: &str) -> Option<f64> {
    let (_, after) = series.split_once("le=\"")?;
    match after.split_once('"')?.0 {
        "+Inf" => Some(f64::INFINITY),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP p_turns_total Turns.\n# TYPE p_turns_total counter\np_turns_total{outcome=\"ok\"} 5\n\
        p_turns_total{outcome=\"error\"} 2\n\n\
        p_t_bucket{start=\"warm\",le=\"0.1\"} 1\np_t_bucket{start=\"warm\",le=\"1\"} 3\n\
        p_t_bucket{start=\"warm\",le=\"+Inf\"} 3\np_t_sum{start=\"warm\"} 0.9\np_t_count{start=\"warm\"} 3\n\
        p_t_bucket{start=\"cold\",le=\"0.1\"} 0\np_t_bucket{start=\"cold\",le=\"1\"} 0\n\
        p_t_bucket{start=\"cold\",le=\"+Inf\"} 1\np_t_sum{start=\"cold\"} 4\np_t_count{start=\"cold\"} 1\n";

    #[test]
    fn series_are_added_up() {
        let metrics = Metrics::read(TEXT, "p_");
        assert_eq!(metrics.sum("turns_total", &[]), Some(7.0));
        assert_eq!(metrics.sum("turns_total", &["outcome=\"ok\""]), Some(5.0));
        assert_eq!(metrics.sum("turns", &[]), None);
        assert_eq!(metrics.sum("turns_total", &["outcome=\"lost\""]), None);
    }

    #[test]
    fn a_histogram_has_a_mean_and_a_bound() {
        let metrics = Metrics::read(TEXT, "p_");
        let warm = metrics.histogram("t", &["start=\"warm\""]).unwrap();
        assert_eq!((warm.count, warm.below), (3.0, 1.0));
        assert_eq!(warm.mean(), Some(Duration::from_millis(300)));
        let all = metrics.histogram("t", &[]).unwrap();
        assert_eq!((all.count, all.below), (4.0, f64::INFINITY));
        assert_eq!(Histogram::default().mean(), None);
    }
}
