//! Every row of a table in docs/security.md names tests that exist.

use std::collections::BTreeSet;
use std::path::Path;

use crate::sources::names::tests_of;

const DOCUMENT: &str = include_str!("../../docs/security.md");

/// The names of all test functions below a directory.
fn tests_below(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(tests_of(&std::fs::read_to_string(&path).unwrap()));
        } else if path.extension().is_some_and(|extension| extension == "py") {
            let source = std::fs::read_to_string(&path).unwrap();
            let functions = source.lines().filter_map(|line| line.trim_start().strip_prefix("def test_"));
            names.extend(functions.filter_map(|rest| Some(format!("test_{}", rest.split_once('(')?.0))));
        }
    }
}

/// Each row of each table: its first cell, and the tests that its last cell names.
fn rows() -> Vec<(String, Vec<String>)> {
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| attack ");
    let rows = DOCUMENT.lines().filter(is_row).map(|line| {
        let cells: Vec<&str> = line.trim().trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 3, "three cells are wanted, a \"|\" inside one included: {line}");
        let tests = cells.last().unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect();
        ((*cells.first().unwrap()).to_owned(), tests)
    });
    rows.collect()
}

#[test]
fn security_table_names_tests_that_exist() {
    let mut known = BTreeSet::new();
    for directory in ["tests", "src", "dashboards"] {
        tests_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut known);
    }
    let rows = rows();
    assert!(!rows.is_empty(), "the tables are found");
    for (what, tests) in rows {
        assert!(!tests.is_empty(), "no test is named for: {what}");
        for test in tests {
            assert!(known.contains(&test), "`{test}` is no test, but is named for: {what}");
        }
    }
}
