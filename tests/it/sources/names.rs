//! Names of tests are short; the sentence is in the doc comment.

use super::text::{files_below, read};

/// Maximum length of a test's name: it fits into a report beside its path.
const LONGEST: usize = 50;

/// Functions below a test attribute.
pub(crate) fn tests_of(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((before, rest)) = line.split_once("fn ").filter(|_| !line.starts_with("//")) {
            let is_function = before.split(' ').all(|word| ["", "pub", "async"].contains(&word));
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            if is_test && is_function {
                names.push(name.to_owned());
            }
            is_test = false;
        }
    }
    names
}

#[test]
fn test_names_are_short() {
    let files = ["src", "crates", "tests", "benches", "examples"].map(files_below).concat();
    let mut long = Vec::new();
    for file in files.iter().filter(|file| file.ends_with(".rs")) {
        let names = tests_of(&read(file)).into_iter().filter(|name| name.len() > LONGEST);
        long.extend(names.map(|name| format!("{file}: {name} has {} characters", name.len())));
    }
    assert!(long.is_empty(), "names of tests with more than {LONGEST} characters: {long:#?}");
}
