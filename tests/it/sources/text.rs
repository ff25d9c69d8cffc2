//! Reading the repository's files as text.

use std::path::{Path, PathBuf};

use crate::common::built::repository;

/// A file by its path below the repository's root.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files at or below a path, as paths below the repository's root, in order.
pub(crate) fn files_below(path: &str) -> Vec<String> {
    let mut found = Vec::new();
    collect(&repository().join(path), &mut found);
    let shown = |path: PathBuf| path.strip_prefix(repository()).unwrap().display().to_string();
    let mut found: Vec<_> = found.into_iter().map(shown).collect();
    found.sort();
    found
}

fn collect(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_file() {
        found.push(path.to_owned());
    } else if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), found);
        }
    }
}

/// Rust source without comments and without items under `#[cfg(test)]`.
pub(crate) fn without_tests(source: &str) -> String {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    let code: Vec<_> = source.lines().map(code).collect();
    let mut kept = String::new();
    let mut rest = code.as_slice();
    while let [line, after @ ..] = rest {
        rest = after;
        if line.trim_start().starts_with("#[cfg(test)]") {
            rest = after_item(rest);
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// The lines after the item that begins here: after its `;`, or after its closing brace.
fn after_item(lines: &[String]) -> &[String] {
    let mut depth = 0;
    for (number, line) in lines.iter().enumerate() {
        let count = |brace: char| line.matches(brace).count();
        let opened = count('{') > 0;
        depth = depth + count('{') - count('}').min(depth + count('{'));
        let ends = if opened || line.trim() == "}" {
            depth == 0
        } else {
            depth == 0 && line.trim_end().ends_with([';', ','])
        };
        if ends {
            return &lines[number + 1..];
        }
    }
    &[]
}

#[test]
fn source_without_tests_keeps_other_items() {
    let source = "use a; // crate::x\n#[cfg(test)]\nmod tests;\nfn b() {}\n#[cfg(test)]\nmod tests {\n    fn c() {\n    }\n}\nfn d() {}\n";
    assert_eq!(without_tests(source), "use a; \nfn b() {}\nfn d() {}\n");
}
