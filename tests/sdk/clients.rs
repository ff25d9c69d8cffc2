//! Agents as clients: `claude` itself and both Agent SDKs, which start a `claude`, with `ANTHROPIC_BASE_URL` at the service.
//!
//! They send their system prompt in pieces, some of them among the messages, tools of their own and an id of a user that
//! nobody can set. Each of their conversations goes on in one warm child.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::bench::Bench;
use crate::common::api::Api;
use crate::common::installed::{VERSIONS, cli, missing};
use crate::common::place::{MARK, Place};
use crate::common::program::{Program, Site, place};
use crate::python::{Age, finished, package_of, python};

/// Three starts of a CLI and three turns, on a machine busy with other tests.
const RUNS_WITHIN: Duration = Duration::from_secs(120);

/// What a client needs of the service; nothing of this machine.
fn toward(mut command: Command, place: &Place, service: &str, key: &str) -> Command {
    let home = place.path().join("client");
    std::fs::create_dir_all(&home).expect("a home for the client");
    command.env_clear().current_dir(&home).env("HOME", &home).env(MARK, place.id());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("ANTHROPIC_BASE_URL", service).env("ANTHROPIC_API_KEY", key);
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

/// A conversation of three turns in one session, by one child that was never started again.
async fn is_one_warm_conversation(site: &Site) {
    let sessions = sessions(site, 3).await;
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
        is_one_warm_conversation(&site).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn agent_sdk_in_python_goes_on_in_one_warm_session() {
    let Some(package) = package_of("claude-agent-sdk", Age::Current) else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/agent.py");
    agent(
        |place| {
            let mut command = python(place, &package);
            command.arg(&script);
            command
        },
        &[("PYTHONPATH", package.display().to_string())],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_sdk_in_node_goes_on_in_one_warm_session() {
    let Some(modules) = node_modules() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/agent.mjs");
    let sdk = modules.join("@anthropic-ai/claude-agent-sdk/sdk.mjs");
    agent(
        |_| {
            let mut command = Command::new("node");
            command.arg(&script);
            command
        },
        &[("AGENT_SDK", sdk.display().to_string())],
    )
    .await;
}

/// Three turns of one client of an Agent SDK, by each version of the CLI.
async fn agent(start: impl Fn(&Place) -> Command, variables: &[(&str, String)]) {
    for version in VERSIONS {
        let Some(cli) = cli(version) else { return };
        let place = place();
        let (_program, site) = Program::ready(&place, "").await;
        let mut command = toward(start(&place), &place, &site.http, "any");
        command.env("AGENT_CLI", &cli).envs(variables.iter().map(|(name, value)| (*name, value)));
        let (is_good, written) = finished(command, &place, RUNS_WITHIN).await;
        assert!(is_good, "{version}: {written}");
        for said in ["one", "two", "three"] {
            assert!(written.contains(&format!("result: {said}")), "{version}: {written}");
        }
        assert!(written.contains("delta: "), "{version}: nothing came in pieces: {written}");
        is_one_warm_conversation(&site).await;
    }
}

/// Where `tests/run` installs the packages for Node.
fn node_modules() -> Option<PathBuf> {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sdk/node");
    let home = std::env::var_os("PILOTLIGHT_NODE_SDKS").map_or(usual, PathBuf::from);
    let found = Some(home.join("node_modules")).filter(|modules| modules.is_dir());
    if found.is_none() {
        missing("the Agent SDK for Node is not installed (tests/run installs it)");
    }
    found
}
