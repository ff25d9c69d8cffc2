//! `docs/metrics.md` lists the metrics of the code. `docs/traps.md` and `docs/faults.md` explain the numbers in test names: every number has an entry, and every entry names the
//! files of its tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pilotlight::telemetry::metrics::{Kind, Metric, Unit, catalogue};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The files below a directory that have a test of a number, by number (`trap_07`).
fn numbered_tests(kind: &str, directory: &Path, found: &mut BTreeMap<String, BTreeSet<String>>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            numbered_tests(kind, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let file = path.strip_prefix(ROOT).unwrap().display().to_string();
            let source = std::fs::read_to_string(&path).unwrap();
            for name in source.split(&format!("fn {kind}_")).skip(1) {
                let Some((number, _)) = name.split_once('_') else { continue };
                if number.bytes().all(|byte| byte.is_ascii_digit()) {
                    found.entry(format!("{kind}_{number}")).or_default().insert(file.clone());
                }
            }
        }
    }
}

/// The entries of a catalogue: each number with the files that its last line names.
fn entries(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let entries = page.split("\n### ").skip(1).map(|entry| {
        let number = entry.lines().next().unwrap().to_owned();
        let (_, tests) = entry.split_once("\n* Tests: ").unwrap_or_else(|| panic!("{number} names no tests"));
        let files = tests.lines().next().unwrap().split('`').skip(1).step_by(2).map(str::to_owned);
        (number, files.collect())
    });
    entries.collect()
}

fn catalogue_matches(kind: &str, page: &str, unnumbered: &[&str]) {
    let mut tests = BTreeMap::new();
    for directory in ["src", "tests"] {
        numbered_tests(kind, &Path::new(ROOT).join(directory), &mut tests);
    }
    assert!(tests.len() > 20, "the tests are found: {tests:?}");
    let entries = entries(page);
    for (number, files) in &tests {
        assert_eq!(entries.get(number), Some(files), "the entry of {number} (left) and its tests");
    }
    for (number, files) in &entries {
        assert!(!files.is_empty(), "{number} names no test");
        assert!(tests.contains_key(number) || unnumbered.contains(&number.as_str()), "{number} has no test");
        for file in files {
            assert!(Path::new(ROOT).join(file).is_file(), "{number}: {file} is missing");
        }
    }
}

#[test]
fn trap_catalogue_matches_tests() {
    catalogue_matches("trap", include_str!("../../docs/traps.md"), &[]);
}

#[test]
fn fault_catalogue_matches_tests() {
    // Their tests have names of their own.
    let unnumbered = ["fault_06", "fault_27", "fault_30", "fault_40"];
    catalogue_matches("fault", include_str!("../../docs/faults.md"), &unnumbered);
}

/// The row of a metric in `docs/metrics.md`.
fn metric_row(metric: &Metric) -> String {
    let kind = match metric.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
        other => panic!("{other:?} has no word"),
    };
    let unit = match metric.unit {
        Unit::Count => "",
        Unit::Seconds => "seconds",
        Unit::Bytes => "bytes",
        other => panic!("{other:?} has no word"),
    };
    let labels = metric.labels.iter().map(|label| {
        let values = label.values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(" ");
        format!("{}: {values}", label.name).trim_end_matches(": ").to_owned()
    });
    let labels = labels.collect::<Vec<_>>().join("; ");
    assert!(!metric.help.contains('|'), "the help of {} breaks the table", metric.name);
    format!("| `pilotlight_{}` | {kind} | {labels} | {unit} | {} |\n", metric.name, metric.help)
}

#[test]
fn metric_page_matches_the_catalogue() {
    let rows: String = catalogue().map(metric_row).collect();
    let table = format!("| metric | type | labels | unit | meaning |\n|---|---|---|---|---|\n{rows}");
    let (_, page) = include_str!("../../docs/metrics.md").split_once("\n\n|").expect("a table");
    assert!(format!("|{page}") == table, "docs/metrics.md must end with this table:\n\n{table}");
}
