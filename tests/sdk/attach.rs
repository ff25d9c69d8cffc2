//! Both Agent SDKs with `pilotlight attach` as their CLI: a child of the server, with the real CLI, does the work.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;

use crate::bench::Bench;
use crate::common::installed::{VERSIONS, cli};
use crate::common::place::{MARK, Place};
use crate::common::program::{Program, place};
use crate::common::{SOON, eventually};
use crate::node::{node, node_modules};
use crate::python::{Age, finished, package_of, python};

/// Starts of some children and ten turns, on a machine busy with other tests.
const RUNS_WITHIN: Duration = Duration::from_secs(120);
/// The client answers permission requests.
const ASK: &str = "[permissions]\npolicy = \"ask\"\n[attach]\nconnections = 8\n";

const PAGE: &str = include_str!("../../docs/attach.md");
/// The link in the snippets of the page.
const LINK: &str = "/usr/local/bin/pilotlight-attach";

/// A link to the program that is its subcommand.
fn link(place: &Place) -> PathBuf {
    let link = place.path().join("pilotlight-attach");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pilotlight"), &link).expect("a link");
    link
}

/// Runs a client of an Agent SDK with each version of the CLI; then a turn over HTTP goes on in its conversation.
async fn attached(start: impl Fn(&Place) -> Command) {
    for version in VERSIONS {
        let Some(cli) = cli(version) else { return };
        let bench = Bench::on(cli).await;
        let server = bench.serve(ASK).await;
        let link = link(&bench.place);
        let mut command = start(&bench.place);
        command.env("AGENT_CLI", &link).env("PILOTLIGHT_USER", "alice").env(MARK, bench.place.id());
        command.env("PILOTLIGHT_SOCKET", bench.place.data_dir().join("attach.sock"));
        let (is_good, written) = finished(command, &bench.place, RUNS_WITHIN).await;
        assert!(is_good && written.contains("done"), "{version}: {written}");
        eventually("no child is left", SOON, || bench.clis().is_empty()).await;
        let requests = bench.api.requests();
        let one = requests.iter().find(|request| request.last().contains("[[say:one]]")).expect("a turn");
        assert!(one.system.contains("lighthouse"), "{version}: {}", one.system);
        let recalled = server.client().turn("alice", "[[recall]]").await.text().to_owned();
        assert!(recalled.contains("[[say:one]]"), "{version}: {recalled}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attached_sdk_in_python_has_all_it_needs() {
    let Some(package) = package_of("claude-agent-sdk", Age::Current) else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/attach.py");
    attached(|place| {
        let mut command = python(place, &package);
        command.arg(&script);
        command
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attached_sdk_in_node_has_all_it_needs() {
    let Some(modules) = node_modules() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/attach.mjs");
    let sdk = modules.join("@anthropic-ai/claude-agent-sdk/sdk.mjs");
    attached(|place| {
        let mut command = Command::new("node");
        command.arg(&script).env("AGENT_SDK", &sdk).current_dir(place.path()).env("HOME", place.path());
        command
    })
    .await;
}

/// The only snippet of the page in this language, written to a file.
fn snippet(place: &Place, language: &str, end: &str) -> PathBuf {
    let (_, rest) = PAGE.split_once(&format!("```{language}\n")).expect("a snippet");
    let (text, _) = rest.split_once("\n```").expect("its end");
    let file = place.path().join(format!("snippet.{end}"));
    std::fs::write(&file, text.replace(LINK, &link(place).display().to_string())).expect("a file");
    file
}

/// Runs the page's program with the simulated CLI, unchanged but for the path of the link.
async fn program_of_the_page(place: &Arc<Place>, mut command: Command) {
    let (_program, site) = Program::ready(place, "[attach]\nconnections = 8\n").await;
    command.env("PILOTLIGHT_USER", "alice").env("PILOTLIGHT_SOCKET", place.data_dir().join("attach.sock"));
    let (is_good, written) = finished(command, place, RUNS_WITHIN).await;
    assert!(is_good && written.contains("echo 1: What is 17 + 25?"), "{written}");
    let recalled = site.turn("alice", "[[recall]]").await.text();
    assert!(recalled.contains("17 + 25"), "{recalled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn program_of_the_page_runs_in_python() {
    let Some(package) = package_of("claude-agent-sdk", Age::Current) else { return };
    let place = place();
    let mut command = python(&place, &package);
    command.arg(snippet(&place, "python", "py"));
    program_of_the_page(&place, command).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn program_of_the_page_runs_in_node() {
    let Some(modules) = node_modules() else { return };
    let place = place();
    std::os::unix::fs::symlink(&modules, place.path().join("node_modules")).expect("a link");
    let mut command = node(&place, &modules);
    command.arg(snippet(&place, "js", "mjs"));
    program_of_the_page(&place, command).await;
}
