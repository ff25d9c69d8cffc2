//! Webhooks: what arrives at an endpoint of the operator, and what a bad endpoint costs.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::reload::reload;
use crate::common::keyring::Keyring;
use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually_some};

/// How an endpoint answers.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Fine,
    Broken,
    Silent,
    Endless,
    Elsewhere,
    Gone,
}

#[derive(Clone)]
struct Received {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// An endpoint on loopback that writes down what it gets.
struct Receiver {
    url: String,
    received: watch::Sender<Vec<Received>>,
    mood: watch::Sender<Mood>,
    _serving: JoinSet<()>,
}

impl Receiver {
    async fn start(mood: Mood) -> Self {
        type Seen = (watch::Sender<Vec<Received>>, watch::Sender<Mood>);
        async fn take(State((received, mood)): State<Seen>, request: axum::extract::Request) -> Response {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let (path, headers) = (parts.uri.path().to_owned(), parts.headers);
            received.send_modify(|all| all.push(Received { path, headers, body }));
            let mood = *mood.borrow();
            match mood {
                Mood::Fine => StatusCode::NO_CONTENT.into_response(),
                Mood::Broken => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                Mood::Gone => StatusCode::GONE.into_response(),
                Mood::Silent => std::future::pending().await,
                Mood::Endless => {
                    let pieces = futures_util::stream::repeat_with(|| {
                        Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 4096]))
                    });
                    Body::from_stream(pieces).into_response()
                }
                Mood::Elsewhere => {
                    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "/elsewhere")]).into_response()
                }
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (received, mood) = (watch::Sender::new(Vec::new()), watch::Sender::new(mood));
        let routes = Router::new().fallback(post(take)).with_state((received.clone(), mood.clone()));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { url, received, mood, _serving: serving }
    }

    /// The first `count` messages.
    async fn messages(&self, count: usize) -> Vec<Received> {
        let mut changes = self.received.subscribe();
        let all = tokio::time::timeout(SOON, changes.wait_for(|all| all.len() >= count)).await;
        all.unwrap_or_else(|_| panic!("fewer than {count} messages")).unwrap().clone()
    }
}

const SECRET: [u8; 32] = [7; 32];

fn config(place: &Place, receivers: &[&Receiver], more: &str) -> String {
    let file = place.path().join("webhook.secret");
    std::fs::write(&file, format!("whsec_{}\n", STANDARD.encode(SECRET))).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut config = format!("{more}\n[webhooks]\nbackoff = \"50ms\"\nattempts = 3\ntimeout = \"300ms\"\n");
    for (number, receiver) in receivers.iter().enumerate() {
        let (url, file) = (&receiver.url, file.display());
        config += &format!("[webhooks.endpoints.e{number}]\nurl = \"{url}\"\nsecret_file = \"{file}\"\n");
    }
    config
}

/// HMAC-SHA256 (RFC 2104), written again from the specification.
fn hmac(key: &[u8; 32], text: &[u8]) -> Vec<u8> {
    use sha2::{Digest as _, Sha256};
    let pad = |with: u8| -> Vec<u8> { (0..64).map(|at| key.get(at).copied().unwrap_or(0) ^ with).collect() };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

fn body(text: &str, stream: bool) -> Value {
    let mut body = message(text);
    (body["model"], body["max_tokens"], body["stream"]) = ("sonnet".into(), 9.into(), stream.into());
    body
}

async fn begin(site: &Site, user: &str, text: &str) -> String {
    let request = site.of("POST", "/v1/messages", user).header("prefer", "respond-async");
    let accepted = Answer::of(request.header("x-pilotlight-session", "a b").json(&body(text, false))).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    accepted.json()["id"].as_str().unwrap().to_owned()
}

async fn dropped(site: &Site, reason: &str, count: f64) {
    let label = format!("reason=\"{reason}\"");
    let counted = async || (site.metric("webhook_drops_total", &[&label]).await >= count).then_some(());
    eventually_some("it is counted", SOON, counted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_turn_arrives_signed_and_without_text() {
    let place = place();
    let receiver = Receiver::start(Mood::Fine).await;
    let (_program, site) = Program::ready(&place, &config(&place, &[&receiver], "")).await;
    // A caller that is attached to the end needs no message.
    site.turn("alice", "s3cret words").await.text();
    let id = begin(&site, "alice", "[[say:s3cret answer]] s3cret words").await;
    let received = receiver.messages(1).await.remove(0);
    let header = |name: &str| received.headers[name].to_str().unwrap().to_owned();
    let text = String::from_utf8(received.body.to_vec()).unwrap();
    assert!(!text.contains("s3cret"), "{text}");
    let sent: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(sent["type"], "turn_ended");
    let data = &sent["data"];
    assert_eq!(
        (&data["turn_id"], &data["user"], &data["session_id"]),
        (&json!(id), &json!("alice"), &json!("a b"))
    );
    assert_eq!((&data["status"], &data["error_code"]), (&json!("completed"), &Value::Null));
    assert!(data["cost_usd"].as_f64().unwrap() > 0.0 && data["usage"]["output_tokens"].is_u64(), "{data}");
    let polled = Answer::of(site.of("GET", data["url"].as_str().unwrap(), "alice")).await;
    assert_eq!(polled.json()["status"], "completed", "the answer is there when the message comes");
    let signed = format!("{}.{}.{text}", header("webhook-id"), header("webhook-timestamp"));
    assert_eq!(
        header("webhook-signature"),
        format!("v1,{}", STANDARD.encode(hmac(&SECRET, signed.as_bytes())))
    );
    assert!(header("webhook-id").starts_with("msg_"));
    let delivered = async || {
        let count = site.metric("webhook_attempts_total", &["outcome=\"delivered\""]).await;
        (count == 1.0 && site.metric("webhooks_waiting", &[]).await == 0.0).then_some(())
    };
    eventually_some("it is counted once", SOON, delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn detached_turn_is_reported_if_nobody_is_attached() {
    let place = place();
    let receiver = Receiver::start(Mood::Fine).await;
    let (_program, site) = Program::ready(&place, &config(&place, &[&receiver], "")).await;
    let detach = |text: &str, stream: bool| {
        let request = site.of("POST", "/v1/messages", "alice").json(&body(text, stream));
        request.header("x-pilotlight-on-disconnect", "detach").header("x-pilotlight-session", "d")
    };
    for stream in [false, true] {
        assert_eq!(Answer::of(detach("attached", stream)).await.status, 200);
    }
    for (number, stream) in [false, true].into_iter().enumerate() {
        site.until_quiet().await;
        let mut cut = JoinSet::new();
        cut.spawn(detach("[[sleep:3000]]late", stream).send());
        site.until_busy().await;
        assert!(cut.try_join_next().is_none(), "it was to take longer");
        cut.shutdown().await;
        let received = receiver.messages(number + 1).await;
        assert_eq!(received.len(), number + 1, "none of the attached ones");
        let sent: Value = serde_json::from_slice(&received[number].body).unwrap();
        assert_eq!(
            (&sent["data"]["turn_id"], &sent["data"]["status"]),
            (&Value::Null, &json!("completed")),
            "{sent}"
        );
        let again = Answer::of(site.of("GET", sent["data"]["url"].as_str().unwrap(), "alice")).await;
        assert!(again.body.contains("late"), "{again:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn needed_permission_is_reported() {
    let place = place();
    let receiver = Receiver::start(Mood::Fine).await;
    let ask = config(&place, &[&receiver], "[permissions]\npolicy = \"ask\"");
    let (_program, site) = Program::ready(&place, &ask).await;
    begin(&site, "alice", "[[tool:Bash {\"command\":\"touch s3cret\"}]]").await;
    let received = receiver.messages(1).await.remove(0);
    let text = String::from_utf8(received.body.to_vec()).unwrap();
    let sent: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&sent["type"], &sent["data"]["tool_name"]), (&json!("permission_needed"), &json!("Bash")));
    assert!(!text.contains("s3cret"), "{text}");
    let url = sent["data"]["url"].as_str().unwrap();
    let pending = Answer::of(site.of("GET", url, "alice")).await.json();
    assert_eq!(pending["permissions"][0]["request_id"], sent["data"]["request_id"]);
    let answer = format!("{url}/{}", sent["data"]["request_id"].as_str().unwrap());
    let allowed = site.of("POST", &answer, "alice").json(&json!({ "behavior": "allow" }));
    assert_eq!(Answer::of(allowed).await.status, 204);
    let sent: Value = serde_json::from_slice(&receiver.messages(2).await[1].body).unwrap();
    assert_eq!((&sent["type"], &sent["data"]["status"]), (&json!("turn_ended"), &json!("completed")));
}

/// The log of events goes back further than the wish of an endpoint that a reload brings.
#[tokio::test(flavor = "multi_thread")]
async fn endpoint_of_a_reload_gets_no_old_permissions() {
    let place = place();
    let receiver = Receiver::start(Mood::Fine).await;
    let ask = "[permissions]\npolicy = \"ask\"";
    let (program, site) = Program::ready(&place, ask).await;
    let waiting = async |user: &str| {
        begin(&site, user, "[[tool:Bash {\"command\":\"touch it\"}]]").await;
        let first = async || {
            let pending = Answer::of(site.of("GET", "/v1/sessions/a%20b/permissions", user)).await.json();
            pending["permissions"][0]["request_id"].as_str().map(str::to_owned)
        };
        eventually_some("a permission waits", SOON, first).await
    };
    let before = waiting("alice").await;
    reload(&place, &program, &site, &config(&place, &[&receiver], ask), "applied").await;
    let after = waiting("bob").await;
    let sent: Value = serde_json::from_slice(&receiver.messages(1).await[0].body).unwrap();
    assert_ne!(before, after);
    assert_eq!(sent["data"]["request_id"], json!(after));
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_attempts_are_repeated_within_limits() {
    let place = place();
    let receiver = Receiver::start(Mood::Broken).await;
    let (_program, site) = Program::ready(&place, &config(&place, &[&receiver], "")).await;
    begin(&site, "alice", "hello").await;
    dropped(&site, "attempts", 1.0).await;
    let received = receiver.messages(3).await;
    assert_eq!(received.len(), 3, "no attempt more than configured");
    let ids: Vec<_> = received.iter().map(|it| &it.headers["webhook-id"]).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    // A redirect is a failure, and followed nowhere.
    receiver.mood.send_replace(Mood::Elsewhere);
    begin(&site, "alice", "hello").await;
    dropped(&site, "attempts", 2.0).await;
    assert!(receiver.messages(6).await.iter().all(|it| it.path == "/hook"));
    // The receiver does not want it: once.
    receiver.mood.send_replace(Mood::Gone);
    begin(&site, "alice", "hello").await;
    dropped(&site, "gone", 1.0).await;
    assert_eq!(receiver.messages(7).await.len(), 7);
    receiver.mood.send_replace(Mood::Fine);
    begin(&site, "alice", "hello").await;
    assert_eq!(receiver.messages(8).await.len(), 8);
}

/// Endpoints that answer never, or without an end, beside a good one.
#[tokio::test(flavor = "multi_thread")]
async fn bad_endpoint_delays_no_other() {
    let place = place();
    let good = Receiver::start(Mood::Fine).await;
    let (silent, endless) = (Receiver::start(Mood::Silent).await, Receiver::start(Mood::Endless).await);
    let (_program, site) = Program::ready(&place, &config(&place, &[&silent, &endless, &good], "")).await;
    for count in 1..=3 {
        begin(&site, "alice", "hello").await;
        good.messages(count).await;
    }
    // A head is an answer, whatever follows it.
    endless.messages(3).await;
    let counted = async || {
        let delivered = site.metric("webhook_attempts_total", &["outcome=\"delivered\""]).await;
        let timed_out = site.metric("webhook_attempts_total", &["outcome=\"timeout\""]).await;
        (delivered == 6.0 && timed_out == 9.0).then_some(())
    };
    eventually_some("every attempt is counted", SOON, counted).await;
    assert_eq!(site.metric("webhook_drops_total", &["reason=\"attempts\""]).await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_delivers_what_it_can_within_limits() {
    let place = place();
    let (good, silent) = (Receiver::start(Mood::Fine).await, Receiver::start(Mood::Silent).await);
    let config = config(&place, &[&good, &silent], "drain_timeout = \"2s\"");
    let (mut program, site) = Program::ready(&place, &config).await;
    begin(&site, "alice", "[[deltas:2000]] [[delay:50]]").await;
    let runs = async || (site.metric("sessions", &["state=\"busy\""]).await == 1.0).then_some(());
    eventually_some("the turn runs", SOON, runs).await;
    program.signal(rustix::process::Signal::TERM);
    assert_eq!(program.code().await, Some(0));
    let sent: Value = serde_json::from_slice(&good.messages(1).await[0].body).unwrap();
    assert_eq!(sent["data"]["status"], "cancelled", "{sent}");
    assert!((1..=2).contains(&silent.received.borrow().len()));
    assert!(program.logs("webhooks were not delivered"), "{}", program.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_and_deleted_user_are_reported_as_ends() {
    let place = place();
    let ring = Keyring::new(&place);
    let (key, id) = ring.key(&["--user", "alice"]);
    let receiver = Receiver::start(Mood::Fine).await;
    let (_program, site) = Program::ready(&place, &config(&place, &[&receiver], &ring.config())).await;
    let request = site.web().post(format!("{}/v1/messages", site.http)).bearer_auth(&key);
    let request = request.header("prefer", "respond-async").json(&body("[[deltas:2000]] [[delay:50]]", true));
    assert_eq!(Answer::of(request).await.status, 202);
    assert!(ring.run("revoke", &[&id]).status.success());
    let sent: Value = serde_json::from_slice(&receiver.messages(1).await[0].body).unwrap();
    assert_eq!(
        (&sent["data"]["status"], &sent["data"]["user"]),
        (&json!("cancelled"), &json!("alice")),
        "{sent}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_secret_refuses_the_start() {
    let place = place();
    let receiver = Receiver::start(Mood::Fine).await;
    let config = config(&place, &[&receiver], "");
    let file = place.path().join("webhook.secret");
    let path = place.path().join("pilotlight.toml");
    let data = format!("data_dir = \"{}\"\n{config}", place.data_dir().display());
    std::fs::write(&path, data).unwrap();
    let arguments = ["serve", "--config", path.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    for (mode, content) in [(0o644, None), (0o600, Some("whsec_s3cret"))] {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        let mut program = Program::start(&place, &arguments, &[("PILOTLIGHT_CLI__PROGRAM", "sim")]);
        assert_eq!(program.code().await, Some(2), "{}", program.err());
        let problem = program.err();
        let mut check = Program::start(&place, &["check", "--config", path.to_str().unwrap()], &[]);
        assert_eq!(check.code().await, Some(2), "{}", check.err());
        assert!(check.err().contains("webhooks.endpoints.e0.secret_file"), "{}", check.err());
        assert!(
            problem.contains("webhooks.endpoints.e0.secret_file") && !problem.contains("s3cret"),
            "{problem}"
        );
    }
    drop(Arc::clone(&place));
}
