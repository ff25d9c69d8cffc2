//! What an expression mentions, held against the catalogue of metrics in the code: a name, a label or a value that the code
//! does not have can never have an answer.

use std::collections::BTreeSet;

use pilotlight::telemetry::metrics::{Kind, Metric, catalogue};

const PREFIX: &str = "pilotlight_";
/// Given by Prometheus.
const FROM_OUTSIDE: [&str; 3] = ["job", "instance", "le"];
/// The words before a list of labels.
const GROUPING: [&str; 5] = ["by", "on", "without", "ignoring", "group_left"];

/// A metric and the matchers behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    /// Label and value.
    pub(crate) matchers: Vec<(String, String)>,
}

/// Every metric of ours that is mentioned.
pub(crate) fn selectors(text: &str) -> Vec<Selector> {
    let words = words(text).into_iter().filter(|(word, _)| word.starts_with(PREFIX));
    words.map(|(word, rest)| Selector { metric: word.to_owned(), matchers: matchers(rest) }).collect()
}

/// The labels by which is grouped or joined.
pub(crate) fn grouped_by(text: &str) -> BTreeSet<String> {
    let words = words(text).into_iter().filter(|(word, _)| GROUPING.contains(word));
    let lists = words.filter_map(|(_, rest)| rest.trim_start().strip_prefix('(')?.split_once(')'));
    let labels = lists.flat_map(|(list, _)| list.split(',').map(|label| label.trim().to_owned()));
    labels.filter(|label| !label.is_empty()).collect()
}

/// What the catalogue does not know of all that is mentioned.
pub(crate) fn unknown(text: &str) -> Vec<String> {
    let mut unknown = Vec::new();
    let mut labels: BTreeSet<&str> = FROM_OUTSIDE.into();
    let mut has_ours = false;
    for selector in selectors(text) {
        has_ours = true;
        let Some(metric) = metric(&selector.metric) else {
            unknown.push(format!("no metric {}", selector.metric));
            continue;
        };
        labels.extend(metric.labels.iter().map(|label| label.name));
        for (name, value) in &selector.matchers {
            let Some(label) = metric.labels.iter().find(|label| label.name == name) else {
                if !FROM_OUTSIDE.contains(&name.as_str()) {
                    unknown.push(format!("{} has no label {name}", selector.metric));
                }
                continue;
            };
            let alternatives = value.split('|').filter(|value| !label.values.contains(value));
            unknown.extend(alternatives.map(|value| format!("{} has no {name}={value}", selector.metric)));
        }
    }
    let grouped = grouped_by(text).into_iter().filter(|label| has_ours && !labels.contains(label.as_str()));
    unknown.extend(grouped.map(|label| format!("nothing here has a label {label}")));
    unknown
}

/// The metric that a series belongs to.
pub(crate) fn metric(series: &str) -> Option<&'static Metric> {
    let name = series.strip_prefix(PREFIX)?;
    catalogue().find(|metric| match metric.kind {
        Kind::Histogram => {
            ["_bucket", "_sum", "_count"].iter().any(|end| name.strip_suffix(end) == Some(metric.name))
        }
        _ => metric.name == name,
    })
}

/// Every word outside of quotes, with what comes after it.
fn words(text: &str) -> Vec<(&str, &str)> {
    let is_part = |symbol: char| symbol.is_ascii_alphanumeric() || symbol == '_' || symbol == ':';
    let (mut words, mut rest) = (Vec::new(), text);
    while let Some(begin) = rest.find(|symbol| is_part(symbol) || symbol == '"') {
        rest = rest.get(begin..).unwrap_or_default();
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted.split_once('"').map_or("", |(_, after)| after);
            continue;
        }
        let end = rest.find(|symbol| !is_part(symbol)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        words.push((word, after));
        rest = after;
    }
    words
}

fn matchers(rest: &str) -> Vec<(String, String)> {
    let Some(mut inside) = rest.strip_prefix('{') else { return Vec::new() };
    let mut matchers = Vec::new();
    while let Some((name, after)) = inside.split_once('"').filter(|(name, _)| !name.contains('}')) {
        let Some((value, after)) = after.split_once('"') else { break };
        let name = name.trim_matches(|symbol: char| !symbol.is_ascii_alphanumeric() && symbol != '_');
        matchers.push((name.to_owned(), value.to_owned()));
        inside = after;
    }
    matchers
}

#[test]
fn an_expression_is_read_with_its_matchers_and_groups() {
    let text =
        r#"sum by (le, start) (rate(pilotlight_x_bucket{job=~"a.*",outcome!~"b|c"}[5m])) / pilotlight_y > 0"#;
    let read = selectors(text);
    assert_eq!(
        read.iter().map(|it| it.metric.as_str()).collect::<Vec<_>>(),
        ["pilotlight_x_bucket", "pilotlight_y"]
    );
    let matchers =
        [("job", "a.*"), ("outcome", "b|c")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(read[0].matchers, matchers);
    assert!(read[1].matchers.is_empty());
    assert_eq!(grouped_by(text), ["le", "start"].map(str::to_owned).into());
}

#[test]
fn what_the_code_does_not_have_is_found() {
    let good = r#"sum by (outcome) (rate(pilotlight_turns_total{job=~".*",outcome=~"ok|error"}[1m]))"#;
    assert_eq!(unknown(good), Vec::<String>::new());
    for (from, to) in [
        ("turns_total", "turn_total"),
        ("turns_total", "turns_total_bucket"),
        ("by (outcome)", "by (outcom)"),
        ("outcome=~", "outcom=~"),
        ("ok|error", "ok|eror"),
    ] {
        assert!(!unknown(&good.replace(from, to)).is_empty(), "{to}");
    }
}
