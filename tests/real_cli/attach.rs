//! Attached clients that speak to the real CLI themselves: what they cannot do, and how soon they can begin.

use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use super::bench::Bench;
use crate::common::attached::Attached;
use crate::common::installed::is_long;
use crate::common::{SOON, eventually_some};

const ATTACH: &str = "[attach]\nconnections = 8\n";
/// A conversation on a spare begins within this time, in the median.
const BEGINS_WITHIN: Duration = Duration::from_millis(150);
/// Conversations that are timed, with `tests/run --long`; else a third of them.
const CONVERSATIONS: usize = 30;

/// A tool that would leave a file.
fn tool(file: &str) -> String {
    format!(r#"[[tool:Bash {{"command":"touch {file}"}}]]"#)
}

/// The files of this name anywhere below the test's place.
fn made(bench: &Bench, name: &str) -> bool {
    let mut folders = vec![bench.place.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name() == name {
                return true;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    false
}

/// With `permissions.policy = "deny"` no tool that needs a permission runs, whatever the client sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_attached_client_permits_nothing() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve(ATTACH).await;
    let agents = json!({ "a": { "description": "d", "prompt": "p", "permissionMode": "bypassPermissions" } });
    let agents = agents.to_string();
    let flags = ["--agents", &agents, "--allowedTools", "Bash", "--permission-prompt-tool", "stdio"];
    let mut client = Attached::start(&bench.place, "mallory", &flags, &[]);
    // Without a handshake: the command line's agents come with the first message.
    let result = client.turn(&tool("one")).await;
    assert_eq!(result["permission_denials"].as_array().map(Vec::len), Some(1), "{result}");
    for request in [
        json!({ "subtype": "set_permission_mode", "mode": "bypassPermissions" }),
        json!({ "subtype": "apply_flag_settings", "settings": { "permissions": { "allow": ["Bash"] } } }),
        json!({ "subtype": "mcp_set_servers", "servers": { "x": { "command": "sh", "args": ["-c", "touch two"] } } }),
        json!({ "subtype": "reload_plugins" }),
    ] {
        assert_eq!(client.ask(&request).await["subtype"], "error", "{request}");
    }
    client.send(&json!({ "type": "update_environment_variables", "variables": { "X": "y" } })).await;
    // Two hooks that permit, in both forms.
    drop(client.input.take());
    client.end().await;
    let mut client = Attached::start(&bench.place, "mallory", &[], &[]);
    let hooks = json!({ "PreToolUse": [{ "hookCallbackIds": ["h"], "hooks": [{ "type": "command", "command": "touch three" }] }] });
    let opened = client.ask(&json!({ "subtype": "initialize", "hooks": hooks })).await;
    assert_eq!(opened["subtype"], "success", "{opened}");
    client.say(&tool("four")).await;
    let called = client.until("a hook", |line| line["request"]["subtype"] == "hook_callback").await;
    let allow =
        json!({ "hookSpecificOutput": { "hookEventName": "PreToolUse", "permissionDecision": "allow" } });
    let response = json!({ "subtype": "success", "request_id": called["request_id"], "response": allow });
    client.send(&json!({ "type": "control_response", "response": response })).await;
    client.until("a result", |line| line["type"] == "result").await;
    for name in ["one", "two", "three", "four"] {
        assert!(!made(&bench, name), "{name}");
    }
    drop(client);
    server.stop().await;
}

/// The time until a client may send its first message, and until it has the answer to it.
async fn begin(bench: &Bench, user: &str) -> [Duration; 2] {
    let began = Instant::now();
    let mut client = Attached::start(&bench.place, user, &["--system-prompt", "be brief"], &[]);
    let opened = client.ask(&json!({ "subtype": "initialize" })).await;
    let opens = began.elapsed();
    assert_eq!(opened["subtype"], "success", "{opened}");
    let result: Value = client.turn("[[say:one]]").await;
    assert_eq!(result["result"], "one", "{result}");
    let answers = began.elapsed();
    drop(client.input.take());
    client.end().await;
    [opens, answers]
}

/// Its times are in docs/performance.md; the bound is that of a quiet machine, and holds with `tests/run --long` alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attached_conversation_begins_on_a_spare() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve(&format!("{ATTACH}[spares]\nmin = 1\n")).await;
    let mut times = Vec::new();
    for number in 0..CONVERSATIONS / if is_long() { 1 } else { 10 } {
        let spares = async || server.client().metrics().await.sum("pilotlight_spares", &["state=\"ready\""]);
        let ready = async || (spares().await > 0.0).then_some(());
        eventually_some("a spare is ready", SOON, ready).await;
        times.push(begin(&bench, &format!("user-{number}")).await);
    }
    let medians = [0, 1].map(|which| {
        let mut all: Vec<_> = times.iter().map(|time| time[which]).collect();
        all.sort();
        all[all.len() / 2]
    });
    println!("{}: open after {:?}, answered after {:?} (medians)", super::version(), medians[0], medians[1]);
    assert!(!is_long() || medians[0] < BEGINS_WITHIN, "{medians:?}");
    server.stop().await;
}
