//! What the README says of the configuration is what the program does: every key is there, with its default.

use std::collections::BTreeSet;
use std::path::Path;

use pilotlight::Config;
use toml::{Table, Value};

const README: &str = include_str!("../../README.md");

/// The block with all keys: the TOML block that has a `[session]` table.
fn block() -> &'static str {
    let blocks = README.split("```toml\n").skip(1).filter_map(|rest| rest.split_once("\n```"));
    let found: Vec<&str> =
        blocks.map(|(block, _)| block).filter(|block| block.contains("[session]")).collect();
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
            assert!(here.contains_key(key) || commented, "the README has no {table:?}.{key}");
        }
        keys += known.len();
    }
    assert!(keys > 45, "only {keys} keys were found");
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
fn the_snippet_on_embedding_is_the_example() {
    let example = include_str!("../../examples/readme.rs");
    let blocks: Vec<_> =
        README.split("```rust\n").skip(1).filter_map(|rest| rest.split_once("```")).collect();
    assert_eq!(blocks.len(), 1, "every Rust snippet has a program that runs it");
    for line in blocks[0].0.lines() {
        assert!(example.contains(&format!("\n    {line}\n")), "examples/readme.rs has no line\n{line}");
    }
}

#[test]
fn its_toml_is_toml_and_names_this_version() {
    let blocks = README.split("```toml\n").skip(1).filter_map(|rest| rest.split_once("\n```"));
    let mut dependencies = 0;
    for (block, _) in blocks {
        let table: Table = block.parse().unwrap_or_else(|error| panic!("{error} in\n{block}"));
        let Some(ours) = table.get("dependencies").and_then(|all| all.get("pilotlight")) else { continue };
        let version = ours.get("version").and_then(Value::as_str).unwrap();
        assert!(env!("CARGO_PKG_VERSION").starts_with(version), "{version}");
        assert_eq!(ours.get("default-features").and_then(Value::as_bool), Some(false));
        dependencies += 1;
    }
    assert_eq!(dependencies, 1, "the lines for Cargo.toml are found");
}

#[test]
fn what_it_points_to_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let links = README.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
    let mut files = 0;
    for link in links.filter(|link| !link.starts_with("http")) {
        assert!(root.join(link).exists(), "{link} is not there");
        files += 1;
    }
    assert!(files >= 3, "the links are found");
    for example in README.split("cargo run --example ").skip(1) {
        let name = example.split_whitespace().next().unwrap();
        assert!(root.join(format!("examples/{name}.rs")).exists(), "there is no example {name}");
    }
}

#[test]
fn every_code_of_an_error_is_explained() {
    let (_, codes) = include_str!("../../src/error.rs").split_once("pub fn code(&self)").unwrap();
    let (codes, _) = codes.split_once("\n    }\n").unwrap();
    let codes: Vec<&str> = codes.split('"').skip(1).step_by(2).collect();
    assert!(codes.len() > 10, "the codes are found: {codes:?}");
    for code in codes {
        assert!(README.contains(&format!("| `{code}`")) || README.contains(&format!(", `{code}`")), "{code}");
    }
}
