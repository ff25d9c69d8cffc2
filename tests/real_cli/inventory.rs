//! What a version of the CLI has, held against what was judged: a flag, a tool, a command or a control request that nobody
//! has looked at fails here, by its name. `tests/inventory/claude.json` is the record; each entry stands under a
//! judgement, which the record explains.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::Deserialize;
use serde_json::{Value, json};

use super::bare::{Bare, is_result};
use super::bench::Bench;

const RECORD: &str = include_str!("../inventory/claude.json");

/// A judgement and its entries.
type Judged = BTreeMap<String, BTreeSet<String>>;

#[derive(Deserialize)]
struct Record {
    /// What each judgement means, by category.
    judgements: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(flatten)]
    categories: BTreeMap<String, Judged>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_of_this_version_is_judged() {
    let Some(bench) = Bench::of_newest().await else { return };
    let record: Record = serde_json::from_str(RECORD).unwrap();
    let found = found(&bench).await;
    assert_eq!(
        found.keys().copied().collect::<Vec<_>>(),
        record.categories.keys().map(String::as_str).collect::<Vec<_>>()
    );
    let mut unjudged = Vec::new();
    for (category, entries) in &found {
        assert!(!entries.is_empty(), "no {category} were found: the CLI reports them in another way");
        let judged: BTreeSet<&String> = record.categories[*category].values().flatten().collect();
        unjudged
            .extend(entries.iter().filter(|entry| !judged.contains(entry)).map(|entry| (*category, entry)));
    }
    let version = super::version();
    assert!(
        unjudged.is_empty(),
        "{version} has what nobody has judged (tests/inventory/claude.json): {unjudged:?}"
    );
}

/// Tools that the model can call without a permission and beyond the turn are those that the configuration takes away.
#[test]
fn tools_judged_off_are_disallowed() {
    let record: Record = serde_json::from_str(RECORD).unwrap();
    let disallowed = pilotlight::Config::new("/nowhere").cli.disallowed_tools;
    for tool in &record.categories["tools"]["off"] {
        assert!(disallowed.contains(tool), "{tool}");
    }
}

#[test]
fn every_judgement_is_explained_and_made_once() {
    let record: Record = serde_json::from_str(RECORD).unwrap();
    for (category, judged) in &record.categories {
        let explained: BTreeSet<_> = record.judgements[category].keys().collect();
        assert_eq!(judged.keys().collect::<BTreeSet<_>>(), explained, "{category}");
        let mut seen = BTreeSet::new();
        for entry in judged.values().flatten() {
            assert!(seen.insert(entry), "{category}: {entry} has two judgements");
        }
    }
}

async fn found(bench: &Bench) -> BTreeMap<&'static str, BTreeSet<String>> {
    let help = output(Command::new(&bench.cli).arg("--help").env("HOME", bench.place.path()));
    // Its subtypes stand in the program as comparisons; there is no other list.
    let requests =
        output(Command::new("grep").args(["-aoE", r#"request\.subtype==="[a-z_]+""#]).arg(&bench.cli));
    let quoted = |line: &str| line.split('"').nth(1).map(str::to_owned);
    let mut cli = Bare::begin_with_commands(bench).await;
    let request = json!({"subtype": "initialize"});
    cli.send(json!({"type": "control_request", "request_id": "ready?", "request": request})).await;
    let answered = cli.until(|line| line["type"] == "control_response").await;
    let initialize = &answered.last().unwrap()["response"]["response"];
    cli.say("[[say:hello]]").await;
    let turn = cli.until(is_result).await;
    let init = turn.iter().find(|line| line["subtype"] == "init").unwrap();
    BTreeMap::from([
        ("flags", flags(&help)),
        ("subcommands", subcommands(&help)),
        ("tools", texts(&init["tools"])),
        ("agents", texts(&init["agents"])),
        ("commands", &texts(&init["slash_commands"]) | &names(&initialize["commands"])),
        ("init", keys(init)),
        ("initialize", keys(initialize)),
        ("control_requests", requests.lines().filter_map(quoted).collect()),
    ])
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// An option's line: two blanks, then its names, then more blanks or the end.
fn flags(help: &str) -> BTreeSet<String> {
    let options =
        help.lines().filter_map(|line| line.strip_prefix("  ").filter(|line| line.starts_with('-')));
    let names = options.flat_map(|line| line.split("  ").next().unwrap_or_default().split([' ', ',']));
    names.filter(|name| name.starts_with("--")).map(str::to_owned).collect()
}

fn subcommands(help: &str) -> BTreeSet<String> {
    let (_, list) = help.split_once("\nCommands:\n").expect("a list of subcommands");
    let entries = list.lines().filter_map(|line| line.strip_prefix("  "));
    let names = entries.filter_map(|line| line.split([' ', '|']).next());
    names
        .filter(|name| name.starts_with(|first: char| first.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect()
}

fn texts(list: &Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().filter_map(|entry| entry.as_str().map(str::to_owned)).collect()
}

fn names(list: &Value) -> BTreeSet<String> {
    let entries = list.as_array().into_iter().flatten();
    entries.filter_map(|entry| entry["name"].as_str().map(str::to_owned)).collect()
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
}
