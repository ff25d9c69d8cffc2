//! The commands of an operator against a running server, and the doctor.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::common::keyring::Keyring;
use crate::common::program::{Program, Site, message, place};
use crate::common::{SOON, built, eventually_some};

/// All of them end by themselves; the doctor starts a CLI.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Exit code, standard output, standard error.
type Ran = (Option<i32>, String, String);

async fn run(arguments: &[&str]) -> Ran {
    let mut command = Command::new(built::pilotlight());
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(ENDS_WITHIN, command.output()).await.expect("it ends in time").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

async fn at(site: &Site, arguments: &[&str]) -> Ran {
    run(&[arguments, &["--server", &site.http]].concat()).await
}

fn json(ran: &Ran) -> Value {
    assert_eq!(ran.0, Some(0), "{ran:?}");
    serde_json::from_str(&ran.1).unwrap_or_else(|error| panic!("{error} in {ran:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_shown_and_stopped() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    site.turn("alice", "hello").await.text();
    site.turn("bob", "hello").await.text();
    site.turn("bob", "again").await.text();
    let (code, table, _) = at(&site, &["sessions", "--sort", "turns"]).await;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(code, Some(0));
    assert_eq!(lines[0][..4], ["USER", "SESSION", "STATE", "MODEL"]);
    assert_eq!((&lines[1][..3], lines[2][0]), (&["bob", "default", "idle"][..], "alice"), "{table}");
    let listed = json(&at(&site, &["sessions", "--user", "bob", "--json"]).await);
    assert_eq!(
        (listed["sessions"].as_array().unwrap().len(), &listed["sessions"][0]["turns"]),
        (1, &2.into())
    );
    let none = json(&at(&site, &["sessions", "--state", "busy", "--json"]).await);
    assert_eq!(none["sessions"], Value::Array(Vec::new()));
    let (code, _, error) = at(&site, &["sessions", "--state", "nosuch"]).await;
    assert!(code == Some(2) && error.contains("dormant") && error.contains("failed"), "{code:?}: {error}");

    let (_, shown, _) = at(&site, &["session", "--user", "bob"]).await;
    assert!(shown.contains("state          idle") && shown.contains("turns          2"), "{shown}");
    assert_eq!(at(&site, &["evict", "--user", "bob"]).await.0, Some(0));
    let bob = json(&at(&site, &["session", "default", "--user", "bob", "--json"]).await);
    assert_eq!((&bob["state"], &bob["pid"]), (&"dormant".into(), &Value::Null));
    assert!(json(&at(&site, &["warm", "--user", "bob", "--json"]).await)["pid"].is_number());
    assert_eq!(at(&site, &["interrupt", "--user", "bob"]).await.1, "no turn was running\n");
    let used = json(&at(&site, &["usage", "--user", "bob", "--json"]).await);
    assert_eq!(used["days"][0]["turns"], 2);
    let (_, events, _) = at(&site, &["tail", "--no-follow", "--user", "bob"]).await;
    assert!(events.contains("  default  evicted") && !events.contains("alice"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_cannot_be_printed_ends_the_command() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    site.turn("alice", "hello").await.text();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (reader, gone) = std::io::pipe().unwrap();
    drop(reader);
    for (out, expected) in [(Stdio::from(full), 1), (Stdio::from(gone), 0)] {
        let mut command = Command::new(built::pilotlight());
        command.args(["tail", "--server", &site.http]).stdout(out).stderr(Stdio::null()).kill_on_drop(true);
        let status = timeout(ENDS_WITHIN, command.status()).await.expect("it ends in time").unwrap();
        assert_eq!(status.code(), Some(expected));
    }
    for name in ["", ".", ".."] {
        let (code, _, error) = at(&site, &["evict", "--user", "alice", name]).await;
        assert!(code == Some(2) && error.contains("not named so"), "{name:?}: {error}");
    }
}

/// Names are text of strangers.
#[tokio::test(flavor = "multi_thread")]
async fn names_cannot_drive_the_terminal() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut body = message("hello");
    body["session_id"] = "a\u{1b}[2J\nb".into();
    site.asking("alice", &body).send().await.unwrap().text().await.unwrap();
    let (_, table, _) = at(&site, &["sessions"]).await;
    assert!(table.contains("a\\u{1b}[2J\\u{a}b") && !table.contains('\u{1b}'), "{table}");
    let (_, events, _) = at(&site, &["tail", "--no-follow"]).await;
    assert!(events.contains("\\u{1b}") && !events.contains('\u{1b}'), "{events}");
    let (code, shown, _) = at(&site, &["session", "a\u{1b}[2J\nb", "--user", "alice"]).await;
    assert!(code == Some(0) && !shown.contains('\u{1b}'), "{shown}");
}

/// Neither in tables nor in JSON: a terminal shows both, and a mark could make one name look like another.
#[tokio::test(flavor = "multi_thread")]
async fn commands_print_nothing_hidden() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"ask\"").await;
    let (user, name) = ("ali\u{202e}ce\u{9b}2J\u{200b}", "a\u{1b}]0;x\u{7}b\u{2066}\u{7f}");
    let mut body = message("fir\u{202e}st \u{1b}[2J");
    body["session_id"] = name.into();
    let asking = |body: &Value| site.post().header("x-pilotlight-user", user.as_bytes()).json(body).send();
    asking(&body).await.unwrap().text().await.unwrap();
    body["messages"][0]["content"] = "[[fault:crash-mid]]".into();
    asking(&body).await.unwrap().text().await.unwrap();
    // A tool with a name of its own waits for its permission.
    body["messages"][0]["content"] = "[[tool:To\u{202e}ol\u{1b}[2J {\"a\":\"\u{9b}\"}]]".into();
    let waiting = asking(&body).await.unwrap();
    let of_it = ["--user", user];
    let waits = async || {
        let shown = at(&site, &[&["session", name][..], &of_it].concat()).await;
        shown.1.contains("waits for").then_some(())
    };
    eventually_some("the tool waits", SOON, waits).await;
    for (command, expected) in [
        (&["sessions"][..], "a\\u{1b}]0;x\\u{7}b\\u{2066}\\u{7f}"),
        (&["sessions", "--json"], "\\u001b]0;x\\u0007b\\u2066\\u007f"),
        (&["session", name, "--user", user], "last exit"),
        (&["session", name, "--user", user], "permission of To\\u{202e}ol"),
        (&["session", name, "--user", user, "--json"], "\"tool_name\": \"To\\u202eol"),
        (&["tail", "--no-follow"], "a\\u{1b}]0;x\\u{7}b\\u{2066}\\u{7f}"),
        (&["tail", "--no-follow", "--json"], "crashed"),
        (&["usage", "--user", user], "DAY"),
        (&["usage", "--user", user, "--json"], "days"),
        (&["warm", "nosuch\u{1b}\u{202e}", "--user", user], ""),
        (&["evict", name, "--user", user], "stopped"),
    ] {
        let (_, shown, error) = at(&site, command).await;
        assert!(shown.contains(expected), "{command:?}: {shown} {error}");
        let hidden = |it: char| it != '\n' && pilotlight::is_hidden(it);
        assert!(!shown.contains(hidden) && !error.contains(hidden), "{command:?}: {shown:?} {error:?}");
    }
    drop(waiting);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_with_keys_needs_that_of_an_admin() {
    let place = place();
    let ring = Keyring::new(&place);
    let ((admin, _), alice) = (ring.key(&["--admin"]), ring.user("alice"));
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    site.post().bearer_auth(&alice).json(&message("hello")).send().await.unwrap().text().await.unwrap();
    let write = |name: &str, key: &str| {
        let file = place.path().join(name);
        std::fs::write(&file, format!("{key}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        file.display().to_string()
    };
    let (of_admin, of_alice) = (write("admin", &admin), write("alice", &alice));

    let (code, _, error) = at(&site, &["sessions"]).await;
    assert!(code == Some(1) && error.contains("--admin-key"), "{error}");
    let (code, _, error) = at(&site, &["session", "--user", "bob", "--admin-key", &of_alice]).await;
    assert!(code == Some(1) && error.contains("role admin"), "{error}");
    let listed = json(&at(&site, &["sessions", "--json", "--admin-key", &of_admin]).await);
    assert_eq!(listed["sessions"][0]["user"], "alice");
    let warm = async |user: &str| at_with(&site, &["warm", "--user", user], &of_admin).await;
    assert_eq!(warm("alice").await.0, Some(0));
    // An admin begins no session.
    let (code, _, error) = warm("carol").await;
    assert!(code == Some(1) && error.contains("no such session"), "{error}");

    let elsewhere = ["sessions", "--admin-key", &of_admin, "--server", "http://192.0.2.1:8480"];
    let (code, _, error) = run(&elsewhere).await;
    assert!(code == Some(2) && error.contains("this machine only") && !error.contains(&admin), "{error}");
    let (code, _, error) = run(&["sessions", "--server", "http://127.0.0.1:1"]).await;
    assert!(code == Some(1) && error.contains("pilotlight serve"), "{error}");
}

async fn at_with(site: &Site, arguments: &[&str], key: &str) -> Ran {
    at(site, &[arguments, &["--admin-key", key]].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_problem_and_remedy() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let file = place.path().join("doctor.toml");
    let config = |text: &str| {
        let data = place.path().join("examined");
        std::fs::write(&file, format!("data_dir = \"{}\"\n{text}", data.display())).unwrap();
        file.display().to_string()
    };
    let sound = config("cli.program = \"sim\"\nlimits.max_children = 2\nhttp.max_connections = 10");
    let findings = json(&at(&site, &["doctor", "--json", "--config", &sound]).await);
    let of = |subject: &str| -> Vec<String> {
        let all = findings["findings"].as_array().unwrap().iter();
        all.filter(|it| it["subject"] == subject).map(|it| it["level"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        (of("cli"), of("server"), of("clock")),
        (vec!["ok".into(); 2], vec!["ok".into()], vec!["ok".into()])
    );
    assert!(of("isolation").len() > 1 && !of("disk").is_empty(), "{findings}");

    let missing = config("cli.program = \"/nowhere/claude\"");
    let (code, text, _) = at(&site, &["doctor", "--config", &missing]).await;
    assert!(code == Some(1) && text.contains("problem  cli") && text.contains("->"), "{text}");
    let wrong = config("[session]\nidle_timeout = \"soon\"");
    let (code, text, _) = at(&site, &["doctor", "--config", &wrong]).await;
    assert!(code == Some(1) && text.contains("idle_timeout"), "{text}");
}

#[tokio::test]
async fn manual_page_knows_the_commands() {
    let (code, page, _) = run(&["man"]).await;
    assert_eq!(code, Some(0));
    for command in ["serve", "doctor", "keys", "completions"] {
        assert!(page.contains(&format!("pilotlight\\-{command}(1)")), "{command} in {page}");
    }
    assert!(page.contains(".TH pilotlight 1"), "{page}");
}

#[tokio::test]
async fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = run(&["completions", shell]).await;
        assert!(code == Some(0) && script.contains("doctor"), "{shell}");
    }
}
