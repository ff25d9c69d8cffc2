//! The snippets of the documentation run unchanged, but for the address of the server.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tokio::process::Command;

use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually_some};
use crate::node::{node, node_modules};
use crate::python::{Age, finished, package_of, python};

const PAGES: [&str; 4] = [
    include_str!("../../README.md"),
    include_str!("../../docs/http-api.md"),
    include_str!("../../docs/configuration.md"),
    include_str!("../../docs/clients.md"),
];
/// The server's address in the snippets.
const ADDRESS: &str = "http://127.0.0.1:8480";
/// A turn whose tool runs long enough for a request meanwhile.
const SLEEPS: &str = r#"[[tool:Bash {"command":"sleep 5"}]]"#;
const RUNS_WITHIN: Duration = Duration::from_secs(120);

fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let rest = PAGES.iter().flat_map(|page| page.split(fence.as_str()).skip(1));
    let blocks = rest.filter_map(|rest| rest.split_once("\n```")).map(|(block, _)| block);
    // The README repeats one snippet of its pages.
    let mut seen = std::collections::HashSet::new();
    blocks.filter(|block| seen.insert(*block)).collect()
}

/// Runs a command with the snippet as its last argument.
async fn pasted(mut command: Command, place: &Place, site: &Site, snippet: &str) -> String {
    command.arg(snippet.replace(ADDRESS, &site.http));
    let (is_good, written) = finished(command, place, RUNS_WITHIN).await;
    assert!(is_good, "{snippet}\n\nended badly and wrote\n\n{written}");
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn python_snippets_run_unchanged() {
    let snippets = blocks("python");
    assert!(snippets.len() >= 3, "the snippets are found: {snippets:?}");
    for snippet in snippets {
        let of_line =
            |line: &'static str| line.strip_prefix("import ").or_else(|| line.strip_prefix("from "));
        let mut packages =
            snippet.lines().filter_map(of_line).filter_map(|line| line.split([' ', '_']).next());
        let known = ["anthropic", "openai", "langchain", "litellm"];
        let package = packages.find(|package| known.contains(package));
        let package = package.unwrap_or_else(|| panic!("it stands by itself: {snippet}"));
        let ages: &[_] = match package {
            "anthropic" | "openai" => &[Age::Current, Age::YearOld],
            _ => &[Age::Current],
        };
        for &age in ages {
            let Some(package) = package_of(package, age) else { continue };
            let place = place();
            let (_program, site) = Program::ready(&place, "").await;
            let mut command = python(&place, &package);
            // LiteLLM else asks hosts of its own.
            command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True").arg("-c");
            let written = pasted(command, &place, &site, snippet).await;
            assert!(!snippet.contains("print(") || written.contains("echo"), "it printed {written:?}");
            assert!(site.metric("turns_total", &["outcome=\"ok\""]).await >= 1.0, "{snippet}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_snippets_run_unchanged() {
    let snippets = blocks("js");
    assert!(!snippets.is_empty(), "the snippets are found");
    let Some(modules) = node_modules() else { return };
    for snippet in snippets {
        let place = place();
        let (_program, site) = Program::ready(&place, "").await;
        std::os::unix::fs::symlink(&modules, place.path().join("node_modules")).unwrap();
        let file = place.path().join("snippet.mjs");
        std::fs::write(&file, snippet.replace(ADDRESS, &site.http)).unwrap();
        let mut command = node(&place, &modules);
        command.arg(&file);
        let (is_good, written) = finished(command, &place, RUNS_WITHIN).await;
        assert!(is_good && written.contains("echo"), "{snippet}\n\nwrote\n\n{written}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "the test waits for the turn")]
async fn curl_snippets_run_unchanged() {
    // The others hold ids that an answer gave before.
    let ours = |block: &&str| {
        block.contains("curl ")
            && !block.contains("cargo")
            && !block.contains("REQUEST_ID")
            && !block.contains(": ID")
            && !block.contains("UUID")
    };
    let snippets: Vec<_> = blocks("sh").into_iter().filter(ours).collect();
    assert!(!snippets.is_empty(), "the snippets are found");
    if !crate::curl::is_installed() {
        return;
    }
    // What a snippet needs: configuration, and a turn of alice that has ended or runs; and what its last answer has.
    let cases = [
        ("/warm", "", None, r#""state":"idle""#),
        ("/keepalive", "", None, "data: [DONE]"),
        ("respond-async", "", None, r#""status":"completed""#),
        (
            "/mcp",
            "[mcp.servers.docs]\ncommand = \"sleep\"\nargs = [\"600\"]",
            Some("hello"),
            r#""applied":"now""#,
        ),
        ("/steer", "[permissions]\npolicy = \"allow\"", Some(SLEEPS), r#""taken":true"#),
    ];
    for snippet in snippets {
        let case = cases.iter().find(|(mark, ..)| snippet.contains(mark));
        let (_, config, before, end) = case.unwrap_or_else(|| panic!("what does it need? {snippet}"));
        let place = place();
        let (_program, site) = Program::ready(&place, config).await;
        let turn = before.map(|text| tokio::spawn(Answer::of(site.asking("alice", &message(text)))));
        let state = if *before == Some(SLEEPS) { "busy" } else { "idle" };
        if turn.is_some() {
            eventually_some("the turn of alice", SOON, async || {
                let session = Answer::of(site.session("GET", "default", "alice")).await;
                session.body.contains(&format!(r#""state":"{state}""#)).then_some(())
            })
            .await;
        }
        let mut command = Command::new("sh");
        command.arg("-ec");
        let written = pasted(command, &place, &site, snippet).await;
        assert!(written.contains(end), "{snippet}: {written}");
        if let Some(turn) = turn {
            assert_eq!(turn.await.unwrap().status, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn user_env_file_snippet_works_unchanged() {
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
