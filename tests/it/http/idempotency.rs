//! `Idempotency-Key`: the same request again gets the same answer and never a second turn.

use futures_util::StreamExt;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually_some};

fn asked(text: &str, stream: bool) -> Value {
    let mut body = message(text);
    (body["model"], body["max_tokens"], body["stream"]) = ("sonnet".into(), 9.into(), stream.into());
    body
}

fn keyed(site: &Site, path: &str, user: &str, key: &str, body: &Value) -> RequestBuilder {
    site.of("POST", path, user).header("idempotency-key", key).json(body)
}

async fn turns(site: &Site) -> f64 {
    site.metric("turns_total", &[]).await
}

/// A repeated request gets the same answer in each dialect.
#[tokio::test(flavor = "multi_thread")]
async fn repeated_request_gets_same_answer() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut expected = 0.0;
    for path in ["/v1/messages/keepalive", "/v1/messages", "/v1/chat/completions", "/v1/responses"] {
        for stream in [false, true] {
            let (key, mut body) = (format!("{path} {stream}"), asked("hello", stream));
            body["input"] = body["messages"].clone();
            let first = Answer::of(keyed(&site, path, "alice", &key, &body)).await;
            assert_eq!(first.status, 200, "{first:?}");
            assert!(!first.headers.contains_key("idempotent-replayed"));
            expected += 1.0;
            let again = Answer::of(keyed(&site, path, "alice", &key, &body)).await;
            assert_eq!((again.status, &again.body), (200, &first.body), "byte for byte");
            for header in ["content-type", "x-pilotlight-session", "x-request-id", "request-id"] {
                assert_eq!(again.header(header), first.header(header), "{header}");
            }
            assert_eq!(again.header("idempotent-replayed"), "true");
            assert_eq!(turns(&site).await, expected, "no second turn for {path}, stream {stream}");
            let mut other = body.clone();
            other["messages"][0]["content"] = "other words".into();
            let refused = Answer::of(keyed(&site, path, "alice", &key, &other)).await;
            let error = &refused.json()["error"];
            assert_eq!((refused.status, &error["code"]), (422, &"idempotency_key_reused".into()));
            assert_eq!(error["type"], "invalid_request_error");
            let other_session = keyed(&site, path, "alice", &key, &body).header("x-pilotlight-session", "x");
            assert_eq!(Answer::of(other_session).await.status, 422, "another session is another request");
        }
    }
    assert_eq!(turns(&site).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_choice_of_mcp_servers_is_422() {
    let place = place();
    let config = "[mcp.servers.notes]\nurl = \"http://127.0.0.1:9/\"\n";
    let (_program, site) = Program::ready(&place, config).await;
    let request = || keyed(&site, "/v1/messages", "alice", "k", &asked("[[say:hi]]", false));
    assert_eq!(Answer::of(request()).await.status, 200);
    let other = Answer::of(request().header("x-pilotlight-mcp", "notes")).await;
    assert_eq!((other.status, other.error().1), (422, "idempotency_key_reused".into()));
    assert_eq!(turns(&site).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_while_the_turn_runs_is_409() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let request = || keyed(&site, "/v1/messages", "alice", "k", &asked("[[deltas:30]] [[delay:50]]", true));
    let running = request().send().await.unwrap();
    assert_eq!(running.status(), 200);
    let refused = Answer::of(request()).await;
    assert_eq!(refused.error().1, "idempotency_running");
    assert_eq!((refused.status, refused.header("retry-after")), (409, "1"));
    assert!(!refused.headers.contains_key("x-should-retry"), "SDKs come again by themselves");
    let whole = running.text().await.unwrap();
    assert!(whole.contains("message_stop"), "{whole}");
    let again = async || Some(Answer::of(request()).await).filter(|again| again.status == 200);
    assert_eq!(eventually_some("the record is there", SOON, again).await.body, whole);
    assert_eq!(turns(&site).await, 1.0);
}

/// A caller that was cut off comes back for the answer.
#[tokio::test(flavor = "multi_thread")]
async fn disconnected_caller_gets_answer_on_retry() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    for (key, stream) in [("streamed", true), ("whole", false)] {
        let request =
            || keyed(&site, "/v1/chat/completions", "alice", key, &asked("[[say:kept]] [[slow:50]]", stream));
        let before = turns(&site).await;
        if stream {
            let mut cut = request().send().await.unwrap().bytes_stream();
            cut.next().await.unwrap().unwrap();
        } else {
            let mut cut = JoinSet::new();
            cut.spawn(request().send());
            eventually_some("the turn runs", SOON, async || {
                (site.is_busy().await || turns(&site).await > before).then_some(())
            })
            .await;
            cut.shutdown().await;
        }
        let again = async || Some(Answer::of(request()).await).filter(|again| again.status == 200);
        let again = eventually_some("the answer is there", SOON, again).await;
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert!(stream || again.body.contains("kept"), "{again:?}");
        assert_eq!(turns(&site).await, before + 1.0);
        assert_eq!(site.metric("turns_total", &["outcome=\"interrupted\""]).await, 0.0);
    }
}

/// A turn that was to end with its caller is not run again.
#[tokio::test(flavor = "multi_thread")]
async fn turn_ended_with_its_caller_is_not_rerun() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let request = || {
        let body = asked("[[deltas:1000]] [[delay:50]]", true);
        keyed(&site, "/v1/messages", "alice", "k", &body).header("x-pilotlight-on-disconnect", "interrupt")
    };
    let cut = request().send().await.unwrap();
    drop(cut);
    let gone =
        async || Some(Answer::of(request()).await).filter(|gone| gone.error().1 != "idempotency_running");
    let gone = eventually_some("the turn has ended", SOON, gone).await;
    assert_eq!((gone.status, gone.error().1.as_str()), (409, "idempotency_not_kept"));
    assert_eq!(gone.header("x-should-retry"), "false");
    assert_eq!(turns(&site).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_not_remembered() {
    let place = place();
    let config = "[session]\nturn_queue = 0\n[limits]\nmax_children = 1\nqueue_deadline = \"200ms\"\n";
    let (_program, site) = Program::ready(&place, config).await;
    let request = |user: &str, text: &str| keyed(&site, "/v1/messages", user, "k", &asked(text, false));
    assert_eq!(Answer::of(request("alice", "")).await.status, 400);
    let busy = site.asking("bob", &message("[[sleep:60000]]")).send().await.unwrap();
    // Refused before it was accepted, by the user's session; and by the host once it was.
    let own = keyed(&site, "/v1/messages/keepalive", "bob", "k", &message("hello")).send().await.unwrap();
    assert_eq!(own.status(), 429);
    assert_eq!(Answer::of(request("alice", "hello")).await.status, 529);
    drop(busy);
    let served = async || Some(Answer::of(request("alice", "hello")).await).filter(|it| it.status == 200);
    let first = eventually_some("there is room", SOON, served).await;
    assert!(!first.headers.contains_key("idempotent-replayed"));
    let again = Answer::of(request("alice", "hello")).await;
    assert_eq!((&again.body, again.header("idempotent-replayed")), (&first.body, "true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_api_is_an_answer_too() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    for (path, stream) in [("/v1/messages", false), ("/v1/messages", true), ("/v1/chat/completions", false)] {
        let key = format!("{path} {stream}");
        let request = || keyed(&site, path, "alice", &key, &asked("[[api_error:429]]", stream));
        let (first, again) = (Answer::of(request()).await, Answer::of(request()).await);
        assert_eq!((first.status, first.header("x-should-retry")), (429, "false"));
        assert_eq!((again.status, &again.body), (429, &first.body));
        for header in ["x-should-retry", "x-request-id", "x-pilotlight-session", "content-type"] {
            assert_eq!(again.header(header), first.header(header), "{header}");
        }
    }
    assert_eq!(turns(&site).await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_too_long_to_keep_comes_once() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    for stream in [false, true] {
        let key = format!("{stream}");
        let request = || keyed(&site, "/v1/messages", "alice", &key, &asked("[[bytes:1200000]]", stream));
        let first = Answer::of(request()).await;
        assert!(first.status == 200 && first.body.len() > 1_200_000, "it goes out whole");
        let gone =
            async || Some(Answer::of(request()).await).filter(|gone| gone.error().1 != "idempotency_running");
        let gone = eventually_some("the turn has ended", SOON, gone).await;
        assert_eq!((gone.status, gone.error().1.as_str()), (409, "idempotency_not_kept"));
    }
    assert_eq!(turns(&site).await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_share_no_keys() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, bob, service) = (ring.user("alice"), ring.user("bob"), ring.key(&["--service"]).0);
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let ask = async |key: &str, user: Option<&str>, text: &str| {
        let request = site.post().bearer_auth(key).header("idempotency-key", "k").json(&message(text));
        Answer::of(user.into_iter().fold(request, |it, user| it.header("x-pilotlight-user", user))).await
    };
    assert_eq!(ask(&alice, None, "of alice").await.text(), "echo 1: of alice");
    assert_eq!(ask(&bob, None, "of bob").await.text(), "echo 1: of bob");
    assert_eq!(ask(&service, Some("bob"), "of the service").await.text(), "echo 2: of the service");
    assert_eq!(ask(&service, Some("carol"), "of carol").await.text(), "echo 1: of carol");
    assert_eq!(ask(&alice, None, "of alice").await.header("idempotent-replayed"), "true");
    // Without keys of callers, a user named in the body is another user.
    drop((_program, site));
    let (_program, site) = Program::ready(&place, "").await;
    for user in ["dora", "emil"] {
        let mut body = asked("hello", false);
        body["metadata"] = json!({ "user_id": user });
        let request = site.web().post(format!("{}/v1/messages", site.http)).header("idempotency-key", "k");
        let answer = Answer::of(request.json(&body)).await;
        assert!(answer.status == 200 && !answer.headers.contains_key("idempotent-replayed"), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_1_to_255_bytes() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let ask = async |key: &str| {
        Answer::of(keyed(&site, "/v1/messages/keepalive", "alice", key, &message("hello"))).await.status
    };
    assert_eq!((ask(&"k".repeat(255)).await, ask("k").await), (200, 200));
    assert_eq!((ask("").await, ask(&"k".repeat(256)).await), (400, 400));
    let twice = keyed(&site, "/v1/messages/keepalive", "alice", "k", &message("hello"));
    let twice = Answer::of(twice.header("idempotency-key", "l")).await;
    assert_eq!(twice.error().1, "invalid_header");
}
