//! The snippets of the README, pasted: nothing is changed but the address of the server.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tokio::process::Command;

use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::python::{Age, finished, package_of, python};

const README: &str = include_str!("../../README.md");
/// Where the README says that the server is.
const ADDRESS: &str = "http://127.0.0.1:8480";
const RUNS_WITHIN: Duration = Duration::from_secs(120);

fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let rest = README.split(fence.as_str()).skip(1);
    rest.filter_map(|rest| rest.split_once("\n```")).map(|(block, _)| block).collect()
}

/// Runs a command with the snippet as its last argument.
async fn pasted(mut command: Command, place: &Place, site: &Site, snippet: &str) -> String {
    command.arg(snippet.replace(ADDRESS, &site.http));
    let (is_good, written) = finished(command, place, RUNS_WITHIN).await;
    assert!(is_good, "{snippet}\n\nended badly and wrote\n\n{written}");
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn python_snippets_run_as_they_are() {
    let snippets = blocks("python");
    assert!(snippets.len() >= 3, "the snippets are found: {snippets:?}");
    for snippet in snippets {
        let package = if snippet.contains("import anthropic") { "anthropic" } else { "openai" };
        assert!(snippet.contains(&format!("import {package}")), "it stands by itself: {snippet}");
        for age in [Age::Current, Age::YearOld] {
            let Some(package) = package_of(package, age) else { continue };
            let place = place();
            let (_program, site) = Program::ready(&place, "").await;
            let mut command = python(&place, &package);
            command.arg("-c");
            let written = pasted(command, &place, &site, snippet).await;
            assert!(!snippet.contains("print(") || written.contains("echo"), "it printed {written:?}");
            assert!(site.figure("turns_total", &["outcome=\"ok\""]).await >= 1.0, "{snippet}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_snippets_run_as_they_are() {
    // The others hold ids that an answer gave before.
    let ours = |block: &&str| {
        block.contains("curl ")
            && !block.contains("cargo")
            && !block.contains("REQUEST_ID")
            && !block.contains(": ID")
    };
    let snippets: Vec<_> = blocks("sh").into_iter().filter(ours).collect();
    assert!(!snippets.is_empty(), "the snippets are found");
    if !crate::curl::is_installed() {
        return;
    }
    for snippet in snippets {
        let place = place();
        let (_program, site) = Program::ready(&place, "").await;
        let mut command = Command::new("sh");
        command.arg("-ec");
        let written = pasted(command, &place, &site, snippet).await;
        assert!(written.contains("data: [DONE]"), "{written}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_users_variables_works_as_it_is() {
    let mut blocks = blocks("toml").into_iter().filter(|block| block.contains("cli.user_env_file"));
    let block = blocks.next().expect("the block is found");
    let place = place();
    let file = place.path().join("users.toml");
    std::fs::write(&file, block).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = format!("[cli]\nuser_env_file = \"{}\"\n", file.display());
    let (_program, site) = Program::ready(&place, &config).await;
    for (user, name, value) in
        [("alice", "ANTHROPIC_API_KEY", "sk-ant-KEY"), ("bob@example.org", "CLAUDE_CODE_USE_BEDROCK", "1")]
    {
        let asked = site.asking(user, &message(&format!("[[env:{name}]]")));
        assert_eq!(Answer::of(asked).await.text(), value);
    }
}
