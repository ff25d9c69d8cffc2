//! Limits: each refusal has a type and says when to try again, and it comes before the CLI has seen anything.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually_some};

async fn connect(site: &Site) -> TcpStream {
    TcpStream::connect(site.http.strip_prefix("http://").unwrap()).await.unwrap()
}

/// What is answered until the other end closes, which it must.
async fn answered(mut connection: TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(SOON, connection.read_to_end(&mut answer)).await;
    read.expect("the server closes the connection").ok();
    String::from_utf8_lossy(&answer).into_owned()
}

fn is_limited(answer: &Answer, code: &str) {
    let error = answer.error();
    assert_eq!((error.0, error.1.as_str()), (429, code));
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
}

/// Each caller has its own maximum number of requests; others do not notice.
#[tokio::test(flavor = "multi_thread")]
async fn request_limit_is_per_caller() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nrequests_per_minute = 3").await;
    for number in 1..=3 {
        assert_eq!(site.turn("alice", "a").await.text(), format!("echo {number}: a"));
    }
    let refused = site.turn("alice", "a").await;
    is_limited(&refused, "too_many_requests");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() <= 20, "one of three in a minute");
    assert_eq!(site.turn("bob", "b").await.text(), "echo 1: b");
    for _ in 0..9 {
        assert_eq!(site.get("/livez").await.status, 200, "a prober is not counted");
    }

    // Who is known by its credentials alone is counted as well.
    let mut body = message("c");
    body["oauth_credentials"] =
        serde_json::json!({ "access_token": "a", "refresh_token": "r", "expires_at": 4_102_444_800_000_i64 });
    for _ in 0..3 {
        Answer::of(site.post().json(&body)).await.text();
    }
    is_limited(&Answer::of(site.post().json(&body)).await, "too_many_requests");
    // None of the refused came to the CLI.
    assert_eq!(site.metric("turns_total", &[]).await as u64, 7);
}

/// What is left is in each answer, also in refusals and streams, by the names of the dialect's API.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_limit_is_said() {
    const ANTHROPIC: [&str; 3] = [
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
    ];
    const OPENAI: [&str; 3] =
        ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nrequests_per_minute = 3").await;
    let chat = serde_json::json!({ "model": "sonnet", "max_tokens": 9, "stream": true,
        "messages": [{ "role": "user", "content": "hello" }] });
    let response = serde_json::json!({ "model": "sonnet", "input": "hello" });
    for (path, body, names, others) in [
        ("/v1/messages", &chat, ANTHROPIC, OPENAI),
        ("/v1/chat/completions", &chat, OPENAI, ANTHROPIC),
        ("/v1/responses", &response, OPENAI, ANTHROPIC),
    ] {
        for left in [2, 1, 0, 0] {
            let answer = Answer::of(site.of("POST", path, path).json(body)).await;
            let expected = ["3".to_owned(), left.to_string()];
            assert_eq!([answer.header(names[0]), answer.header(names[1])], expected, "{answer:?}");
            let reset = answer.header(names[2]);
            if names == ANTHROPIC {
                let at = humantime::parse_rfc3339(reset).unwrap();
                let wait = at.duration_since(std::time::SystemTime::now()).unwrap();
                assert!(wait > Duration::from_secs(10) && wait <= Duration::from_secs(61), "{reset}");
            } else {
                assert!(["20s", "40s", "1m0s"].contains(&reset), "{reset}");
            }
            assert!(others.iter().all(|name| !answer.headers.contains_key(*name)), "{answer:?}");
            let waits =
                |name| answer.headers.get(name).map(|it| it.to_str().unwrap().parse::<u64>().unwrap());
            match (waits("retry-after"), waits("retry-after-ms")) {
                (None, None) => assert_eq!(answer.status, 200),
                (Some(seconds), Some(millis)) => {
                    assert_eq!(answer.status, 429);
                    assert!(millis <= 20_000 && millis.div_ceil(1_000) == seconds, "{seconds} {millis}");
                }
                different => panic!("{different:?}"),
            }
        }
    }
    // Who is not admitted, and what is not counted, has no quota.
    for path in ["/livez", "/health"] {
        let answer = site.get(path).await;
        assert!(ANTHROPIC.iter().all(|name| !answer.headers.contains_key(*name)), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_its_own_limits() {
    let place = place();
    let ring = Keyring::new(&place);
    let (small, _) = ring.key(&["--user", "alice", "--requests-per-minute", "1"]);
    let (usual, _) = ring.key(&["--user", "alice"]);
    let config = format!("{}[http]\nrequests_per_minute = 2", ring.config());
    let (_program, site) = Program::ready(&place, &config).await;
    let turn = async |key: &str| Answer::of(site.post().bearer_auth(key).json(&message("a"))).await;
    turn(&small).await.text();
    let refused = turn(&small).await;
    is_limited(&refused, "too_many_requests");
    assert_eq!(refused.header("anthropic-ratelimit-requests-limit"), "1");
    turn(&usual).await.text();
    turn(&usual).await.text();
    is_limited(&turn(&usual).await, "too_many_requests");
}

/// A user has a maximum number of concurrent turns in all conversations.
#[tokio::test(flavor = "multi_thread")]
async fn turn_limit_counts_all_conversations_of_user() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nturns_per_user = 2").await;
    let asking = |user: &str, conversation: &str, text: &str| {
        let mut body = message(text);
        body["session_id"] = conversation.into();
        site.asking(user, &body)
    };
    // Their first bytes are here: both run.
    let first = asking("alice", "one", "[[sleep:60000]]").send().await.unwrap();
    let _second = asking("alice", "two", "[[sleep:60000]]").send().await.unwrap();
    is_limited(&Answer::of(asking("alice", "three", "a")).await, "too_many_turns");
    is_limited(&Answer::of(asking("alice", "one", "a")).await, "too_many_turns");
    assert_eq!(Answer::of(asking("bob", "one", "b")).await.text(), "echo 1: b");
    drop(first);
    let free = async || {
        let answer = Answer::of(asking("alice", "three", "a")).await;
        (answer.status == 200).then(|| answer.text())
    };
    assert_eq!(eventually_some("a place is free again", SOON, free).await, "echo 1: a");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_headers_and_slow_bodies_are_not_waited_for() {
    let place = place();
    let config = "[http]\nheader_timeout = \"300ms\"\nbody_timeout = \"300ms\"";
    let (_program, site) = Program::ready(&place, config).await;
    let begin = Instant::now();
    let mut headers = connect(&site).await;
    headers.write_all(b"POST /v1/messages/keepalive HTTP/1.1\r\nhost: localhost\r\nx-piece").await.unwrap();
    let answer = answered(headers).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");

    let mut body = connect(&site).await;
    let head = "POST /v1/messages/keepalive HTTP/1.1\r\nhost: localhost\r\nx-pilotlight-user: alice\r\n";
    body.write_all(format!("{head}content-length: 1000\r\n\r\n{{\"mess").as_bytes()).await.unwrap();
    let answer = answered(body).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    assert!(begin.elapsed() < Duration::from_secs(10), "the configured limits count, not the usual ones");
    assert_eq!(site.turn("alice", "a").await.text(), "echo 1: a");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_that_never_come_hold_up_nobody() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let head = "POST /v1/messages/keepalive HTTP/1.1\r\nhost: localhost\r\nx-pilotlight-user: mallory\r\n";
    let mut silent = Vec::new();
    for _ in 0..32 {
        let mut connection = connect(&site).await;
        connection.write_all(format!("{head}content-length: 16777216\r\n\r\n{{").as_bytes()).await.unwrap();
        silent.push(connection);
    }
    for number in 1..=20 {
        let answer = timeout(Duration::from_secs(4), site.turn("alice", "a")).await.expect("at once");
        assert_eq!(answer.text(), format!("echo {number}: a"));
    }
}

/// A body of 100 megabytes is refused before it is read.
#[tokio::test(flavor = "multi_thread")]
async fn body_of_100_mb_is_refused_unread() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut connection = connect(&site).await;
    let head = "POST /v1/messages/keepalive HTTP/1.1\r\nhost: localhost\r\nx-pilotlight-user: alice\r\n";
    connection.write_all(format!("{head}content-length: 100000000\r\n\r\n").as_bytes()).await.unwrap();
    let answer = answered(connection).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("request_too_large"), "{answer}");
    let pieces = futures_util::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20])));
    let unannounced = site.post().header("x-pilotlight-user", "alice");
    // The server may hang up while the rest is still being sent.
    if let Ok(answer) = unannounced.body(reqwest::Body::wrap_stream(pieces)).send().await {
        assert_eq!(answer.status(), 413);
    }
    assert_eq!(site.turn("alice", "a").await.text(), "echo 1: a");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_limit_are_refused() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nmax_connections = 2").await;
    let mut held = Vec::new();
    for user in ["a", "b"] {
        held.push(site.asking(user, &message("[[sleep:60000]]")).send().await.unwrap());
    }
    let refused = site.turn("c", "hello").await;
    let error = refused.error();
    assert_eq!((error.0, error.1.as_str()), (503, "overloaded"));
    assert!(error.2.contains("http.max_connections"), "{}", error.2);
    assert_eq!((refused.header("retry-after"), refused.header("connection")), ("1", "close"));
    // In the dialect of the Messages API a crowd has a status of its own, elsewhere it has not.
    for (path, status) in [("/v1/messages", 529), ("/v1/chat/completions", 503)] {
        let refused = Answer::of(site.of("POST", path, "c").json(&message("hello"))).await;
        assert_eq!(
            (refused.status, &refused.json()["error"]["code"]),
            (status, &"overloaded".into()),
            "{path}"
        );
        assert_eq!(refused.json()["error"]["type"], "overloaded_error");
    }
    assert_eq!(site.get("/livez").await.status, 200, "a crowd is no death");
    assert_eq!(site.get("/readyz").await.status, 503);
    held.pop();
    let served = async || {
        let answer = site.turn("c", "hello").await;
        (answer.status == 200).then(|| answer.text())
    };
    assert_eq!(eventually_some("there is room again", SOON, served).await, "echo 1: hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_room_for_a_child_is_529_in_one_dialect() {
    let place = place();
    let config = "[limits]\nmax_children = 1\nqueue_deadline = \"200ms\"\n";
    let (_program, site) = Program::ready(&place, config).await;
    let _busy = site.asking("alice", &message("[[sleep:60000]]")).send().await.unwrap();
    let mut body = message("no room");
    (body["model"], body["max_tokens"]) = ("sonnet".into(), 9.into());
    let mut original = body.clone();
    original["oauth_credentials"] =
        serde_json::json!({ "access_token": "a", "refresh_token": "r", "expires_at": 4_102_444_800_000_i64 });
    for (path, body, status) in [
        ("/v1/messages", &body, 529),
        ("/v1/messages", &original, 503),
        ("/v1/messages/keepalive", &body, 503),
        ("/v1/chat/completions", &body, 503),
    ] {
        let refused = Answer::of(site.of("POST", path, "bob").json(body)).await;
        assert_eq!(
            (refused.status, &refused.json()["error"]["code"]),
            (status, &"overloaded".into()),
            "{path}"
        );
        assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
}

/// Bodies that are announced and not sent take nothing from others.
#[tokio::test(flavor = "multi_thread")]
async fn unsent_bodies_take_no_memory_from_others() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut connection = connect(&site).await;
        let head = "POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nx-pilotlight-user: mallory\r\n\
                    content-length: 16777216\r\nexpect: 100-continue\r\n\r\n";
        connection.write_all(head.as_bytes()).await.unwrap();
        // It is being read once the server asks for the rest.
        let mut line = [0; 12];
        connection.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"HTTP/1.1 100");
        idle.push(connection);
    }
    assert_eq!(site.turn("alice", "hello").await.text(), "echo 1: hello");
}

/// A server that has no open file left says so and counts it.
#[tokio::test(flavor = "multi_thread")]
async fn exhausted_descriptors_are_logged_and_counted() {
    const FILES: &str = "--nofile=60:60";
    let place = place();
    let mut limited = std::process::Command::new("prlimit");
    limited.args([FILES, env!("CARGO_BIN_EXE_pilotlight")]);
    let (_program, site) = Program::ready_by(&place, limited, "").await;
    let mut refused = None;
    for number in 0..20 {
        // A child keeps its files as long as it is warm.
        let answer = site.turn(&format!("user-{number}"), "hello").await;
        if answer.status != 200 {
            refused = Some(answer.error());
            break;
        }
    }
    let (status, kind, text) = refused.expect("60 files are not enough for 20 children");
    assert_eq!((status, kind.as_str()), (503, "overloaded"), "{text}");
    assert_eq!(site.metric("admission_rejected_total", &["reason=\"fds\""]).await, 1.0);
    assert_eq!(site.turn("user-0", "again").await.text(), "echo 2: again", "who is warm is served");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_too_many_sessions_say_what_to_do() {
    let place = place();
    let config = "[limits]\nsessions_per_user = 2\n[http]\nconversations_per_user = 1";
    let (_program, site) = Program::ready(&place, config).await;
    let body = serde_json::json!({
        "model": "sonnet", "max_tokens": 100, "messages": [{ "role": "user", "content": "hello" }]
    });
    let turn = |path: &str, session: &str| {
        Answer::of(site.of("POST", path, "alice").header("x-pilotlight-session", session).json(&body))
    };
    for session in ["one", "two", "default"] {
        assert_eq!(turn("/v1/messages", session).await.status, 200, "{session}");
    }
    let refused =
        Answer::of(site.asking("alice", &message("hello")).header("x-pilotlight-session", "three")).await;
    let (status, code, text) = refused.error();
    assert_eq!((status, code.as_str()), (429, "too_many_sessions"));
    assert!(text.contains("limits.sessions_per_user") && text.contains("DELETE"), "{text}");
    for path in ["/v1/messages", "/v1/chat/completions"] {
        let refused = turn(path, "three").await;
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &"too_many_sessions".into()));
        assert_eq!(refused.header("x-should-retry"), "false", "until one is deleted");
    }
    // Nothing of it is on disk, whatever else is asked of it.
    for (method, path) in [("GET", "/v1/workspace"), ("POST", "/v1/sessions/three/warm")] {
        Answer::of(site.of(method, path, "alice").header("x-pilotlight-session", "three")).await;
    }
    let mut credentials = message("hello");
    credentials["oauth_credentials"] =
        serde_json::json!({ "access_token": "a", "refresh_token": "b", "expires_at": 4_102_444_800_000_i64 });
    let asked = site.asking("alice", &credentials).header("x-pilotlight-session", "three");
    assert_eq!(Answer::of(asked).await.status, 429);
    let list = Answer::of(site.of("GET", "/v1/sessions", "alice")).await.body;
    assert!(!list.contains("three"), "{list}");

    // Clients without a name for their conversation, and other users, are served; so is alice after a deletion.
    assert_eq!(Answer::of(site.of("POST", "/v1/messages", "alice").json(&body)).await.status, 200);
    assert_eq!(Answer::of(site.session("GET", "one", "bob")).await.status, 404);
    assert_eq!(site.turn("bob", "hello").await.status, 200);
    let deleted = Answer::of(site.session("DELETE", "one?purge=true", "alice")).await;
    assert!(deleted.status < 300, "{deleted:?}");
    assert_eq!(turn("/v1/messages", "three").await.status, 200);
    assert_eq!(turn("/v1/messages", "one").await.status, 429);
}

/// A service names users; the key of one that is not trusted to invent them may begin a limited number a minute.
#[tokio::test(flavor = "multi_thread")]
async fn new_users_of_a_service_are_limited() {
    let place = place();
    let ring = Keyring::new(&place);
    let (limited, other) =
        (ring.key(&["--service", "--new-users-per-minute", "2"]).0, ring.key(&["--service"]).0);
    let wrong = ring.run("new", &["--user", "alice", "--new-users-per-minute", "2"]);
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("service"));
    assert!(String::from_utf8_lossy(&ring.run("list", &[]).stdout).contains("2 new users/min"));
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let ask =
        async |user: &str, key: &str| Answer::of(site.asking(user, &message("hello")).bearer_auth(key)).await;
    for user in ["alice", "bob"] {
        assert_eq!(ask(user, &limited).await.text(), "echo 1: hello");
    }
    let refused = ask("carol", &limited).await;
    is_limited(&refused, "too_many_new_users");
    assert!(refused.error().2.contains("new_users_per_minute"));
    let warm = site.of("POST", "/v1/sessions/default/warm", "carol").bearer_auth(&limited);
    is_limited(&Answer::of(warm).await, "too_many_new_users");
    assert_eq!(ask("bob", &limited).await.text(), "echo 2: hello", "who has a session is served");
    assert_eq!(ask("carol", &other).await.text(), "echo 1: hello");
    assert_eq!(ask("carol", &limited).await.text(), "echo 2: hello");
}
