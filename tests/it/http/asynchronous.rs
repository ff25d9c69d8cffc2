//! `Prefer: respond-async`: a turn that is accepted at once, and asked for later.

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually_some};

const LONG: &str = "[[deltas:2000]] [[delay:50]]";

fn body(text: &str, stream: bool) -> Value {
    let mut body = message(text);
    (body["model"], body["max_tokens"], body["stream"]) = ("sonnet".into(), 9.into(), stream.into());
    body["input"] = body["messages"].clone();
    body
}

fn later(site: &Site, path: &str, user: &str, body: &Value) -> RequestBuilder {
    site.of("POST", path, user).header("prefer", "respond-async").json(body)
}

/// Begins a turn and returns its id.
async fn begun(request: RequestBuilder) -> String {
    let accepted = Answer::of(request).await;
    assert_eq!(
        (accepted.status, accepted.header("preference-applied")),
        (202, "respond-async"),
        "{accepted:?}"
    );
    let turn = accepted.json();
    let id = turn["id"].as_str().unwrap().to_owned();
    assert_eq!(accepted.header("location"), format!("/v1/turns/{id}"));
    assert_eq!((&turn["object"], &turn["response"]), (&json!("turn"), &Value::Null));
    assert_eq!(accepted.header("x-pilotlight-session"), turn["session_id"].as_str().unwrap());
    id
}

fn of_turn(site: &Site, method: &str, id: &str, user: &str) -> RequestBuilder {
    site.of(method, &format!("/v1/turns/{id}"), user)
}

/// The turn once it has ended.
async fn ended(site: &Site, user: &str, id: &str) -> Value {
    ended_for(async || of_turn(site, "GET", id, user)).await
}

async fn ended_for(request: impl AsyncFn() -> RequestBuilder) -> Value {
    let turn = eventually_some("the turn ends", SOON, async || {
        let answer = Answer::of(request().await.header("prefer", "wait=5")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let turn = answer.json();
        (!turn["response"].is_null()).then_some(turn)
    });
    turn.await
}

/// The data of each event, and the id of the last one.
fn events(body: &str) -> (Vec<String>, String) {
    let lines = |prefix: &'static str| body.lines().filter_map(move |line| line.strip_prefix(prefix));
    (lines("data: ").map(str::to_owned).collect(), lines("id: ").next_back().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_is_that_of_the_synchronous_request() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    for (number, path) in ["/v1/messages", "/v1/chat/completions", "/v1/responses"].into_iter().enumerate() {
        let asked = body("[[say:the same]]", false);
        let direct = Answer::of(site.of("POST", path, "alice").json(&asked)).await;
        let id = begun(later(&site, path, "alice", &asked)).await;
        let turn = ended(&site, "alice", &id).await;
        assert_eq!((&turn["status"], &turn["error_code"]), (&json!("completed"), &Value::Null), "{turn}");
        let response = &turn["response"];
        assert_eq!(response["status_code"], 200);
        assert_eq!(response["headers"]["content-type"], "application/json");
        assert!(response["headers"]["x-request-id"].is_string(), "{response}");
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&response["body"]), keys(&direct.json()), "{path}");
        assert!(response["body"].to_string().contains("the same"), "{response}");
        assert!(
            turn["cost_usd"].as_f64().unwrap() > 0.0 && turn["usage"]["output_tokens"].as_u64().is_some()
        );
        assert!(turn["ended_at"].as_f64().unwrap() >= turn["created_at"].as_f64().unwrap());
        assert_eq!(site.metric("turns_total", &["outcome=\"ok\""]).await, 2.0 * (number + 1) as f64);
    }
    // A failure of the API is an answer too, and no failure of the request that asks for it.
    let id = begun(later(&site, "/v1/messages", "alice", &body("[[api_error:429]]", false))).await;
    let turn = ended(&site, "alice", &id).await;
    assert_eq!(
        (&turn["status"], &turn["response"]["status_code"]),
        (&json!("failed"), &json!(429)),
        "{turn}"
    );
    assert_eq!(turn["response"]["headers"]["x-should-retry"], "false");
    assert_eq!(turn["error_code"], turn["response"]["body"]["error"]["code"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_come_at_once() {
    let place = place();
    let (_program, site) =
        Program::ready(&place, "[http]\nturns_per_user = 2\n[session]\nturn_queue = 0").await;
    let refused = async |user: &str, body: &Value| {
        let answer = Answer::of(later(&site, "/v1/messages", user, body)).await;
        (answer.status, answer.json()["error"]["code"].as_str().unwrap().to_owned())
    };
    assert_eq!(refused("alice", &json!({ "model": "sonnet" })).await.0, 400);
    assert_eq!(refused("alice", &body("", false)).await, (400, "invalid_body".into()));
    let of = |session: &str| {
        later(&site, "/v1/messages", "alice", &body(LONG, true)).header("x-pilotlight-session", session)
    };
    let first = begun(of("one")).await;
    let full = Answer::of(of("one")).await;
    assert_eq!((full.status, &full.json()["error"]["code"]), (429, &json!("queue_full")));
    begun(of("two")).await;
    // They count as any other turn, with and without a caller.
    assert_eq!(refused("alice", &body("more", false)).await, (429, "too_many_turns".into()));
    let direct = Answer::of(site.of("POST", "/v1/messages", "alice").json(&body("more", false))).await;
    assert_eq!(direct.status, 429);
    assert_eq!(Answer::of(of_turn(&site, "DELETE", &first, "alice")).await.status, 200);
    let served = async || {
        let request = later(&site, "/v1/messages", "alice", &body("more", false));
        (Answer::of(request).await.status == 202).then_some(())
    };
    eventually_some("there is room again", SOON, served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed_from_start_and_from_an_id() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nheartbeat = \"200ms\"").await;
    for path in ["/v1/messages/keepalive", "/v1/messages", "/v1/chat/completions", "/v1/responses"] {
        let id = begun(later(&site, path, "alice", &body("[[deltas:60]][[delay:5]]", true))).await;
        let follow = |last: Option<&str>| {
            let request = of_turn(&site, "GET", &format!("{id}/events"), "alice");
            last.into_iter().fold(request, |request, last| request.header("last-event-id", last))
        };
        let mut running = follow(None).send().await.unwrap();
        assert_eq!(running.headers()["content-type"], "text/event-stream");
        let piece = tokio::time::timeout(SOON, running.chunk()).await.unwrap().unwrap().unwrap();
        let begin = String::from_utf8(piece.to_vec()).unwrap();
        let begin = &begin[..begin.rfind("\n\n").map_or(0, |at| at + 2)];
        drop(running);
        let (mut seen, last) = events(begin);
        let rest = Answer::of(follow(Some(&last).filter(|last| !last.is_empty()).map(String::as_str))).await;
        seen.extend(events(&rest.body).0);
        let turn = ended(&site, "alice", &id).await;
        assert_eq!(
            (&turn["status"], &turn["response"]["body"]),
            (&json!("completed"), &Value::Null),
            "{turn}"
        );
        assert_eq!(turn["events_url"], format!("/v1/turns/{id}/events"));
        assert_eq!(turn["response"]["headers"]["content-type"], "text/event-stream");
        let whole = events(&Answer::of(follow(None)).await.body).0;
        assert_eq!(whole, seen, "{path}");
        assert!(whole.iter().filter(|data| data.contains("delta")).count() >= 60, "{path}: {whole:?}");
    }
    // A failure before the first event is in the stream as well, in the words of its dialect.
    let id = begun(later(&site, "/v1/messages", "alice", &body("[[api_error:429]]", true))).await;
    let stream = Answer::of(of_turn(&site, "GET", &format!("{id}/events"), "alice")).await;
    assert!(stream.body.contains("event: error\ndata: {"), "{stream:?}");
    assert_eq!(ended(&site, "alice", &id).await["response"]["status_code"], 429);
    let id = begun(later(&site, "/v1/messages", "alice", &body("hello", false))).await;
    let none = Answer::of(of_turn(&site, "GET", &format!("{id}/events"), "alice")).await;
    assert_eq!((none.status, none.error().1.as_str()), (409, "turn_not_streamed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_turn_ends_as_an_interrupted_one() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let begin = async |stream: bool| {
        let request = later(&site, "/v1/messages", "alice", &body(LONG, stream));
        begun(request.header("x-pilotlight-session", "s")).await
    };
    let (running, queued) = (begin(false).await, begin(true).await);
    let status = async |id: &str| {
        let answer = Answer::of(of_turn(&site, "GET", id, "alice")).await;
        assert_eq!(answer.header("retry-after"), "1");
        answer.json()["status"].as_str().unwrap().to_owned()
    };
    let runs = async || (status(&running).await == "in_progress").then_some(());
    eventually_some("the first one runs", SOON, runs).await;
    assert_eq!(status(&queued).await, "queued");
    for id in [&queued, &running] {
        let cancelled = Answer::of(of_turn(&site, "POST", &format!("{id}/cancel"), "alice")).await;
        assert_eq!(cancelled.status, 200, "{cancelled:?}");
        let turn = ended(&site, "alice", id).await;
        assert_eq!(
            (&turn["status"], &turn["response"]["status_code"]),
            (&json!("cancelled"), &json!(409)),
            "{turn}"
        );
        let again = Answer::of(of_turn(&site, "POST", &format!("{id}/cancel"), "alice")).await;
        assert_eq!((again.status, again.json()), (200, turn));
    }
    // The session goes on, with the same child.
    let id = begun(
        later(&site, "/v1/messages", "alice", &body("hello", false)).header("x-pilotlight-session", "s"),
    )
    .await;
    assert_eq!(ended(&site, "alice", &id).await["status"], "completed");
    assert_eq!(site.entry("alice", "s").await["generation"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_find_no_turn_of_others() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, second, bob) = (ring.user("alice"), ring.user("alice"), ring.user("bob"));
    let (service, admin) = (ring.key(&["--service"]).0, ring.key(&["--admin"]).0);
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let send = async |key: &str, user: Option<&str>, method: &str, path: &str| {
        let request = site.web().request(method.parse().unwrap(), format!("{}/v1/turns/{path}", site.http));
        let request = request.bearer_auth(key);
        Answer::of(user.into_iter().fold(request, |it, user| it.header("x-pilotlight-user", user))).await
    };
    let request = site.web().post(format!("{}/v1/messages", site.http)).bearer_auth(&alice);
    let id = begun(request.header("prefer", "respond-async").json(&body("[[say:secret]]", true))).await;
    let (events, cancel) = (format!("{id}/events"), format!("{id}/cancel"));
    for (method, path) in [("GET", &id), ("GET", &events), ("POST", &cancel), ("DELETE", &id)] {
        for (key, user) in [(&bob, None), (&service, Some("bob"))] {
            let refused = send(key, user, method, path).await;
            assert_eq!(
                (refused.status, refused.error().1.as_str()),
                (404, "turn_not_found"),
                "{method} {path}"
            );
        }
        let unknown = send(&alice, None, method, &path.replace(&id, "turn_0")).await;
        assert_eq!(unknown.status, 404);
    }
    let keyed = site.web().get(format!("{}/v1/turns/{id}", site.http));
    assert_eq!(Answer::of(keyed).await.status, 401);
    for (key, user) in
        [(&alice, None), (&second, None), (&service, Some("alice")), (&admin, None), (&admin, Some("alice"))]
    {
        assert_eq!(send(key, user, "GET", &id).await.status, 200);
        let stream = send(key, user, "GET", &events).await;
        assert!(stream.body.contains("secret"), "{stream:?}");
    }
    assert_eq!(send(&admin, Some("bob"), "GET", &id).await.status, 404);
    assert_eq!(send(&second, None, "DELETE", &id).await.json()["deleted"], true);
    assert_eq!(send(&alice, None, "GET", &id).await.status, 404);
}

/// A stolen key leaves nothing running; the user's other key reads what came of it.
#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_ends_its_turns() {
    let place = place();
    let ring = Keyring::new(&place);
    let ((stolen, id), own) = (ring.key(&["--user", "alice"]), ring.user("alice"));
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let begin = async |key: &str, session: &str| {
        let request = site.web().post(format!("{}/v1/messages", site.http)).bearer_auth(key);
        let request = request.header("prefer", "respond-async").header("x-pilotlight-session", session);
        begun(request.json(&body(LONG, false))).await
    };
    let (of_stolen, of_own) = (begin(&stolen, "a").await, begin(&own, "b").await);
    let get = |id: &str| site.web().get(format!("{}/v1/turns/{id}", site.http)).bearer_auth(&own);
    assert!(ring.run("revoke", &[&id]).status.success());
    let turn = ended_for(async || get(&of_stolen)).await;
    assert_eq!(turn["status"], "cancelled", "{turn}");
    let other = Answer::of(get(&of_own)).await.json();
    assert!(other["response"].is_null(), "{other}");
}

/// Turns of nobody's interest: the answers of one user stay within the limits.
#[tokio::test(flavor = "multi_thread")]
async fn unasked_answers_are_dropped_beyond_the_limit() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let id = begun(later(&site, "/v1/messages/keepalive", "bob", &message("hello"))).await;
        ids.push(id);
        let id = begun(later(&site, "/v1/messages", "alice", &body("[[bytes:6000000]]", false))).await;
        let done = async || {
            let answer = Answer::of(of_turn(&site, "GET", &id, "alice").header("prefer", "wait=5")).await;
            (answer.status == 410 || !answer.json()["response"].is_null()).then_some(())
        };
        eventually_some("it ends", SOON, done).await;
        ids.push(id);
    }
    let gone = Answer::of(of_turn(&site, "GET", &ids[1], "alice")).await;
    assert_eq!((gone.status, gone.error().1.as_str()), (410, "turn_not_kept"));
    assert_eq!(Answer::of(of_turn(&site, "POST", &format!("{}/cancel", ids[1]), "alice")).await.status, 410);
    assert_eq!(ended(&site, "alice", &ids[7]).await["status"], "completed");
    assert_eq!(ended(&site, "bob", &ids[0]).await["status"], "completed", "that of others stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_users_and_sessions_take_their_turns() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let begin = async |user: &str, session: &str, text: &str| {
        let request = later(&site, "/v1/messages", user, &body(text, false));
        begun(request.header("x-pilotlight-session", session)).await
    };
    let (purged, kept) = (begin("alice", "a", "hello").await, begin("alice", "b", "hello").await);
    let bobs = begin("bob", "a", "hello").await;
    let running = begin("bob", "b", LONG).await;
    for (user, id) in [("alice", &purged), ("alice", &kept), ("bob", &bobs)] {
        assert_eq!(ended(&site, user, id).await["status"], "completed");
    }
    assert_eq!(Answer::of(site.session("DELETE", "a?purge=true", "alice")).await.status, 200);
    let status = async |user: &str, id: &str| Answer::of(of_turn(&site, "GET", id, user)).await.status;
    assert_eq!((status("alice", &purged).await, status("alice", &kept).await), (404, 200));
    let deleted = site.web().delete(format!("{}/v1/users/bob", site.admin));
    assert_eq!(Answer::of(deleted).await.status, 200);
    assert_eq!((status("bob", &bobs).await, status("bob", &running).await), (404, 404));
    assert_eq!(status("alice", &kept).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_request_gets_the_same_turn() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let asked = body("hello", false);
    let request = || later(&site, "/v1/messages", "alice", &asked).header("idempotency-key", "k");
    let first = begun(request()).await;
    assert_eq!(begun(request()).await, first);
    assert_eq!(ended(&site, "alice", &first).await["status"], "completed");
    let again = Answer::of(request()).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (202, "true"));
    let direct = site.of("POST", "/v1/messages", "alice").json(&asked).header("idempotency-key", "k");
    assert_eq!(Answer::of(direct).await.status, 422, "without the preference it is another request");
    assert_eq!(site.metric("turns_total", &[]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_permission_is_shown() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"ask\"").await;
    let request =
        later(&site, "/v1/messages", "alice", &body("[[tool:Bash {\"command\":\"touch made\"}]]", false));
    let id = begun(request.header("x-pilotlight-session", "default")).await;
    let asks = async || {
        let turn = Answer::of(of_turn(&site, "GET", &id, "alice")).await.json();
        (turn["status"] == "requires_action").then_some(())
    };
    eventually_some("it needs a permission", SOON, asks).await;
    let pending = Answer::of(site.session("GET", "default/permissions", "alice")).await.json();
    let request = pending["permissions"][0]["request_id"].as_str().unwrap();
    let answer = site.session("POST", &format!("default/permissions/{request}"), "alice");
    assert_eq!(Answer::of(answer.json(&json!({ "behavior": "allow" }))).await.status, 204);
    assert_eq!(ended(&site, "alice", &id).await["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn response_in_the_background_is_its_users_alone() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let ask = async |text: &str, more: Value| {
        let mut body = json!({ "model": "sonnet", "input": text, "background": true });
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        let request = site.of("POST", "/v1/responses", "alice").header("x-pilotlight-session", "mine");
        Answer::of(request.json(&body)).await
    };
    let get =
        async |user: &str, id: &str| Answer::of(site.of("GET", &format!("/v1/responses/{id}"), user)).await;
    let ended = async |id: &str| {
        let ended = async || {
            let response = get("alice", id).await.json();
            (!["queued", "in_progress"].contains(&response["status"].as_str().unwrap())).then_some(response)
        };
        eventually_some("the response ends", SOON, ended).await
    };
    let begun = ask("[[say:amber]]", json!({ "metadata": { "a": "b" } })).await;
    assert_eq!((begun.status, begun.header("x-pilotlight-session")), (200, "mine"), "{begun:?}");
    let begun = begun.json();
    assert_eq!(
        (&begun["status"], &begun["background"], &begun["output"]),
        (&json!("queued"), &json!(true), &json!([]))
    );
    let id = begun["id"].as_str().unwrap();
    let done = ended(id).await;
    assert_eq!((&done["status"], &done["background"]), (&json!("completed"), &json!(true)));
    assert_eq!(done["output"][0]["content"][0]["text"], "amber");
    assert_eq!(done["metadata"]["a"], "b");
    for (method, path) in [("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel"), ("DELETE", "")] {
        let refused = Answer::of(site.of(method, &format!("/v1/responses/{id}{path}"), "bob")).await;
        assert!([400, 404].contains(&refused.status), "{method} {path}: {refused:?}");
        assert!(!refused.body.contains("amber"));
    }
    // It is an asynchronous turn as any other.
    let turn = Answer::of(of_turn(&site, "GET", id, "alice")).await.json();
    assert_eq!((&turn["status"], &turn["response"]["body"]), (&json!("completed"), &done));

    let failed = ask("[[api_error:429]]", json!({})).await.json();
    let failed = ended(failed["id"].as_str().unwrap()).await;
    assert_eq!(
        (&failed["status"], &failed["error"]["code"]),
        (&json!("failed"), &json!("rate_limit")),
        "{failed}"
    );
    let unstored = ask("hello", json!({ "store": false })).await;
    assert_eq!((unstored.status, &unstored.json()["error"]["param"]), (400, &json!("background")));
    let running = ask(LONG, json!({})).await.json();
    let running = running["id"].as_str().unwrap();
    let deleted = Answer::of(site.of("DELETE", &format!("/v1/responses/{running}"), "alice")).await;
    assert_eq!((deleted.status, get("alice", running).await.status), (200, 404));
    assert_eq!(Answer::of(site.session("DELETE", "mine?purge=true", "alice")).await.status, 200);
    assert_eq!(get("alice", id).await.status, 404);
}
