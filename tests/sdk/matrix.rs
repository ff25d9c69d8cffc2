//! The table of `docs/clients.md` says what the scripts beside this file check, with the packages that they use.

use crate::python::{Age, PINNED, file_of, pinned};

const PAGE: &str = include_str!("../../docs/clients.md");
const AGENTS: &str = include_str!("clients.rs");

/// Scripts in Python: the client's name, and whether a year-old version is checked as well.
const PYTHON: [(&str, &str, bool); 12] = [
    ("anthropic_turns", "`anthropic`, conversations", true),
    ("anthropic_tools", "`anthropic`, tools and objects", true),
    ("anthropic_limits", "`anthropic`, limits", true),
    ("openai_turns", "`openai`, conversations", true),
    ("openai_tools", "`openai`, tools and objects", true),
    ("openai_responses", "`openai`, Responses", true),
    ("openai_limits", "`openai`, limits", true),
    ("langchain_turns", "LangChain", false),
    ("litellm_turns", "LiteLLM", false),
    ("llm_turns", "`llm`", false),
    ("anthropic_real", "`anthropic` with the real CLI", true),
    ("openai_real", "`openai` with the real CLI", true),
];
/// Scripts for Node and for a browser: the client's name, and how its packages begin.
const NODE: [(&str, &str, &[&str]); 4] = [
    ("node_anthropic", "`@anthropic-ai/sdk`", &["@anthropic-ai/sdk@"]),
    ("node_openai", "`openai` for Node", &["openai@"]),
    ("ai_turns", "AI SDK", &["ai@", "@ai-sdk/"]),
    ("page", "a page in Chromium", &["@anthropic-ai/sdk@", "openai@"]),
];

/// The names that follow a line with this mark.
fn names<'t>(text: &'t str, mark: &str, before: &str, end: char) -> Vec<&'t str> {
    let after = text.split(mark).skip(1).filter_map(|rest| rest.split_once(before));
    after.filter_map(|(_, rest)| rest.split_once(end)).map(|(name, _)| name.trim()).collect()
}

fn row(client: &str, packages: &str, checks: &[&str]) -> String {
    assert!(!checks.is_empty(), "{client} has checks");
    let words: Vec<_> = checks.iter().map(|name| name.replace('_', " ")).collect();
    format!("| {client} | {packages} | {} | works |\n", words.join(", "))
}

fn script(name: &str, end: &str) -> String {
    std::fs::read_to_string(file_of(name, end)).expect("the script is there")
}

fn matrix() -> String {
    let mut rows = String::from("| client | version | what was tried | result |\n|---|---|---|---|\n");
    for (name, client, has_older) in PYTHON {
        let (package, _) = name.split_once('_').expect("it begins with its package");
        let version = |age| pinned(package, age).replace("==", " ").replace(&format!("{package} "), "");
        let versions = match has_older {
            true => format!("{}, {}", version(Age::Current), version(Age::YearOld)),
            false => pinned(package, Age::Current).replace(' ', ", ").replace("==", " "),
        };
        rows.push_str(&row(client, &versions, &names(&script(name, "py"), "@check\n", "def ", '(')));
    }
    for (name, client, packages) in NODE {
        let all = PINNED.lines().filter_map(|line| line.strip_prefix("npm "));
        let used = all.filter(|line| packages.iter().any(|begin| line.starts_with(begin)));
        let used: Vec<_> =
            used.map(|line| line.replacen('@', "\u{0}", usize::from(line.starts_with('@')))).collect();
        let used: Vec<_> = used.iter().map(|line| line.replace('@', " ").replace('\u{0}', "@")).collect();
        let script = script(name, "mjs");
        let (_, checks) = script.split_once("run({\n").expect("its checks");
        let checks = checks.lines().filter_map(|line| line.strip_prefix("  ")).filter_map(|line| {
            line.starts_with(|letter: char| letter.is_ascii_lowercase())
                .then(|| line.split_once(": "))
                .flatten()
        });
        let checks: Vec<_> = checks.map(|(name, _)| name).collect();
        rows.push_str(&row(client, &used.join(", "), &checks));
    }
    let versions = crate::common::installed::VERSIONS.join(", ");
    let sdks: Vec<_> = PINNED.lines().filter(|line| line.contains("claude-agent-sdk")).collect();
    let python = sdks.iter().find_map(|line| line.strip_prefix("claude-agent-sdk==")).expect("it is pinned");
    let node = sdks.iter().find_map(|line| line.strip_prefix("npm @anthropic-ai/claude-agent-sdk@"));
    let node = node.expect("it is pinned");
    let packages = format!("`claude` {versions}; Agent SDKs {python} (Python), {node} (Node)");
    rows.push_str(&row("`claude`, Agent SDKs", &packages, &names(AGENTS, "#[tokio::test", "async fn ", '(')));
    for (end, client, sdk) in
        [("py", "Agent SDK in Python by `attach`", python), ("mjs", "Agent SDK for Node by `attach`", node)]
    {
        let packages = format!("{sdk} with the real CLI {versions}");
        rows.push_str(&row(client, &packages, &names(&script("attach", end), "\n", "ok(\"", '"')));
    }
    rows
}

#[test]
fn page_says_what_the_scripts_check() {
    let matrix = matrix();
    assert!(PAGE.contains(&matrix), "docs/clients.md needs this table:\n\n{matrix}");
}
