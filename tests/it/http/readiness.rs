//! Readiness: only a CLI that has really started opens it.

use std::os::unix::fs::PermissionsExt;

use crate::common::place::Place;
use crate::common::program::{Answer, Program, message, place};
use crate::common::{SOON, eventually_some};

/// A CLI that starts and never says a word.
fn silent_cli(place: &Place) -> String {
    let path = place.path().join("silent");
    std::fs::write(&path, "#!/bin/sh\nexec sleep 86399\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_begun_stream_of_an_unready_cli_opens_nothing() {
    let place = place();
    let config = format!(
        "[cli]\nprogram = \"{}\"\n[http]\nheartbeat = \"100ms\"\n[limits]\nstarts_in_flight = 4\n",
        silent_cli(&place)
    );
    let (_program, site) = Program::serve(&place, &config).await;
    // Their heads are here, so each has begun with a sign of life.
    let mut streams = Vec::new();
    for path in ["/v1/messages/keepalive", "/v1/messages", "/v1/chat/completions"] {
        let mut body = message("hello");
        (body["model"], body["max_tokens"], body["stream"]) = ("sonnet".into(), 9.into(), true.into());
        let stream = site.of("POST", path, "alice").json(&body).send().await.unwrap();
        assert_eq!(stream.status(), 200, "{path}");
        streams.push(stream);
    }
    let ready = site.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (503, &false.into()), "{ready:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_a_cli_answers_opens_readiness() {
    let place = place();
    let (_program, site) = Program::serve(&place, "").await;
    assert_eq!(site.turn("alice", "hello").await.text(), "echo 1: hello");
    assert_eq!(site.get("/readyz").await.status, 200, "no trial start is waited for");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_api_opens_readiness_too() {
    let place = place();
    let (_program, site) = Program::serve(&place, "").await;
    let failed = site.turn("alice", "[[api_error:400]]").await;
    assert_eq!(failed.events().last().unwrap()["type"], "error");
    assert_eq!(site.get("/readyz").await.status, 200, "its CLI has started");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_is_logged_as_refused() {
    let place = place();
    let config = "[session]\nturn_queue = 0\n[limits]\nmax_children = 1\nqueue_deadline = \"200ms\"\n";
    let (program, site) = Program::ready(&place, config).await;
    // Refused by its body, by its session's queue, and by the host once it had been accepted.
    assert_eq!(Answer::of(site.asking("alice", &serde_json::json!({}))).await.status, 400);
    let slow = site.asking("alice", &message("[[sleep:60000]]")).send().await.unwrap();
    assert_eq!(site.turn("alice", "too many").await.error().1, "queue_full");
    assert_eq!(site.turn("bob", "no room").await.error().1, "overloaded");
    assert_eq!(site.get("/v1/nothing").await.status, 404);
    let codes = ["invalid_body", "queue_full", "overloaded", "not_found"];
    let log = eventually_some("all refusals are logged", SOON, async || {
        let log = program.err();
        let is_logged = |code: &&str| {
            let code = format!("code=\"{code}\"");
            log.lines().any(|line| line.contains("request refused") && line.contains(&code))
        };
        codes.iter().all(is_logged).then_some(log)
    })
    .await;
    assert!(!log.contains("turn answered"), "no turn has ended: {log}");
    assert!(!log.contains("client_gone"), "{log}");
    drop(slow);
    let gone = async || program.err().contains("turn answered").then_some(());
    eventually_some("a client that really left is logged", SOON, gone).await;
    assert_eq!(program.err().matches("client_gone").count(), 1);
}
