//! Users beside each other: by name, by conversation, by their credentials.

use serde_json::{Value, json};

use crate::common::program::{Answer, Program, holding, message, place};

#[tokio::test(flavor = "multi_thread")]
async fn two_users_have_two_processes_at_the_same_time() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let (a, b) = tokio::join!(site.turn("alice", "[[sleep:300]] a"), site.turn("bob", "[[sleep:300]] b"));
    assert_eq!((a.text().as_str(), b.text().as_str()), ("echo 1: a", "echo 1: b"));
    assert_ne!(site.pid("alice").await, site.pid("bob").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_has_a_process_of_its_own() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut body = message("hello");
    body["session_id"] = json!("wörk");
    let answer = Answer::of(site.asking("alice", &body)).await;
    assert_eq!(answer.header("x-pilotlight-session"), "w%C3%B6rk");
    assert_eq!(answer.text(), "echo 1: hello");
    assert_eq!(site.turn("alice", "hello").await.text(), "echo 1: hello");
    assert_ne!(site.entry("alice", "wörk").await["pid"], site.entry("alice", "default").await["pid"]);
}

/// Credentials identify the caller across a refresh and a restart.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_identify_user_across_refresh() {
    let place = place();
    let with = |access: &str, refresh: &str, text: &str| {
        let mut body = message(text);
        body["oauth_credentials"] =
            json!({ "access_token": access, "refresh_token": refresh, "expires_at": 4_102_444_800_000_i64 });
        body
    };
    let (mut program, site) = Program::ready(&place, "").await;
    let ask = async |site: &crate::common::program::Site, body: Value| {
        Answer::of(site.post().json(&body)).await.text()
    };
    assert_eq!(ask(&site, with("access-one", "refresh-one", "a")).await, "echo 1: a");
    assert_eq!(ask(&site, with("access-two", "refresh-one", "b")).await, "echo 2: b");
    assert_eq!(ask(&site, with("other", "stranger", "c")).await, "echo 1: c");
    program.signal(rustix::process::Signal::TERM);
    assert_eq!(program.code().await, Some(0));

    let (_program, site) = Program::ready(&place, "").await;
    assert_eq!(ask(&site, with("access-two", "refresh-two", "d")).await, "echo 3: d");
    let holders = holding(&place.data_dir(), "access-two");
    assert!(!holders.is_empty() && holders.iter().all(|name| name == ".credentials.json"), "{holders:?}");
}
