//! The tables of `docs/http-api.md`, which unit tests hold against the code, know the fields of the SDKs' own types.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::common::program::place;
use crate::python::{Age, finished, package_of, python};

const DOCS: &str = include_str!("../../docs/http-api.md");
const RUNS_WITHIN: Duration = Duration::from_secs(120);

/// The fields in the table below a title.
fn judged(title: &str) -> BTreeSet<String> {
    let (_, rest) = DOCS.split_once(&format!("### {title}\n")).expect("the table is found");
    let table = rest.split("\n#").next().unwrap();
    let names = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    names.map(|(name, _)| name.to_owned()).collect()
}

/// The fields of bodies of an API in a version of its SDK; nothing if it is not installed.
async fn sent(api: &str, age: Age) -> Option<BTreeSet<String>> {
    let place = place();
    let sdk = api.split('-').next().expect("a name");
    let mut command = python(&place, &package_of(sdk, age)?);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/fields.py")).arg(api);
    let (is_good, written) = finished(command, &place, RUNS_WITHIN).await;
    assert!(is_good, "{written}");
    Some(serde_json::from_str(written.lines().last().unwrap()).expect("a list of names"))
}

async fn check(api: &str, title: &str) {
    let judged = judged(title);
    let mut known = BTreeSet::new();
    for age in [Age::Current, Age::YearOld] {
        let Some(sent) = sent(api, age).await else { return };
        assert!(sent.len() > 10 && (sent.contains("messages") || sent.contains("input")), "{sent:?}");
        let missing: Vec<_> = sent.difference(&judged).collect();
        assert!(missing.is_empty(), "fields of {api} ({age:?}) that the table does not judge: {missing:?}");
        known.extend(sent);
    }
    // The inner fields of unions are not asked for.
    let gone: Vec<_> = judged.difference(&known).filter(|name| !name.contains('.')).collect();
    assert!(gone.is_empty(), "fields of the table that no version of {api} has: {gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_anthropic_sdks_are_judged() {
    check("anthropic", "The Anthropic dialect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_openai_sdks_are_judged() {
    check("openai", "The OpenAI dialect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_responses_are_judged() {
    check("openai-responses", "The Responses API").await;
}
