//! Requests through a node that does not have their user.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::common::program::Answer;
use crate::common::{SOON, eventually_some};
use crate::nodes::{LONG_LEASE, Nodes, SIM};

/// Requests of a user.
struct Caller<'a> {
    cluster: &'a Nodes,
    web: reqwest::Client,
    user: &'a str,
}

impl<'a> Caller<'a> {
    fn new(cluster: &'a Nodes, user: &'a str) -> Self {
        Self { cluster, web: reqwest::Client::builder().no_proxy().build().unwrap(), user }
    }

    fn request(&self, node: usize, method: &str, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.cluster.sites()[node]);
        self.web.request(method.parse().unwrap(), url).header("x-pilotlight-user", self.user)
    }

    fn turn(&self, node: usize, text: &str) -> reqwest::RequestBuilder {
        self.request(node, "POST", "/v1/messages/keepalive").json(&message(text))
    }

    /// The node that has the user, and two others.
    async fn nodes(&self) -> (usize, usize, usize) {
        let owner = self.cluster.owner(0, self.user).await;
        (owner, (owner + 1) % 3, (owner + 2) % 3)
    }

    async fn turns(&self, node: usize, outcome: &str) -> f64 {
        let metrics = self.cluster.client(node).metrics().await;
        metrics.sum("pilotlight_turns_total", &[&format!("outcome=\"{outcome}\"")])
    }
}

fn message(text: &str) -> Value {
    json!({ "model": "sonnet", "max_tokens": 9, "stream": true, "messages": [{ "role": "user", "content": text }] })
}

/// Reads until what has come contains `text`, and whole events.
async fn read_until(answer: &mut reqwest::Response, text: &str) -> String {
    let mut read = String::new();
    while !read.contains(text) || !read.ends_with("\n\n") {
        let chunk = tokio::time::timeout(SOON, answer.chunk()).await.expect("in time").expect("no error");
        read.push_str(std::str::from_utf8(&chunk.expect("not the end")).expect("text"));
    }
    read
}

/// The id of the last event.
fn last_id(body: &str) -> &str {
    body.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().expect("an id")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_is_the_same_through_any_node() {
    let Some(cluster) = Nodes::start(3, &format!("{SIM}{LONG_LEASE}")).await else { return };
    for path in ["/v1/messages/keepalive", "/v1/messages", "/v1/chat/completions", "/v1/responses"] {
        let caller = Caller::new(&cluster, "alice");
        let (owner, one, other) = caller.nodes().await;
        let mut body = message("[[deltas:30]][[delay:5]]");
        body["input"] = body["messages"].clone();
        let asked = async |node| {
            let request = caller.request(node, "POST", path).header("idempotency-key", path);
            Answer::of(request.header("x-pilotlight-session", "mine").json(&body)).await
        };
        // The live stream through another node, and its record through the node itself and a third one.
        let first = asked(one).await;
        assert_eq!(first.status, 200, "{path}: {first:?}");
        for node in [owner, other] {
            let again = asked(node).await;
            assert_eq!((again.status, &again.body), (200, &first.body), "{path} through {node}");
            assert_eq!(again.header("idempotent-replayed"), "true");
            for header in ["content-type", "x-pilotlight-session", "x-request-id", "x-pilotlight-node"] {
                assert_eq!(again.header(header), first.header(header), "{path} {header}");
            }
        }
        assert_eq!(first.header("x-pilotlight-node"), cluster.nodes[owner].name);
    }
    let caller = Caller::new(&cluster, "alice");
    let (owner, one, other) = caller.nodes().await;
    assert_eq!(caller.turns(owner, "ok").await, 4.0, "one turn for each key");
    assert_eq!(caller.turns(one, "ok").await + caller.turns(other, "ok").await, 0.0);
    // As many headers as a server takes, with those of the client itself: the nodes' own are not counted.
    let most =
        (0..58).fold(caller.turn(one, "word"), |request, at| request.header(format!("x-own-{at}"), "1"));
    let answer = Answer::of(most).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_leaves_interrupts_elsewhere() {
    let Some(cluster) = Nodes::start(3, &format!("{SIM}{LONG_LEASE}")).await else { return };
    let caller = Caller::new(&cluster, "alice");
    let (owner, one, other) = caller.nodes().await;
    let mut answer = caller.turn(one, "left-word[[deltas:2000]][[delay:20]]").send().await.unwrap();
    read_until(&mut answer, "text_delta").await;
    drop(answer);
    eventually_some("the turn is over", SOON, async || {
        (caller.turns(owner, "interrupted").await + caller.turns(owner, "cancelled").await >= 1.0)
            .then_some(())
    })
    .await;
    // Before the answer has begun as well.
    let silent =
        tokio::time::timeout(Duration::from_millis(500), caller.turn(one, "[[sleep:30000]]").send()).await;
    if let Ok(answer) = silent {
        drop(answer.unwrap());
    }
    let next = Answer::of(caller.turn(other, "next-word")).await;
    assert!(next.text().contains("next-word"), "{next:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn detached_turn_is_read_on_at_a_third_node() {
    let config = format!("{SIM}[http]\non_disconnect = \"detach\"\n{LONG_LEASE}");
    let Some(cluster) = Nodes::start(3, &config).await else { return };
    let caller = Caller::new(&cluster, "alice");
    let (owner, one, other) = caller.nodes().await;
    let mut first = caller.turn(one, "[[deltas:60]][[delay:20]]").send().await.unwrap();
    let mut read = read_until(&mut first, "text_delta").await;
    drop(first);
    let back = |node, last: &str| {
        caller.request(node, "GET", "/v1/sessions/default/events").header("last-event-id", last)
    };
    let mut second = back(other, last_id(&read)).send().await.unwrap();
    read.push_str(&read_until(&mut second, "text_delta").await);
    drop(second);
    let rest = Answer::of(back(one, last_id(&read))).await;
    assert_eq!(rest.status, 200, "{rest:?}");
    read.push_str(&rest.body);
    let strip =
        |body: &str| body.split_inclusive("\n\n").filter(|it| !it.starts_with(':')).collect::<String>();
    let whole = Answer::of(caller.request(owner, "GET", "/v1/sessions/default/events")).await;
    assert_eq!(strip(&read), strip(&whole.body));
    assert!(read.ends_with("data: [DONE]\n\n"), "{read}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn question_and_interrupt_go_through_other_nodes() {
    let config = format!("{SIM}[permissions]\npolicy = \"ask\"\n{LONG_LEASE}");
    let Some(cluster) = Nodes::start(3, &config).await else { return };
    let caller = Caller::new(&cluster, "alice");
    let (owner, one, other) = caller.nodes().await;
    let text = "[[tool:Bash {\"command\":\"touch made\"}]]";
    let mut asking = caller.turn(one, text).send().await.unwrap();
    let asked = read_until(&mut asking, "control_request").await;
    let pending = Answer::of(caller.request(other, "GET", "/v1/sessions/default/permissions")).await.json();
    let id = pending["permissions"][0]["request_id"].as_str().expect("a question").to_owned();
    assert!(asked.contains(&id));
    let decided = caller.request(other, "POST", &format!("/v1/sessions/default/permissions/{id}"));
    assert_eq!(decided.json(&json!({ "behavior": "allow" })).send().await.unwrap().status(), 204);
    let rest = asking.text().await.unwrap();
    assert!(rest.contains("TOOLS:ok") && rest.ends_with("data: [DONE]\n\n"), "{rest}");
    let files = Answer::of(caller.request(other, "GET", "/v1/workspace")).await.json();
    assert_eq!(files["files"][0]["path"], "made", "{files}");

    let mut running = caller.turn(one, "[[deltas:2000]][[delay:20]]").send().await.unwrap();
    read_until(&mut running, "text_delta").await;
    let interrupted = caller.request(other, "POST", "/v1/sessions/default/interrupt").send().await.unwrap();
    assert!(interrupted.status().is_success(), "{interrupted:?}");
    let mut pieces = running.bytes_stream();
    tokio::time::timeout(SOON, async { while pieces.next().await.is_some() {} })
        .await
        .expect("the stream ends");
    assert_eq!(cluster.owner(one, "alice").await, owner);
    // Files of the caller, up and down.
    let path = "/v1/workspace/files/sent.txt?session=default";
    let sent = caller.request(one, "PUT", path).body("through a node").send().await.unwrap();
    assert!(sent.status().is_success(), "{sent:?}");
    assert_eq!(Answer::of(caller.request(other, "GET", path)).await.body, "through a node");
}

/// Nothing that looks like a node's word is believed from elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_caller_has_no_effect() {
    let Some(cluster) = Nodes::start(2, &format!("{SIM}{LONG_LEASE}")).await else { return };
    let alice = Caller { cluster: &cluster, web: reqwest::Client::new(), user: "alice" };
    let turn = Answer::of(alice.turn(0, "secret-word")).await;
    assert_eq!(turn.status, 200);
    for node in 0..2 {
        let mallory = Caller { cluster: &cluster, web: reqwest::Client::new(), user: "mallory" };
        let forged = [json!({ "user": "alice" }), json!({ "admin": true, "user": "alice" })];
        for caller in forged.iter().map(Value::to_string).chain(["alice".to_owned()]) {
            let request = mallory.turn(node, "[[recall]]").header("x-pilotlight-caller", &caller);
            let answer = Answer::of(request.header("x-pilotlight-signature", "00".repeat(32))).await;
            assert!(answer.status == 200 && !answer.body.contains("secret-word"), "{answer:?}");
            assert_eq!(
                answer.header("x-pilotlight-node"),
                cluster.nodes[cluster.owner(0, "mallory").await].name
            );
            // The listener of the nodes takes nothing that is not signed.
            let url = format!("http://{}/v1/messages/keepalive", cluster.nodes[node].listen);
            for signature in [None, Some(""), Some("00"), Some(&*"00".repeat(32))] {
                let request =
                    mallory.web.post(&url).header("x-pilotlight-user", "alice").json(&message("[[recall]]"));
                let request = request.header("x-pilotlight-caller", &caller);
                let request = match signature {
                    Some(signature) => request.header("x-pilotlight-signature", signature),
                    None => request,
                };
                let refused = Answer::of(request).await;
                assert_eq!(refused.status, 401, "{refused:?}");
                assert!(!refused.body.contains("secret-word"));
            }
        }
    }
    for path in ["/health", "/livez", "/readyz", "/openapi.json", "/v1/cluster", "/v1/sessions", "/metrics"] {
        let answer = reqwest::get(format!("http://{}{path}", cluster.nodes[0].listen)).await.unwrap();
        assert_eq!(answer.status(), 401, "{path} of the listener for nodes");
    }
}

/// Its bytes are in memory once, whichever node has the user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_body_counts_once() {
    const BYTES: usize = 95_000_000;
    let config = format!("{SIM}[http]\nbody_limit = 100000000\n{LONG_LEASE}");
    let Some(cluster) = Nodes::start(2, &config).await else { return };
    let caller = Caller::new(&cluster, "alice");
    let owner = cluster.owner(0, "alice").await;
    assert_eq!(Answer::of(caller.turn(owner, "hello")).await.status, 200);
    for node in [owner, 1 - owner] {
        // No JSON: refused once it is here.
        let body = vec![b'x'; BYTES];
        let answer = Answer::of(caller.request(node, "POST", "/v1/messages").body(body)).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
    }
}
