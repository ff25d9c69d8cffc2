//! The audit log from outside: who used which verb on what, with what outcome, and what is in no line.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use reqwest::RequestBuilder;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::attached::Attached;
use crate::common::keyring::Keyring;
use crate::common::place::Place;
use crate::common::program::{Answer, Program, message, place};
use crate::common::{SOON, eventually, eventually_some};

fn file(place: &Place) -> PathBuf {
    place.path().join("audit.jsonl")
}

fn config(place: &Place) -> String {
    format!("[audit]\nfile = \"{}\"\n", file(place).display())
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The line of a request, once it is there.
async fn line(file: &Path, id: &str) -> Value {
    let found = async || lines(file).into_iter().find(|line| line["request_id"] == id);
    eventually_some("the line is written", SOON, found).await
}

fn as_request(request: RequestBuilder, key: &str, id: &str) -> RequestBuilder {
    request.bearer_auth(key).header("x-request-id", id)
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_names_caller_verb_and_outcome() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, alice_id) = ring.key(&["--user", "alice-s3cret"]);
    let (service, service_id) = ring.key(&["--service"]);
    let (admin, admin_id) = ring.key(&["--admin"]);
    let (_program, site) = Program::ready(&place, &format!("{}{}", ring.config(), config(&place))).await;
    let log = file(&place);
    assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let turn = as_request(site.post(), &alice, "r1").header("x-pilotlight-session", "diary-s3cret");
    assert_eq!(Answer::of(turn.json(&message("[[say:s3cret]] s3cret words"))).await.text(), "s3cret");
    let by_alice = line(&log, "r1").await;
    assert_eq!((&by_alice["caller"], &by_alice["role"]), (&json!(alice_id), &json!("user")));
    assert_eq!((&by_alice["verb"], &by_alice["outcome"]), (&json!("turn"), &json!("completed")));
    assert_eq!(by_alice["status"], 200);
    let list = place.data_dir().join("records/users").join(by_alice["user"].as_str().unwrap());
    assert!(list.is_dir(), "the digest names the user's directory");
    let record = place.data_dir().join("records").join(by_alice["session"].as_str().unwrap());
    assert!(record.is_dir(), "the hash names the session's directory");

    // The same session by others, and one that is refused.
    let of_alice = |method: &str, path: &str| site.session(method, path, "alice-s3cret");
    let read = as_request(of_alice("GET", "diary-s3cret/messages"), &service, "r2");
    assert_eq!(Answer::of(read).await.status, 200);
    let stop = as_request(of_alice("DELETE", "diary-s3cret"), &admin, "r3");
    assert_eq!(Answer::of(stop).await.status, 200);
    let other = as_request(site.session("DELETE", "diary-s3cret", "bob"), &alice, "r4");
    assert_eq!(Answer::of(other).await.error().1, "other_user");
    for (id, caller, role, verb, outcome) in [
        ("r2", &service_id, "service", "session.messages", "ok"),
        ("r3", &admin_id, "admin", "session.delete", "ok"),
        ("r4", &alice_id, "user", "session.delete", "other_user"),
    ] {
        let line = line(&log, id).await;
        assert_eq!((&line["caller"], &line["role"]), (&json!(caller), &json!(role)), "{line}");
        assert_eq!((&line["verb"], &line["outcome"]), (&json!(verb), &json!(outcome)), "{line}");
        assert!(id == "r4" || line["session"] == by_alice["session"], "{line}");
        assert!(id == "r4" || line["user"] == by_alice["user"], "{line}");
    }

    // The deletion of a user, on the other listener.
    let url = format!("{}/v1/users/alice-s3cret", site.admin);
    assert_eq!(Answer::of(as_request(site.web().delete(url), &admin, "r5")).await.status, 200);
    let deleted = line(&log, "r5").await;
    assert_eq!((&deleted["verb"], &deleted["user"]), (&json!("user.delete"), &by_alice["user"]));

    // Neither strangers nor probes have lines of their own, and no line has a text, a name or a key.
    assert_eq!(Answer::of(as_request(site.post(), "plk_wrong", "r6").json(&message("a"))).await.status, 401);
    assert_eq!(Answer::of(as_request(site.of("GET", "/v1/models", "a"), &service, "r7")).await.status, 200);
    let text = std::fs::read_to_string(&log).unwrap();
    for hidden in ["s3cret", "diary", "plk_", &alice, "r6", "r7"] {
        assert!(!text.contains(hidden), "{hidden} in {text}");
    }
    assert_eq!(site.metric("audit_lines_total", &[]).await as usize, lines(&log).len());
    assert_eq!(site.metric("audit_lost_total", &[]).await, 0.0);
}

/// The line of a stream is written when the turn has ended, with its end.
#[tokio::test(flavor = "multi_thread")]
async fn audit_has_the_end_of_a_stream() {
    let place = place();
    let (program, site) = Program::ready(&place, &config(&place)).await;
    let log = file(&place);
    for (id, text, outcome) in [("s1", "hello", "completed"), ("s2", "[[api_error:400]]", "failed")] {
        let request = site.asking("alice", &message(text)).header("x-request-id", id);
        drop(Answer::of(request).await);
        let line = line(&log, id).await;
        assert_eq!((&line["outcome"], &line["role"]), (&json!(outcome), &json!("local")), "{line}");
        assert!(line.get("caller").is_none());
    }
    // A caller that leaves in the middle.
    let body = message("[[deltas:500]][[delay:20]]");
    let mut left = site.asking("alice", &body).header("x-request-id", "s3").send().await.unwrap();
    assert!(left.chunk().await.unwrap().is_some());
    assert!(lines(&log).iter().all(|line| line["request_id"] != "s3"), "the turn runs");
    drop(left);
    assert_eq!(line(&log, "s3").await["outcome"], "client_gone");
    drop(program);
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_is_rotated_and_follows_a_rename() {
    let place = place();
    let more = "max_bytes = 65_536\nfiles = 2\n";
    let (program, site) = Program::ready(&place, &format!("{}{more}", config(&place))).await;
    let (log, rotated) = (file(&place), place.path().join("audit.jsonl.1"));
    let id = "x".repeat(120);
    let ask = async |id: &str| {
        let request = site.of("GET", "/v1/sessions", "alice").header("x-request-id", id);
        assert_eq!(Answer::of(request).await.status, 200);
    };
    // 300 bytes each: more than two files.
    for _ in 0..500 {
        ask(&id).await;
    }
    ask("last").await;
    line(&log, "last").await;
    assert_eq!(site.metric("audit_lines_total", &[]).await, 501.0);
    for file in [&log, &rotated] {
        assert!(file.metadata().unwrap().len() <= 65_536 && !lines(file).is_empty());
    }
    assert!(!place.path().join("audit.jsonl.2").exists());

    let kept = place.path().join("kept.jsonl");
    std::fs::rename(&log, &kept).unwrap();
    program.signal(Signal::HUP);
    eventually("it is opened again", SOON, || log.exists()).await;
    ask("after").await;
    line(&log, "after").await;
    assert_eq!(lines(&log).len(), 1);
}

/// An operator who wants a log is served by no server without one.
#[tokio::test(flavor = "multi_thread")]
async fn audit_that_cannot_be_written_refuses_start() {
    let place = place();
    let data = place.data_dir().display().to_string();
    for unusable in ["/dev/null", "/nowhere/audit", "/"] {
        let file = place.path().join("unusable.toml");
        std::fs::write(&file, format!("[audit]\nfile = \"{unusable}\"\n")).unwrap();
        let file = file.display().to_string();
        let listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cli", "sim"];
        let mut arguments = vec!["serve", "--config", &file, "--data-dir", &data];
        arguments.extend(listen);
        let mut program = Program::start(&place, &arguments, &[]);
        assert_eq!(program.code().await, Some(2), "{unusable}");
        assert!(program.err().contains("audit.file"), "{}", program.err());
    }
}

/// Requests without a valid key, or beyond a rate limit, are counted in one line for each key and reason, however many they are.
#[tokio::test(flavor = "multi_thread")]
async fn audit_sums_up_refused_requests() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, alice_id) = ring.key(&["--user", "alice-s3cret", "--requests-per-minute", "2"]);
    let (mut program, site) = Program::ready(&place, &format!("{}{}", ring.config(), config(&place))).await;
    let list = |key: &str| Answer::of(as_request(site.of("GET", "/v1/sessions", "alice-s3cret"), key, "r"));
    for _ in 0..5 {
        assert_eq!(list("plk_wrong").await.status, 401);
    }
    for expected in [200, 200, 429, 429, 429] {
        assert_eq!(list(&alice).await.status, expected);
    }
    // A valid key that may not do this.
    let deletion = site.web().delete(format!("{}/v1/users/bob", site.admin)).bearer_auth(&alice);
    assert_eq!(Answer::of(deletion).await.error().1, "admin_only");
    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));

    let lines = lines(&file(&place));
    let refused: Vec<_> = lines.iter().filter(|line| line["verb"] == "refused").collect();
    let sums = |code: &str| -> Vec<_> {
        let of_code = refused.iter().filter(|line| line["outcome"] == code);
        of_code.map(|line| (line["caller"].as_str(), line["role"].as_str(), line["count"].as_u64())).collect()
    };
    let caller = Some(alice_id.as_str());
    assert_eq!(sums("invalid_key"), [(None, Some("stranger"), Some(5))]);
    assert_eq!(sums("too_many_requests"), [(caller, Some("user"), Some(3))]);
    assert_eq!(sums("admin_only"), [(caller, Some("user"), Some(1))]);
    let text = std::fs::read_to_string(file(&place)).unwrap();
    assert!(!text.contains("s3cret") && !text.contains("plk_"), "{text}");
}

/// A client that attaches has a line, with the reason if it may not.
#[tokio::test(flavor = "multi_thread")]
async fn audit_names_attached_clients() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, alice_id) = ring.key(&["--user", "alice-s3cret"]);
    let config = format!("{}{}[attach]\nconnections = 2\n", ring.config(), config(&place));
    let (mut program, site) = Program::ready(&place, &config).await;
    let attach = |key: &str, flags: &[&str]| Attached::start(&place, "", flags, &[("PILOTLIGHT_KEY", key)]);
    let mut client = attach(&alice, &[]);
    assert_eq!(client.turn("[[say:s3cret]] s3cret").await["result"], "s3cret");
    drop(client.input.take());
    assert_eq!(client.end().await.0, 0);
    assert_ne!(attach(&alice, &["--nonsense"]).end().await.0, 0);
    assert_ne!(attach("plk_wrong", &[]).end().await.0, 0);
    let read = as_request(site.of("GET", "/v1/sessions/default", "alice-s3cret"), &alice, "read");
    assert_eq!(Answer::of(read).await.status, 200);
    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));

    let lines = lines(&file(&place));
    let of = |verb: &str| lines.iter().filter(|line| line["verb"] == verb).collect::<Vec<_>>();
    let (attached, read) = (of("attach"), of("session.read"));
    let outcomes: Vec<_> = attached.iter().map(|line| (&line["outcome"], &line["status"])).collect();
    assert_eq!(outcomes, [(&json!("ok"), &json!(200)), (&json!("invalid_flag"), &json!(400))]);
    for line in &attached {
        assert_eq!((&line["caller"], &line["role"]), (&json!(alice_id), &json!("user")), "{line}");
        assert_eq!((&line["user"], &line["session"]), (&read[0]["user"], &read[0]["session"]), "{line}");
    }
    assert_eq!((of("refused").len(), &of("refused")[0]["outcome"]), (1, &json!("invalid_key")));
    let text = std::fs::read_to_string(file(&place)).unwrap();
    assert!(!text.contains("s3cret") && !text.contains("plk_"), "{text}");
}

/// Lines do not go to a file that has no name any more.
#[tokio::test(flavor = "multi_thread")]
async fn audit_begins_a_deleted_file_again() {
    let place = place();
    let (_program, site) = Program::ready(&place, &config(&place)).await;
    let log = file(&place);
    let ask = async |id: &str| {
        Answer::of(site.of("GET", "/v1/sessions", "alice").header("x-request-id", id)).await.json();
        line(&log, id).await
    };
    ask("before").await;
    std::fs::remove_file(&log).unwrap();
    ask("after").await;
    assert_eq!(lines(&log).len(), 1);
}
