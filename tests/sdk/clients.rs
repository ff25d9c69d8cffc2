//! Agents as clients: `claude` itself and both Agent SDKs, which start a `claude`, with `ANTHROPIC_BASE_URL` at the service.
//!
//! They send their system prompt in pieces, some of them among the messages, tools of their own and an id of a user that
//! nobody can set. Each of their conversations goes on in one warm child.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::bench::Bench;
use crate::common::api::Api;
use crate::common::installed::{VERSIONS, cli};
use crate::common::place::{MARK, Place};
use crate::common::program::{Program, Site, place};
use crate::node::node_modules;
use crate::python::{Age, file_of, finished, package_of};

/// Three starts of a CLI and three turns, on a machine busy with other tests.
const RUNS_WITHIN: Duration = Duration::from_secs(120);

/// What a client needs of the service; nothing of this machine.
fn toward(mut command: Command, place: &Place, service: &str, key: &str) -> Command {
    let home = place.path().join("client");
    std::fs::create_dir_all(&home).expect("a home for the client");
    command.env_clear().current_dir(&home).env("HOME", &home).env(MARK, place.id());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("ANTHROPIC_BASE_URL", service).env("ANTHROPIC_API_KEY", key);
    // Otherwise 2.1.332 offers the tools of MCP servers only after a search for them.
    command.env("ENABLE_TOOL_SEARCH", "false");
    for name in ["DISABLE_AUTOUPDATER", "DISABLE_TELEMETRY", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] {
        command.env(name, "1");
    }
    command
}

/// One `claude -p`: its answer as JSON.
async fn claude(cli: &Path, place: &Place, service: &str, key: &str, arguments: &[&str]) -> Value {
    let mut command = Command::new(cli);
    command.args(["-p", "--output-format", "json"]).args(arguments);
    let (is_good, written) = finished(toward(command, place, service, key), place, RUNS_WITHIN).await;
    assert!(is_good, "{arguments:?}: {written}");
    let answer = written.lines().find_map(|line| serde_json::from_str::<Value>(line).ok());
    answer.unwrap_or_else(|| panic!("no JSON in {written}"))
}

/// The sessions whose turns are these; those of titles that a client asks for beside them are left out.
async fn sessions(site: &Site, turns: u64) -> Vec<Value> {
    let listed = site.get("/v1/sessions").await.json();
    let all = listed["sessions"].as_array().expect("sessions").clone();
    all.into_iter().filter(|session| session["turns"] == turns).collect()
}

/// A conversation of this number of turns in one session, by one child that was never started again.
async fn is_one_warm_conversation(site: &Site, turns: u64) {
    let sessions = sessions(site, turns).await;
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    let session = &sessions[0];
    assert_eq!((&session["generation"], &session["restarts"]), (&json!(1), &json!(0)), "{session}");
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_goes_on_in_one_warm_session() {
    for version in VERSIONS {
        let Some(cli) = cli(version) else { return };
        let place = place();
        let (_program, site) = Program::ready(&place, "").await;
        for (number, text) in ["[[say:one]]", "[[say:two]]", "[[say:three]]"].into_iter().enumerate() {
            // Without a model 2.1.197 loses its wide window when it goes on, and says another model in its prompt.
            let mut arguments = vec![text, "--model", "sonnet"];
            arguments.extend((number > 0).then_some("--continue"));
            let answer = claude(&cli, &place, &site.http, "any", &arguments).await;
            assert_eq!(answer["is_error"], false, "{version}: {answer}");
            let said = ["one", "two", "three"][number];
            assert!(answer["result"].as_str().expect("a result").contains(said), "{version}: {answer}");
        }
        is_one_warm_conversation(&site, 3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_with_a_users_key_is_that_user() {
    for version in VERSIONS {
        let Some(cli) = cli(version) else { return };
        let place = place();
        let keys = place.path().join("keys.jsonl");
        let new = std::process::Command::new(env!("CARGO_BIN_EXE_pilotlight"))
            .args(["keys", "new", "--user", "alice", "--file"])
            .arg(&keys)
            .output()
            .expect("a key");
        let key = String::from_utf8(new.stdout).expect("text").trim().to_owned();
        let config = format!("[auth]\nkeys_file = \"{}\"\n", keys.display());
        let (_program, site) = Program::ready(&place, &config).await;
        let answer = claude(&cli, &place, &site.http, &key, &["[[say:hers]]"]).await;
        assert_eq!(answer["is_error"], false, "{version}: {answer}");
        let listed = site.web().get(format!("{}/v1/sessions", site.http)).bearer_auth(&key).send().await;
        let listed: Value = listed.expect("an answer").json().await.expect("JSON");
        let users: Vec<_> = listed["sessions"].as_array().expect("sessions").iter().collect();
        assert!(!users.is_empty() && users.iter().all(|session| session["turns"] == 1), "{listed}");
    }
}

/// What the client says to its model has come to the model's API, through the CLI of the service.
fn instructions_arrived(api: &Api) {
    let requests = api.requests();
    let asked: Vec<_> = requests.iter().filter(|request| request.last().contains("[[say:")).collect();
    assert!(asked.len() >= 3, "{requests:?}");
    for request in asked {
        assert!(request.system.contains("You are a Claude agent"), "{}", request.system);
        // Said by the client among its messages.
        assert!(request.system.contains("agent types") || request.system.contains("Environment"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_through_the_real_cli_is_answered() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    for version in VERSIONS {
        let Some(cli) = cli(version) else { return };
        let client = server.client();
        for (text, goes_on) in [("[[say:one]]", false), ("[[say:two]]", true)] {
            let mut arguments = vec![text];
            arguments.extend(goes_on.then_some("--continue"));
            let answer = claude(&cli, &bench.place, client.http(), "any", &arguments).await;
            let said = text.trim_start_matches("[[say:").trim_end_matches("]]");
            assert_eq!((&answer["is_error"], &answer["result"]), (&json!(false), &json!(said)), "{version}");
        }
    }
    instructions_arrived(&bench.api);
    server.stop().await;
}

/// The Agent SDKs, which start a `claude` each.
#[derive(Clone, Copy)]
enum AgentSdk {
    Python,
    Node,
}

/// Runs a script of an agent toward this service: what it wrote. Nothing if the SDK or the CLI is not installed.
async fn agent(sdk: AgentSdk, script: &str, version: &str, place: &Place, service: &str) -> Option<String> {
    let cli = cli(version)?;
    let (mut command, modules) = match sdk {
        AgentSdk::Python => (Command::new("python3"), package_of("claude-agent-sdk", Age::Current)?),
        AgentSdk::Node => (Command::new("node"), node_modules()?),
    };
    match sdk {
        AgentSdk::Python => command.args(["-S", "-u"]).arg(file_of(script, "py")),
        AgentSdk::Node => command.arg(file_of(script, "mjs")),
    };
    let mut command = toward(command, place, service, "any");
    command.env("AGENT_CLI", &cli).env("PYTHONPATH", &modules).env("NODE_SDKS", &modules);
    command.env("PYTHONPYCACHEPREFIX", modules.with_file_name("compiled"));
    let (is_good, written) = finished(command, place, RUNS_WITHIN).await;
    assert!(is_good, "{version}: {written}");
    Some(written)
}

/// Three turns of one client of an Agent SDK, by each version of the CLI.
async fn goes_on(sdk: AgentSdk) {
    for version in VERSIONS {
        let place = place();
        let (_program, site) = Program::ready(&place, "").await;
        let Some(written) = agent(sdk, "agent", version, &place, &site.http).await else { return };
        for said in ["one", "two", "three"] {
            assert!(written.contains(&format!("result: {said}")), "{version}: {written}");
        }
        assert!(written.contains("delta: "), "{version}: nothing came in pieces: {written}");
        is_one_warm_conversation(&site, 3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_sdk_in_python_goes_on_in_one_warm_session() {
    goes_on(AgentSdk::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_sdk_in_node_goes_on_in_one_warm_session() {
    goes_on(AgentSdk::Node).await;
}

/// What the session's model calls is run by the agent: a tool in the script's own process, and the shell of its CLI.
async fn runs_tools(sdk: AgentSdk) {
    for version in VERSIONS {
        let place = place();
        let (_program, site) = Program::ready(&place, "").await;
        let Some(written) = agent(sdk, "agent_tools", version, &place, &site.http).await else { return };
        let expected = ["added: 42", "result: TOOLS:ok 42", "result: TOOLS:ok", "result: done"];
        let mut rest = written.as_str();
        for line in expected {
            rest = rest.split_once(line).unwrap_or_else(|| panic!("{version}: no {line:?}: {written}")).1;
        }
        ran_in_client(&place);
        // Three messages and the results of two calls.
        is_one_warm_conversation(&site, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_sdk_in_python_runs_its_own_tools() {
    runs_tools(AgentSdk::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_sdk_in_node_runs_its_own_tools() {
    runs_tools(AgentSdk::Node).await;
}

/// A shell has written this in the client's directory, and none in a workspace of the service.
fn ran_in_client(place: &Place) {
    let proof =
        std::fs::read_to_string(place.path().join("client/proof")).expect("the client's shell has run");
    assert_eq!(proof, "shell\n");
}

const SHELL: &str = r#"[[tool:mcp__caller__Bash {"command":"echo shell > proof","description":"writes"}]]"#;
const ALLOWED: [&str; 4] = ["--allowedTools", "Bash(echo:*),Read", "--permission-mode", "acceptEdits"];

#[tokio::test(flavor = "multi_thread")]
async fn claude_runs_its_own_tools() {
    for version in VERSIONS {
        let Some(cli) = cli(version) else { return };
        let place = place();
        let (_program, site) = Program::ready(&place, "").await;
        let proof = place.path().join("client/proof");
        let read = format!(r#"[[tool:mcp__caller__Read {{"file_path":{proof:?}}}]]"#);
        for (number, (text, said)) in
            [(SHELL, "TOOLS:ok"), (read.as_str(), "shell"), ("[[say:done]]", "done")].into_iter().enumerate()
        {
            let mut arguments = vec!["--model", "sonnet"];
            arguments.extend(ALLOWED);
            arguments.extend((number > 0).then_some("--continue"));
            arguments.extend(["--", text]);
            let answer = claude(&cli, &place, &site.http, "any", &arguments).await;
            assert_eq!(answer["is_error"], false, "{version}: {answer}");
            assert!(answer["result"].as_str().expect("a result").contains(said), "{version}: {answer}");
        }
        ran_in_client(&place);
        is_one_warm_conversation(&site, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_runs_its_own_tools_for_the_real_cli() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    for version in VERSIONS {
        let Some(cli) = cli(version) else { return };
        let mut arguments = ALLOWED.to_vec();
        arguments.extend(["--", SHELL]);
        let client = server.client();
        let answer = claude(&cli, &bench.place, client.http(), "any", &arguments).await;
        assert_eq!(
            (&answer["is_error"], &answer["result"]),
            (&json!(false), &json!("TOOLS:ok")),
            "{version}"
        );
        ran_in_client(&bench.place);
        std::fs::remove_file(bench.place.path().join("client/proof")).expect("it is there");
    }
    server.stop().await;
}
