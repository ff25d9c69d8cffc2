//! The examples run, offline and to their end, and leave nothing. `cargo test` builds them before it runs this; where
//! they are not built (`cargo test --test it` alone builds none), that is said.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::common::built::copy_program;
use crate::common::installed::missing;
use crate::common::process::{Process, all};

/// They take a second at most on an idle machine.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// The built example, if it is there and not older than its source.
fn built(name: &str) -> Option<PathBuf> {
    let program = Path::new(env!("CARGO_BIN_EXE_pilotlight")).with_file_name("examples").join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(format!("{name}.rs"));
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    if changed(&program).is_some_and(|built| Some(built) >= changed(&source)) {
        return Some(program);
    }
    missing(&format!("the example {name} is not built (`cargo build --examples` builds it)"));
    None
}

fn command(program: &Path, place: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("TMPDIR", place).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs an example without arguments; what it printed.
async fn run(name: &str) -> Option<String> {
    let program = built(name)?;
    let place = tempfile::tempdir().unwrap();
    let output = timeout(ENDS_WITHIN, command(&program, place.path()).output()).await;
    let output = output.expect("the example ends in time").unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}: {text}", output.status);
    nothing_is_left(place.path());
    Some(text)
}

/// Children work below the example's data directory, which is in `place`.
fn nothing_is_left(place: &Path) {
    let works_there = |process: &Process| {
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", process.pid));
        cwd.is_ok_and(|cwd| cwd.starts_with(place))
    };
    let left: Vec<_> = all().into_iter().filter(works_there).map(Process::describe).collect();
    assert!(left.is_empty(), "{left:#?}");
    assert_eq!(std::fs::read_dir(place).unwrap().count(), 0, "its data directory is left");
}

#[tokio::test]
async fn minimal() {
    let Some(text) = run("minimal").await else { return };
    assert!(text.contains("Hello | How are you?"), "{text}");
    let processes: Vec<_> =
        text.lines().filter_map(|line| line.split_once("process ")).map(|(_, pid)| pid).collect();
    assert!(processes.len() == 3 && processes.iter().all(|pid| *pid == processes[0]), "{text}");
}

#[tokio::test]
async fn the_snippet_of_the_readme() {
    let Some(program) = built("readme") else { return };
    let (place, path) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // What is found in PATH as `claude` is the simulation.
    let (claude, sim) = (path.path().join("claude"), path.path().join("sim"));
    // Beside it, where its children may execute it.
    copy_program(env!("CARGO_BIN_EXE_pilotlight"), &sim);
    std::fs::write(&claude, format!("#!/bin/sh\nexec '{}' sim \"$@\"\n", sim.display())).unwrap();
    std::fs::set_permissions(&claude, std::fs::Permissions::from_mode(0o755)).unwrap();
    let paths = std::env::var("PATH").unwrap_or_default();
    std::fs::set_permissions(path.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = command(&program, place.path());
    command.env("PATH", format!("{}:{paths}", path.path().display()));
    let output = timeout(ENDS_WITHIN, command.output()).await.expect("it ends in time").unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("echo 1: Hello") && text.contains("[answered]"),
        "{text}"
    );
    nothing_is_left(place.path());
}

#[tokio::test]
async fn axum_service() {
    let Some(text) = run("axum_service").await else { return };
    assert!(text.contains("200 OK") && text.contains("echo 1: Hello"), "{text}");
}

#[tokio::test]
async fn axum_service_stays_until_sigint() {
    let Some(program) = built("axum_service") else { return };
    let place = tempfile::tempdir().unwrap();
    let mut service = command(&program, place.path()).args(["--listen", "127.0.0.1:0"]).spawn().unwrap();
    let mut lines = BufReader::new(service.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let url = line.strip_prefix("listening on ").expect("it says where it listens");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (number, user) in [(1, "alice"), (1, "bob"), (2, "alice")] {
        let answer = client.post(format!("{url}/chat/{user}")).body("Hi").send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), format!("echo {number}: Hi\n"));
    }
    Process::of(service.id().unwrap().cast_signed()).unwrap().signal(Signal::INT);
    assert!(timeout(ENDS_WITHIN, service.wait()).await.unwrap().unwrap().success());
    nothing_is_left(place.path());
}

#[tokio::test]
async fn own_recorder() {
    let Some(text) = run("own_recorder").await else { return };
    let turns = text.lines().find(|line| line.starts_with("pilotlight_turns_total"));
    assert!(turns.is_some_and(|line| line.contains("outcome=ok") && line.ends_with(" 3")), "{text}");
}

#[tokio::test]
async fn caller_tools() {
    let Some(text) = run("caller_tools").await else { return };
    assert!(text.contains("add(17, 25)") && text.contains("TOOLS:ok 42"), "{text}");
}

#[tokio::test]
async fn job_runner() {
    let Some(text) = run("job_runner").await else { return };
    assert_eq!(text.lines().filter(|line| line.contains(" -> echo ")).count(), 9, "{text}");
}

#[tokio::test]
async fn tower_layer() {
    let Some(text) = run("tower_layer").await else { return };
    assert_eq!(text, "200 OK: echo 1: Hello\n401 Unauthorized: who is calling?\n");
}
