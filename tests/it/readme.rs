//! The README and the pages it links to agree with the program: configuration keys, defaults, snippets, error codes, links.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pilotlight::Config;
use toml::{Table, Value};

use crate::sources::text::{files_below, read};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const README: &str = include_str!("../../README.md");
const CONFIGURATION: &str = include_str!("../../docs/configuration.md");
const HTTP_API: &str = include_str!("../../docs/http-api.md");
const CLIENTS: &str = include_str!("../../docs/clients.md");

/// Every Markdown page of the repository's documentation, with its directory and its text.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(ROOT);
    let pages = [".", "docs", "dashboards", "examples"]
        .into_iter()
        .flat_map(|directory| std::fs::read_dir(root.join(directory)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.map(|path| (path.parent().unwrap().to_owned(), std::fs::read_to_string(path).unwrap())).collect()
}

/// The code blocks of a page in one language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    let mut blocks = Vec::new();
    let mut rest = page;
    while let Some((_, after)) = rest.split_once(&fence) {
        let (block, next) = after.split_once("\n```").unwrap();
        blocks.push(block);
        rest = next;
    }
    blocks
}

/// The block with all keys: the TOML block that has a `[session]` table.
fn block() -> &'static str {
    let found: Vec<&str> =
        blocks(CONFIGURATION, "toml").into_iter().filter(|block| block.contains("[session]")).collect();
    match found.as_slice() {
        [only] => only,
        other => panic!("one block with all keys is wanted, there are {}", other.len()),
    }
}

fn load(text: &str) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    Config::from_file(&file).map_err(|error| error.to_string())
}

/// The keys that the program knows in a table: it names them when it meets one that it does not know.
fn known(table: Option<&str>) -> BTreeSet<String> {
    let header = table.map(|table| format!("[{table}]\n")).unwrap_or_default();
    let message = load(&format!("{header}no_such_key = 1\n")).unwrap_err();
    let (_, expected) = message.split_once("expected").expect(&message);
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_key_is_there() {
    let written: Table = block().parse().unwrap();
    let sections: Vec<&String> =
        written.iter().filter(|(_, value)| value.is_table()).map(|(key, _)| key).collect();
    let mut keys = 0;
    for table in std::iter::once(None).chain(sections.iter().map(|table| Some(table.as_str()))) {
        let known = known(table);
        assert!(!known.is_empty(), "no keys are known of {table:?}");
        let here =
            table.map_or(Some(&written), |table| written.get(table).and_then(Value::as_table)).unwrap();
        for key in &known {
            // A key without a default of its own stands there as a comment.
            let commented = part(table).lines().any(|line| line.starts_with(&format!("# {key} = ")));
            assert!(here.contains_key(key) || commented, "the page has no {table:?}.{key}");
        }
        keys += known.len();
    }
    assert!(keys > 45, "only {keys} keys were found");
}

/// The page lists the keys that a running server takes over, and every key is either one of them or waits.
#[test]
fn every_reloadable_key_is_listed() {
    use pilotlight::config::reloadable;

    let page = include_str!("../../docs/configuration.md");
    let (_, section) = page.split_once("\n## Reload\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let written: BTreeSet<&str> = rows.skip(1).flat_map(|row| row.split('`').skip(1).step_by(2)).collect();
    let live: BTreeSet<&str> = reloadable().filter(|(_, is_live)| *is_live).map(|(name, _)| name).collect();
    let sections = live.iter().filter_map(|name| name.split_once('.')).map(|(section, _)| section);
    assert_eq!(written, live.iter().copied().chain(sections).collect());

    let tables: Table = block().parse().unwrap();
    let sections = tables.iter().filter(|(_, value)| value.is_table()).map(|(key, _)| key.as_str());
    let mut all: BTreeSet<String> = sections
        .flat_map(|section| known(Some(section)).into_iter().map(move |key| format!("{section}.{key}")))
        .collect();
    all.extend(known(None).into_iter().filter(|key| !tables.get(key).is_some_and(Value::is_table)));
    assert_eq!(reloadable().map(|(name, _)| name.to_owned()).collect::<BTreeSet<_>>(), all);
}

/// The lines of the block that belong to a table.
fn part(table: Option<&str>) -> &'static str {
    let Some(table) = table else { return block().split_once("\n[").unwrap().0 };
    let (_, after) = block().split_once(&format!("[{table}]\n")).unwrap();
    after.split_once("\n[").map_or(after, |(part, _)| part)
}

#[test]
fn every_default_is_what_it_says() {
    let written = load(block()).unwrap();
    assert_eq!(written, Config::default());
    // Debug leaves out what may be secret; these were compared above by value.
    assert_eq!(written.cli.env_pass, Config::default().cli.env_pass);
}

#[test]
fn readme_is_short() {
    assert!(README.lines().count() <= 250);
}

#[test]
fn embedding_snippet_is_the_example() {
    let example = include_str!("../../examples/readme.rs");
    let snippets = blocks(README, "rust");
    assert_eq!(snippets.len(), 1, "every Rust snippet has a program that runs it");
    for line in snippets[0].lines() {
        assert!(example.contains(&format!("\n    {line}\n")), "examples/readme.rs has no line\n{line}");
    }
}

#[test]
fn toml_blocks_parse_and_name_this_version() {
    let mut dependencies = 0;
    for (_, page) in pages() {
        for block in blocks(&page, "toml") {
            let table: Table = block.parse().unwrap_or_else(|error| panic!("{error} in\n{block}"));
            let Some(ours) = table.get("dependencies").and_then(|all| all.get("pilotlight")) else {
                continue;
            };
            let version = ours.get("version").and_then(Value::as_str).unwrap();
            assert!(env!("CARGO_PKG_VERSION").starts_with(version), "{version}");
            assert_eq!(ours.get("default-features").and_then(Value::as_bool), Some(false));
            dependencies += 1;
        }
    }
    assert_eq!(dependencies, 1, "the lines for Cargo.toml are found");
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let titles = headings.map(|line| line.trim_start_matches('#').trim().to_lowercase());
    let is_kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    titles.map(|title| title.chars().filter(is_kept).collect::<String>().replace(' ', "-")).collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut files = 0;
    for (directory, page) in pages() {
        let links = page.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        for link in links.filter(|link| !link.starts_with("http")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = directory.join(file);
            assert!(path.exists(), "{link} in {} is missing", directory.display());
            files += 1;
            if anchor.is_empty() {
                continue;
            }
            let target = if file.is_empty() { page.clone() } else { std::fs::read_to_string(path).unwrap() };
            assert!(anchors(&target).contains(anchor), "{link} has no such heading");
        }
        for example in page.split("cargo run --example ").skip(1) {
            let name = example.split_whitespace().next().unwrap();
            assert!(Path::new(ROOT).join(format!("examples/{name}.rs")).exists(), "no example {name}");
        }
    }
    assert!(files >= 20, "the links are found");
}

#[test]
fn every_error_code_is_explained() {
    let (_, codes) = include_str!("../../src/error.rs").split_once("pub fn code(&self)").unwrap();
    let (codes, _) = codes.split_once("\n    }\n").unwrap();
    let codes: Vec<&str> = codes.split('"').skip(1).step_by(2).collect();
    assert!(codes.len() > 10, "the codes are found: {codes:?}");
    for code in codes {
        let explained =
            HTTP_API.contains(&format!("| `{code}`")) || HTTP_API.contains(&format!(", `{code}`"));
        assert!(explained, "{code}");
    }
}

/// Whether a file defines a test of this name: a function, or a check of a script in Python or for Node.
fn defines(file: &str, source: &str, name: &str) -> bool {
    match file.rsplit_once('.') {
        Some((_, "rs")) => source.contains(&format!("fn {name}()")),
        Some((_, "py")) => source.contains(&format!("\ndef {name}()")),
        Some((_, "mjs")) => source.contains(&format!("\n  {name}: ")),
        _ => false,
    }
}

#[test]
fn client_inputs_name_tests_that_exist() {
    let (_, table) = CLIENTS.split_once("## Inputs and their answers\n").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20, "the rows are found: {rows:#?}");
    let files = ["tests", "src"].map(files_below).concat();
    let is_source = |file: &&String| [".rs", ".py", ".mjs"].iter().any(|end| file.ends_with(end));
    let sources: Vec<_> = files.iter().filter(is_source).map(|file| (file, read(file))).collect();
    for row in rows {
        let cells: Vec<&str> = row.trim().trim_matches('|').split(" | ").collect();
        let [_, _, tests] = cells.as_slice() else { panic!("three cells are wanted: {row}") };
        let tests: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test in {row}");
        for test in tests {
            assert!(sources.iter().any(|(file, source)| defines(file, source, test)), "{test} is no test");
        }
    }
}
