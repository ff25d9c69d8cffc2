//! What the model's tools start is gone when the CLI is. The CLI starts each command in a session of its own and, when
//! it is killed, leaves it running (see `bare`).

use std::time::Duration;

use pilotlight::config::PermissionPolicy;
use pilotlight::turn::Restrictions;
use pilotlight::{Session, TurnOptions};

use super::bench::Bench;
use super::embedded::finish;
use crate::common::{SOON, eventually};

const ALLOWED: &str = "[permissions]\npolicy = \"allow\"\n";

/// How long after the end of a CLI anything of its tools may still be there.
const GONE_WITHIN: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_tool_runs_and_its_turn_ends() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve(ALLOWED).await;
    let turn = server.client().turn("alice", r#"[[tool:Bash {"command":"touch made-by-a-tool"}]]"#).await;
    assert_eq!(turn.text(), "TOOLS:ok");
}

/// Without permission a tool is refused and its turn ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tool_without_permission_is_refused() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let turn = server.client().turn("alice", r#"[[tool:Bash {"command":"touch made-by-a-tool"}]]"#).await;
    assert_eq!(turn.text(), "TOOLS:err");
}

/// A running tool is gone after a kill of its CLI.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_09_running_tool_ends_with_killed_cli() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve(ALLOWED).await;
    let client = server.client();
    let stream = client.stream("alice", r#"[[tool:Bash {"command":"sleep 86401"}]]"#).await;
    let tool = bench.tool(&["sleep", "86401"]).await;
    bench.only_cli().kill();
    eventually("the tool is gone", GONE_WITHIN, || !tool.is_alive()).await;
    assert_eq!(stream.rest().await.error().expect("an error event").0, "session_lost");
    assert_eq!(client.turn("alice", "[[say:fine]]").await.text(), "fine");
}

/// What a tool left running is gone after an eviction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_09_background_tool_ends_with_eviction() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve(&format!("{ALLOWED}[session]\nidle_timeout = \"1s\"\n")).await;
    let client = server.client();
    let command = r#"[[tool:Bash {"command":"setsid sleep 86402 >/dev/null 2>&1 &"}]]"#;
    assert_eq!(client.turn("alice", command).await.text(), "TOOLS:ok");
    let tool = bench.tool(&["sleep", "86402"]).await;
    let cli = bench.only_cli();
    eventually("the idle CLI is stopped", SOON, || !cli.is_alive()).await;
    eventually("the tool is gone", GONE_WITHIN, || !tool.is_alive()).await;
}

/// A running tool is gone after SIGKILL of the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_09_running_tool_ends_with_killed_server() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve(ALLOWED).await;
    let stream = server.client().stream("alice", r#"[[tool:Bash {"command":"sleep 86403"}]]"#).await;
    let tool = bench.tool(&["sleep", "86403"]).await;
    server.process().kill();
    eventually("the tool is gone", GONE_WITHIN, || !tool.is_alive()).await;
    drop(stream);
    server.kill().await;
}

/// A running tool is gone after its caller hung up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_09_running_tool_ends_after_hang_up() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve(ALLOWED).await;
    let client = server.client();
    let stream = client.stream("alice", r#"[[tool:Bash {"command":"sleep 86404"}]]"#).await;
    let tool = bench.tool(&["sleep", "86404"]).await;
    let before = client.pid().await;
    drop(stream);
    eventually("the tool is gone", SOON, || !tool.is_alive()).await;
    assert_eq!(client.turn("alice", "[[say:fine]]").await.text(), "fine");
    assert_eq!(client.pid().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privilege_cli_and_tool_have_no_capability() {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        crate::common::installed::left_out("only root can start a server as another user");
    }
    for as_nobody in [false, true].into_iter().take(1 + usize::from(is_root)) {
        let Some(bench) = Bench::new().await else { return };
        let server =
            if as_nobody { bench.serve_as_nobody(ALLOWED).await } else { bench.serve(ALLOWED).await };
        let stream = server.client().stream("alice", r#"[[tool:Bash {"command":"sleep 86405"}]]"#).await;
        let tool = bench.tool(&["sleep", "86405"]).await;
        for process in [bench.only_cli(), tool] {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).expect("it lives");
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(field(set), Some("0000000000000000"), "{set} as nobody: {as_nobody}");
            }
            assert_eq!(field("NoNewPrivs:"), Some("1"));
            if is_root && !as_nobody {
                assert_eq!(field("CapBnd:"), Some("0000000000000000"));
            }
        }
        drop(stream);
    }
}

/// Runs a turn that touches a file; the tools that the model was offered, and whether the file exists.
async fn restricted(bench: &Bench, session: &Session, restrictions: Restrictions) -> (Vec<String>, bool) {
    let made = session.workspace().await.expect("a workspace").work.join("made");
    std::fs::remove_file(&made).ok();
    let options = TurnOptions::default().restrictions(restrictions);
    let turn = session.send_with(r#"[[tool:Bash {"command":"touch made"}]]"#, options).await;
    finish(turn.expect("accepted")).await;
    let requests = bench.api.requests();
    let tools = requests.last().expect("a request").body["tools"].as_array().cloned().unwrap_or_default();
    let names = tools.iter().map(|tool| tool["name"].as_str().expect("a name").to_owned()).collect();
    (names, made.exists())
}

/// A restricted turn has its tools and its policy, and the next one its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restricted_turn_has_only_its_tools_and_policy() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|config| config.permissions.policy = PermissionPolicy::Allow).await;
    let alice = system.alice();
    let (all, made) = restricted(&bench, &alice, Restrictions::default()).await;
    assert!(made && all.len() > 2 && all.contains(&"Bash".to_owned()), "{all:?}");
    for names in [&["Read"][..], &[]] {
        let mut only = Restrictions::default();
        only.tools = Some(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(
            restricted(&bench, &alice, only).await,
            (names.iter().map(|name| (*name).to_owned()).collect(), false)
        );
    }
    let mut denied = Restrictions::default();
    denied.policy = Some(PermissionPolicy::Deny);
    let (offered, made) = restricted(&bench, &alice, denied).await;
    assert!(!made && offered.contains(&"Bash".to_owned()), "{offered:?}");
    assert_eq!(restricted(&bench, &alice, Restrictions::default()).await, (all, true));
    system.end().await;
}
