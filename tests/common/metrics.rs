//! A scrape of `/metrics`: what it says about one name.

/// The samples of one scrape.
pub struct Scrape {
    samples: Vec<(String, f64)>,
}

impl Scrape {
    /// Reads the text format.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
        });
        Self { samples: samples.collect() }
    }

    /// The sum over all series of `name` that carry every one of `labels` (`reason="idle"`).
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.samples.iter().filter(|(series, _)| matches(series, name, labels)).map(|(_, value)| value).sum()
    }

    /// Whether there is any series of this name.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|(series, _)| matches(series, name, &[]))
    }
}

fn matches(series: &str, name: &str, labels: &[&str]) -> bool {
    let (found, carried) = series.split_once('{').unwrap_or((series, ""));
    let carried: Vec<_> = carried.trim_end_matches('}').split(',').collect();
    found == name && labels.iter().all(|label| carried.contains(label))
}
