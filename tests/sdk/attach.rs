//! Both Agent SDKs with `pilotlight attach` as their CLI: a child of the server, with the real CLI, does the work.

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;

use crate::bench::Bench;
use crate::common::installed::{VERSIONS, cli};
use crate::common::place::{MARK, Place};
use crate::common::{SOON, eventually};
use crate::node::node_modules;
use crate::python::{Age, finished, package_of, python};

/// Starts of some children and ten turns, on a machine busy with other tests.
const RUNS_WITHIN: Duration = Duration::from_secs(120);
/// The client answers permission requests.
const ASK: &str = "[permissions]\npolicy = \"ask\"\n[attach]\nconnections = 8\n";

/// Runs a client of an Agent SDK with each version of the CLI; then a turn over HTTP goes on in its conversation.
async fn attached(start: impl Fn(&Place) -> Command) {
    for version in VERSIONS {
        let Some(cli) = cli(version) else { return };
        let bench = Bench::on(cli).await;
        let server = bench.serve(ASK).await;
        let link = bench.place.path().join("pilotlight-attach");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pilotlight"), &link).expect("a link");
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
