//! The MCP servers of a session while its child runs: listed, connected again, added, removed.

use serde_json::{Value, json};

use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, Site, place};
use crate::common::{SOON, eventually_some};

const SERVERS: &str = "[mcp.servers.a]\ncommand = \"sleep\"\nargs = [\"s3cret-argument\"]\nenv = { TOKEN = \"s3cret-token\" }\n\
                       [mcp.servers.b]\ncommand = \"sleep\"\nargs = [\"8231\"]\n\
                       [mcp.servers.web]\nurl = \"http://user:s3cret-word@127.0.0.1:9/\"\n";

async fn call(site: &Site, method: &str, path: &str, body: &str) -> Answer {
    let request = site.session(method, &format!("work/mcp{path}"), "alice");
    Answer::of(if method == "GET" { request } else { request.body(body.to_owned()) }).await
}

async fn list(site: &Site) -> Value {
    let answer = call(site, "GET", "", "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.body.contains("s3cret") && !answer.body.contains("sleep"), "{answer:?}");
    answer.json()
}

fn names(list: &Value) -> Vec<&str> {
    list["servers"].as_array().unwrap().iter().map(|server| server["name"].as_str().unwrap()).collect()
}

/// A turn in the original dialect, which keeps the servers of the session. The servers that it began with.
async fn turn(site: &Site, servers: Option<Value>) -> Vec<String> {
    let mut body = json!({ "messages": [{ "role": "user", "content": "hello" }], "session_id": "work" });
    servers.into_iter().for_each(|servers| body["mcp_servers"] = servers);
    let answer = Answer::of(site.asking("alice", &body)).await;
    let events = answer.events();
    let init = events.iter().find(|event| event["subtype"] == "init").unwrap_or_else(|| panic!("{answer:?}"));
    let all = init["mcp_servers"].as_array().unwrap().iter();
    all.map(|server| server["name"].as_str().unwrap().to_owned()).collect()
}

async fn status(site: &Site) -> Value {
    Answer::of(site.session("GET", "work", "alice")).await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_change_without_another_child() {
    let place = place();
    let (_program, site) = Program::ready(&place, SERVERS).await;
    assert_eq!(call(&site, "GET", "", "").await.error().1, "session_not_found");
    assert_eq!(turn(&site, Some(json!(["a"]))).await, ["a"]);
    let pid = status(&site).await["pid"].clone();
    let added = call(&site, "PUT", "/b", "").await;
    assert_eq!((added.status, added.json()), (200, json!({ "id": "work", "name": "b", "applied": "now" })));
    let listed = list(&site).await;
    assert_eq!((&listed["source"], names(&listed)), (&json!("cli"), vec!["a", "b"]));
    assert!(listed["servers"][0]["status"].is_string(), "{listed}");
    assert_eq!(turn(&site, None).await, ["a", "b"]);
    assert_eq!(status(&site).await["pid"], pid, "the same child");

    let again = call(&site, "POST", "/a/reconnect", "").await;
    assert_eq!((again.status, again.json()["connected"].clone()), (200, json!(true)));
    for (method, path) in [("POST", "/web/reconnect"), ("DELETE", "/web"), ("DELETE", "/caller")] {
        let error = call(&site, method, path, "").await.error();
        assert_eq!((error.0, error.1.as_str()), (404, "mcp_server_not_found"), "{method} {path}");
    }
    assert_eq!(call(&site, "DELETE", "/a", "").await.json()["applied"], "now");
    assert_eq!(turn(&site, None).await, ["b"]);
    assert_eq!(status(&site).await["pid"], pid);

    // Another child has the same servers.
    Answer::of(site.session("DELETE", "work", "alice")).await;
    let listed = list(&site).await;
    assert_eq!((&listed["source"], names(&listed)), (&json!("settings"), vec!["b"]));
    assert_eq!(listed["servers"][0]["status"], Value::Null);
    let error = call(&site, "POST", "/b/reconnect", "").await.error();
    assert_eq!((error.0, error.1.as_str()), (409, "session_not_running"));
    assert_eq!(call(&site, "PUT", "/a", "{}").await.json()["applied"], "next_start");
    assert_eq!(status(&site).await["state"], "dormant", "no child was started");
    assert_eq!(turn(&site, None).await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_fails_stays_and_is_said() {
    let place = place();
    let (_program, site) = Program::ready(&place, SERVERS).await;
    turn(&site, None).await;
    let error = call(&site, "PUT", "/web", "").await.error();
    assert_eq!((error.0, error.1.as_str()), (502, "mcp_not_connected"));
    assert!(!error.2.contains("s3cret"), "{error:?}");
    let listed = list(&site).await;
    assert_eq!((names(&listed), &listed["servers"][0]["status"]), (vec!["web"], &json!("failed")));
    assert_eq!(listed["servers"][0]["error"], Value::Null, "of the operator's server");
}

#[tokio::test(flavor = "multi_thread")]
async fn additions_keep_the_rules_of_turns() {
    let place = place();
    let ring = Keyring::new(&place);
    let narrow = ring.key(&["--user", "alice", "--mcp", "b"]).0;
    let wide = ring.user("alice");
    let (_program, site) = Program::ready(&place, &format!("{}{SERVERS}", ring.config())).await;
    let call = async |key: &str, method: &str, path: &str, body: &str| {
        let request = site.session(method, &format!("default{path}"), "alice").bearer_auth(key);
        Answer::of(request.body(body.to_owned())).await
    };
    call(&wide, "POST", "/warm", "").await;
    let definition = r#"{"command":"sleep","args":["1"]}"#;
    for (key, method, path, body, expected) in [
        (&wide, "PUT", "/mcp/none", "", (400, "unknown_mcp_server")),
        (&wide, "PUT", "/mcp/own", definition, (403, "mcp_not_allowed")),
        (&wide, "PUT", "/mcp/a", "[", (400, "invalid_body")),
        (
            &wide,
            "PUT",
            "/mcp/own",
            &format!("{{\"command\":\"{}\"}}", "x".repeat(16 << 10)),
            (413, "mcp_server_too_large"),
        ),
        (&wide, "PUT", "/mcp/caller", "", (400, "unknown_mcp_server")),
        (&narrow, "PUT", "/mcp/a", "", (403, "mcp_server_not_allowed")),
        (&narrow, "DELETE", "/mcp/a", "", (403, "mcp_server_not_allowed")),
        (&narrow, "POST", "/mcp/a/reconnect", "", (403, "mcp_server_not_allowed")),
    ] {
        let error = call(key, method, path, body).await.error();
        assert_eq!((error.0, error.1.as_str()), expected, "{method} {path}");
    }
    assert_eq!(call(&narrow, "PUT", "/mcp/b", "").await.status, 200);
    assert_eq!(call(&wide, "PUT", "/mcp/a", "").await.status, 200);
    let seen = Answer::of(site.session("GET", "default/mcp", "alice").bearer_auth(&narrow)).await.json();
    assert_eq!(names(&seen), ["b"]);
}

/// What a turn asks for is decided when it begins to wait: a change in between would be undone by it.
#[tokio::test(flavor = "multi_thread")]
async fn change_waits_for_turns_that_wait() {
    let place = place();
    let (_program, site) = Program::ready(&place, SERVERS).await;
    assert_eq!(turn(&site, Some(json!(["a"]))).await, ["a"]);
    let begin = |text: &str| {
        let body = json!({ "messages": [{ "role": "user", "content": text }], "session_id": "work", "mcp_servers": ["a"] });
        tokio::spawn(Answer::of(site.asking("alice", &body)))
    };
    let is = async |field: &str, value: Value| {
        eventually_some(field, SOON, async || (status(&site).await[field] == value).then_some(())).await;
    };
    let long = begin("[[sleep:60000]]");
    is("state", json!("busy")).await;
    let waiting = begin("hello");
    is("queue_depth", json!(1)).await;
    for (method, path) in [("DELETE", "/a"), ("PUT", "/b")] {
        let error = call(&site, method, path, "").await.error();
        assert_eq!((error.0, error.1.as_str()), (409, "session_busy"), "{method} {path}");
    }
    Answer::of(site.session("POST", "work/interrupt", "alice")).await;
    long.await.unwrap();
    assert_eq!(waiting.await.unwrap().status, 200);
    assert_eq!(call(&site, "DELETE", "/a", "").await.json()["applied"], "now");
    assert_eq!(turn(&site, None).await, [""; 0]);
}
