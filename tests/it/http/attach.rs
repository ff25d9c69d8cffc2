//! `pilotlight attach`: a client that speaks the CLI's protocol to a child of its session.

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::common::attached::Attached;
use crate::common::program::{Answer, Program, Site, place};
use crate::common::{SOON, eventually_some};

/// The socket is there on request.
const ATTACH: &str = "[attach]\nconnections = 8\n";

async fn state(site: &Site, user: &str) -> Option<String> {
    let answer = Answer::of(site.session("GET", "default", user)).await;
    (answer.status == 200).then(|| answer.json()["state"].as_str().unwrap().to_owned())
}

async fn rests(site: &Site, user: &str) {
    let is_dormant = async || state(site, user).await.as_deref() == Some("dormant");
    eventually_some("the session rests", SOON, async || is_dormant().await.then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_turns_are_the_sessions_own() {
    let place = place();
    let (_program, site) = Program::ready(&place, ATTACH).await;
    site.turn("alice", "[[say:before]]").await.text();
    let mut client = Attached::start(&place, "alice", &["--include-partial-messages"], &[]);
    let opened = client.ask(&json!({ "subtype": "initialize", "hooks": null })).await;
    assert_eq!(opened["subtype"], "success", "{opened}");
    client.say("[[say:one]]").await;
    client.until("a piece", |line| line["type"] == "stream_event").await;
    let one = client.until("a result", |line| line["type"] == "result").await;
    assert_eq!(one["result"], "one", "{one}");
    assert_eq!(state(&site, "alice").await.as_deref(), Some("busy"));
    assert_eq!(client.turn("[[say:two]]").await["result"], "two");
    drop(client.input.take());
    let (code, errors) = client.end().await;
    assert_eq!(code, 0, "{errors}");
    rests(&site, "alice").await;
    let session = Answer::of(site.session("GET", "default", "alice")).await.json();
    assert_eq!(session["turns"], 3, "{session}");
    assert!(session["total_cost_usd"].as_f64().unwrap() > 0.0, "{session}");
    // The next turn has the attached ones in its context.
    let recalled = site.turn("alice", "[[recall]]").await.text();
    assert!(recalled.contains("[[say:before]]") && recalled.contains("[[say:two]]"), "{recalled}");
    let session = Answer::of(site.session("GET", "default", "alice")).await.json();
    assert_eq!((&session["turns"], &session["context_lost"]), (&json!(4), &Value::Null), "{session}");
}

/// What a client did not ask for, it does not read: no states for the server, no words on standard error.
#[tokio::test(flavor = "multi_thread")]
async fn client_reads_what_its_own_cli_would_say() {
    let place = place();
    let (_program, _site) = Program::ready(&place, ATTACH).await;
    let mut client = Attached::start(&place, "alice", &[], &[]);
    let read = std::cell::RefCell::new(Vec::new());
    client.say("[[say:one]]").await;
    let note = |line: &Value| {
        read.borrow_mut().push(line["subtype"].clone());
        line["type"] == "result"
    };
    client.until("a result", note).await;
    drop(client.input.take());
    let (code, errors) = client.end().await;
    assert_eq!((code, errors.as_str()), (0, ""));
    let read = read.into_inner();
    assert_eq!(read[0], "init", "{read:?}");
    assert!(!read.contains(&json!("session_state_changed")), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_over_http_wait_for_the_attached() {
    let place = place();
    let (_program, site) =
        Program::ready(&place, &format!("{ATTACH}[session]\nidle_timeout = \"200ms\"\n")).await;
    let mut client = Attached::start(&place, "alice", &[], &[]);
    assert_eq!(client.turn("[[say:one]]").await["result"], "one");
    let waiting = tokio::spawn({
        let site = site.clone();
        async move { site.turn("alice", "[[say:two]]").await.text() }
    });
    let queued = async || {
        let entry = site.entry("alice", "default").await;
        (entry["queue_depth"] == 1).then_some(())
    };
    eventually_some("the turn waits", SOON, queued).await;
    assert_eq!(client.turn("[[say:three]]").await["result"], "three");
    drop(client.input.take());
    assert_eq!(client.end().await.0, 0);
    assert_eq!(timeout(SOON, waiting).await.unwrap().unwrap(), "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_client_leaves_no_child() {
    let place = place();
    let (_program, site) = Program::ready(&place, ATTACH).await;
    let mut client = Attached::start(&place, "alice", &[], &[]);
    client.say("[[say:begun]][[sleep:600000]]").await;
    client.until("a line", |line| line["type"] == "system").await;
    let pid = site.pid("alice").await;
    let client_pid = Pid::from_raw(client.process.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(client_pid, Signal::KILL).unwrap();
    client.process.wait().await.unwrap();
    rests(&site, "alice").await;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(site.turn("alice", "[[say:after]]").await.text(), "after");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_server_ends_the_client() {
    let place = place();
    let (program, _site) = Program::ready(&place, ATTACH).await;
    let mut client = Attached::start(&place, "alice", &[], &[]);
    assert_eq!(client.turn("[[say:one]]").await["result"], "one");
    program.signal(Signal::KILL);
    let (code, errors) = client.end().await;
    assert_eq!(code, 1);
    assert!(errors.contains("the server is gone"), "{errors}");
    let (code, errors) = Attached::start(&place, "alice", &[], &[]).end().await;
    assert_eq!(code, 1);
    assert!(errors.contains("no server answers"), "{errors}");
}

/// The shutdown waits for no client that does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn stopping_server_ends_clients_with_their_turns() {
    let place = place();
    let config = format!("drain_timeout = \"10m\"\n{ATTACH}[permissions]\npolicy = \"allow\"\n");
    let (mut program, site) = Program::ready(&place, &config).await;
    let mut idle = Attached::start(&place, "alice", &[], &[]);
    assert_eq!(idle.turn("[[say:one]]").await["result"], "one");
    let mut busy = Attached::start(&place, "bob", &[], &[]);
    let ready = place.path().join("ready");
    busy.say(&format!(
        "[[tool:Bash {{\"command\":\"until test -e {}; do sleep 0.01; done\"}}]]",
        ready.display()
    ))
    .await;
    busy.until("a line", |line| line["type"] == "system").await;
    drop(site);
    program.signal(Signal::TERM);
    let (code, errors) = idle.end().await;
    assert!(code == 1 && errors.contains("the server is stopping"), "{code} {errors}");
    std::fs::write(ready, "").unwrap();
    busy.until("the end of its turn", |line| line["type"] == "result").await;
    let (code, errors) = busy.end().await;
    assert!(code == 1 && errors.contains("the server is stopping"), "{code} {errors}");
    assert_eq!(program.code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_holds_for_flags_and_requests() {
    let place = place();
    let (_program, site) = Program::ready(&place, ATTACH).await;
    for flags in [
        &["--settings", "{}"][..],
        &["--add-dir", "/"],
        &["--add-dir", "../home"],
        &["--plugin-dir", "."],
        &["--dangerously-skip-permissions"],
        &["--permission-mode", "bypassPermissions"],
        &["--mcp-config", r#"{"mcpServers":{"x":{"command":"sh"}}}"#],
        &["--resume", "2c3e8a5c-8c5c-4d0e-9d55-1d2b2a1c9f10"],
        &["--unknown"],
    ] {
        let (code, errors) = Attached::start(&place, "alice", flags, &[]).end().await;
        assert_eq!(code, 1, "{flags:?}: {errors}");
        assert!(errors.contains(flags[0]) || errors.contains("No conversation found"), "{flags:?}: {errors}");
    }
    assert_eq!(site.metric("attach_refused_total", &["reason=\"flags\""]).await, 8.0);
    assert_eq!(site.metric("attach_refused_total", &["reason=\"session\""]).await, 1.0);
    // What lies in the working directory is open to the child anyway.
    let mut client =
        Attached::start(&place, "alice", &["--permission-prompt-tool", "stdio", "--add-dir", "."], &[]);
    for request in [
        json!({ "subtype": "set_permission_mode", "mode": "bypassPermissions" }),
        json!({ "subtype": "mcp_set_servers", "servers": { "x": { "command": "sh" } } }),
        json!({ "subtype": "apply_flag_settings", "settings": {} }),
        json!({ "subtype": "get_settings" }),
    ] {
        let refused = client.ask(&request).await;
        assert_eq!(refused["subtype"], "error", "{refused}");
    }
    let denied = client.turn(r#"[[tool:Bash {"command":"touch made"}]]"#).await;
    assert_eq!(denied["permission_denials"].as_array().unwrap().len(), 1, "{denied}");
    assert_eq!(site.metric("attached_clients", &[]).await, 1.0);
    client.send_raw("not JSON").await;
    let (code, errors) = client.end().await;
    assert!(code == 1 && errors.contains("no JSON object"), "{code} {errors}");
    rests(&site, "alice").await;
    let is_gone = async || (site.metric("attached_clients", &[]).await == 0.0).then_some(());
    eventually_some("no client is attached", SOON, is_gone).await;
}

/// Programs of the client's run beside its child, where the operator takes them from callers.
#[tokio::test(flavor = "multi_thread")]
async fn clients_bring_servers_where_callers_may() {
    let place = place();
    let config = format!("{ATTACH}[mcp]\ncallers = \"all\"\nallow_hosts = [\"mcp.example.com\"]\n");
    let (_program, site) = Program::ready(&place, &config).await;
    let servers =
        |server: Value| json!({ "mcpServers": { "own": server, "me": { "type": "sdk", "name": "me" } } });
    for refused in [
        json!({ "type": "http", "url": "https://evil.example/" }),
        json!({ "type": "http", "url": "https://mcp.example.com/", "headersHelper": "id" }),
        json!({ "command": "serve", "env": { "A": "${ANTHROPIC_API_KEY}" } }),
    ] {
        let config = servers(refused).to_string();
        let (code, errors) = Attached::start(&place, "alice", &["--mcp-config", &config], &[]).end().await;
        assert!(code == 1 && errors.contains("--mcp-config"), "{code} {errors}");
    }
    let config =
        servers(json!({ "command": "serve", "env": { "TOKEN": "secret-of-the-server" } })).to_string();
    let mut client = Attached::start(&place, "alice", &["--mcp-config", &config], &[]);
    let opened = client.ask(&json!({ "subtype": "initialize" })).await;
    assert_eq!(opened["subtype"], "success", "{opened}");
    let status = client.ask(&json!({ "subtype": "mcp_status" })).await.to_string();
    assert!(status.contains("\"own\""), "{status}");
    assert_eq!(client.turn("[[say:one]]").await["result"], "one");
    let pid = site.pid("alice").await;
    for process in crate::common::process::descendants(i32::try_from(pid).unwrap()) {
        let words = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&words).contains("secret-of"), "in the arguments of a process");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_permits_tools_and_interrupts() {
    let place = place();
    let (_program, _site) =
        Program::ready(&place, &format!("{ATTACH}[permissions]\npolicy = \"ask\"\n")).await;
    let mut client = Attached::start(&place, "alice", &["--permission-prompt-tool", "stdio"], &[]);
    client.say(r#"[[tool:Bash {"command":"touch made"}]]"#).await;
    let asked = client.until("a question", |line| line["type"] == "control_request").await;
    assert_eq!(asked["request"]["subtype"], "can_use_tool");
    let allowed = json!({ "behavior": "allow", "updatedInput": asked["request"]["input"] });
    let response = json!({ "subtype": "success", "request_id": asked["request_id"], "response": allowed });
    client.send(&json!({ "type": "control_response", "response": response })).await;
    let done = client.until("a result", |line| line["type"] == "result").await;
    assert_eq!(done["permission_denials"], json!([]), "{done}");
    client.say("[[sleep:600000]]").await;
    client.until("the beginning", |line| line["type"] == "system").await;
    client
        .send(&json!({ "type": "control_request", "request_id": "i", "request": { "subtype": "interrupt" } }))
        .await;
    let ended = client.until("a result", |line| line["type"] == "result").await;
    assert_eq!(ended["subtype"], "error_during_execution", "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_child_may_be_a_spare() {
    let place = place();
    let (_program, site) = Program::ready(&place, &format!("{ATTACH}[spares]\nmin = 1\n")).await;
    let has_spare = async || site.metric("spares", &["state=\"ready\""]).await > 0.0;
    eventually_some("a spare is ready", SOON, async || has_spare().await.then_some(())).await;
    let mut client = Attached::start(&place, "new", &["--system-prompt", "be brief"], &[]);
    assert_eq!(client.turn("[[say:one]]").await["result"], "one");
    assert!(site.metric("spare_claims_total", &["result=\"claimed\""]).await > 0.0);
    drop(client.input.take());
    assert_eq!(client.end().await.0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_clients_are_known_and_few() {
    let place = place();
    let keys = place.path().join("keys.jsonl");
    let new = std::process::Command::new(crate::common::built::pilotlight())
        .args(["keys", "new", "--user", "alice", "--file"])
        .arg(&keys)
        .output()
        .unwrap();
    let key = String::from_utf8(new.stdout).unwrap().trim().to_owned();
    let config = format!("[auth]\nkeys_file = \"{}\"\n[attach]\nconnections = 1\n", keys.display());
    let (_program, _site) = Program::ready(&place, &config).await;
    for (user, key) in [("alice", ""), ("alice", "wrong"), ("bob", key.as_str())] {
        let (code, errors) = Attached::start(&place, user, &[], &[("PILOTLIGHT_KEY", key)]).end().await;
        assert!(code == 1 && errors.contains("key"), "{user}: {code} {errors}");
    }
    let mut client = Attached::start(&place, "", &[], &[("PILOTLIGHT_KEY", &key)]);
    assert_eq!(client.turn("[[say:one]]").await["result"], "one");
    let (code, errors) = Attached::start(&place, "", &[], &[("PILOTLIGHT_KEY", &key)]).end().await;
    assert!(code == 1 && errors.contains("attach.connections"), "{code} {errors}");
    let socket = std::fs::metadata(place.data_dir().join("attach.sock")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&socket.permissions()) & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn children_may_not_attach() {
    let place = place();
    let (_program, site) =
        Program::ready(&place, &format!("{ATTACH}[permissions]\npolicy = \"allow\"\n")).await;
    let socket = place.data_dir().join("attach.sock");
    let program = crate::common::built::pilotlight();
    let command = format!(
        "PILOTLIGHT_SOCKET={} PILOTLIGHT_USER=bob {} attach </dev/null >said 2>&1",
        socket.display(),
        program.display()
    );
    let tool = json!({ "command": command });
    site.turn("alice", &format!("[[tool:Bash {tool}]]")).await.text();
    assert_eq!(
        crate::common::program::holding(&place.data_dir(), "children of the server may not attach"),
        ["said"]
    );
    assert_eq!(state(&site, "bob").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_of_the_client_are_called() {
    let place = place();
    let (_program, _site) = Program::ready(&place, ATTACH).await;
    let config = json!({ "mcpServers": { "me": { "type": "sdk", "name": "me" } } }).to_string();
    let flags = ["--mcp-config", &config, "--allowedTools", "mcp__me__add"];
    let mut client = Attached::start(&place, "alice", &flags, &[]);
    client.say(r#"[[tool:mcp__me__add {"a":17,"b":25}]]"#).await;
    let called = client.until("a call", |line| line["request"]["subtype"] == "mcp_message").await;
    let request = &called["request"];
    assert_eq!(
        (&request["server_name"], &request["message"]["method"]),
        (&json!("me"), &json!("tools/call"))
    );
    let result = json!({ "content": [{ "type": "text", "text": "42" }] });
    let answer = json!({ "jsonrpc": "2.0", "id": request["message"]["id"], "result": result });
    let response = json!({ "subtype": "success", "request_id": called["request_id"], "response": { "mcp_response": answer } });
    client.send(&json!({ "type": "control_response", "response": response })).await;
    let done = client.until("a result", |line| line["type"] == "result").await;
    assert_eq!(done["result"], "TOOLS:ok 42", "{done}");
}
