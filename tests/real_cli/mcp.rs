//! MCP servers, given to the CLI over its protocol: connected before the first turn, also of a resumed conversation, with
//! nothing expanded and nothing written.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use pilotlight::config::{Egress, PermissionPolicy};
use pilotlight::model::{CallerTool, McpApplied, McpError};
use pilotlight::turn::McpServers;
use pilotlight::{Config, Event, Prompt, ToolResult, TurnError, TurnOptions};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::bench::Bench;

/// Longer than the CLI waits for the servers of a file before its first turn (2 s).
const SLOW: Duration = Duration::from_secs(3);
/// What a shell would expand and the CLI does not.
const TOKEN: &str = "$ANTHROPIC_API_KEY $(id) {ANTHROPIC_API_KEY}";

/// A server of the Model Context Protocol on loopback with one tool; it notes what comes.
struct McpServer {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    _serving: JoinSet<()>,
}

#[derive(Clone)]
struct Seen {
    method: String,
    authorization: String,
}

impl McpServer {
    /// Answers the first message after `pause`.
    async fn start(pause: Duration) -> Self {
        // Not 127.0.0.1, which a child with a network of its own reaches without the proxy.
        let listener = TcpListener::bind("127.0.0.2:0").await.expect("a port on loopback");
        let url = format!("http://{}/mcp", listener.local_addr().expect("the port just bound"));
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let state = (seen.clone(), pause);
        let routes = Router::new().route("/mcp", post(answer)).with_state(state);
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, routes).await.expect("it serves") });
        Self { url, seen, _serving: serving }
    }

    fn count(&self, method: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen.method == method).count()
    }
}

async fn answer(
    State((seen, pause)): State<(Arc<Mutex<Vec<Seen>>>, Duration)>,
    headers: HeaderMap,
    Json(message): Json<Value>,
) -> Response {
    let method = message["method"].as_str().unwrap_or_default().to_owned();
    let authorization =
        headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    seen.lock().unwrap().push(Seen { method: method.clone(), authorization: authorization.to_owned() });
    let result = match method.as_str() {
        "initialize" => {
            tokio::time::sleep(pause).await;
            json!({
                "protocolVersion": message["params"]["protocolVersion"], "capabilities": { "tools": {} },
                "serverInfo": { "name": "lamp", "version": "1" },
            })
        }
        "tools/list" => json!({ "tools": [{
            "name": "shine", "description": "Shines.", "inputSchema": { "type": "object", "properties": {} },
        }] }),
        "tools/call" => json!({ "content": [{ "type": "text", "text": "it shines" }] }),
        _ if message["id"].is_null() => return StatusCode::ACCEPTED.into_response(),
        _ => {
            let error = json!({ "code": -32601, "message": "no such method" });
            return Json(json!({ "jsonrpc": "2.0", "id": message["id"], "error": error })).into_response();
        }
    };
    Json(json!({ "jsonrpc": "2.0", "id": message["id"], "result": result })).into_response()
}

/// The tools of MCP servers that a turn began with, and its text.
async fn turn(site: &str, name: Option<&str>, text: &str) -> (Vec<String>, String) {
    let web = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({ "messages": [{ "role": "user", "content": text }], "session_id": "work",
        "mcp_servers": name.map(|name| vec![name]).unwrap_or_default() });
    let request = web.post(format!("{site}/v1/messages/keepalive")).header("x-pilotlight-user", "alice");
    let answer = request.json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer = answer.text().await.unwrap();
    let lines = answer.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    let init = events.iter().find(|event| event["subtype"] == "init").unwrap_or_else(|| panic!("{answer}"));
    let result = events.iter().find(|event| event["type"] == "result").unwrap_or_else(|| panic!("{answer}"));
    (mcp_tools(init), result["result"].as_str().unwrap_or_default().to_owned())
}

fn mcp_tools(init: &Value) -> Vec<String> {
    let tools = init["tools"].as_array().expect("tools").iter().filter_map(Value::as_str);
    tools.filter(|name| name.starts_with("mcp__")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configured_server_is_there_from_the_first_turn_on() {
    let Some(bench) = Bench::of_newest().await else { return };
    let lamp = McpServer::start(SLOW).await;
    let config = format!(
        "[permissions]\npolicy = \"allow\"\n[mcp.servers.lamp]\nurl = \"{}\"\n\
         headers = {{ Authorization = \"Bearer s3cret-lamp\" }}\n",
        lamp.url
    );
    let server = bench.serve(&config).await;
    let client = server.client();
    let site = client.http();
    let (tools, text) = turn(site, Some("lamp"), "[[say:one]]").await;
    assert_eq!((tools.as_slice(), text.as_str()), (&["mcp__lamp__shine".to_owned()][..], "one"));
    assert!(lamp.seen.lock().unwrap().iter().any(|seen| seen.authorization == "Bearer s3cret-lamp"));
    let (_, text) = turn(site, Some("lamp"), "[[tool:mcp__lamp__shine {}]]").await;
    assert_eq!((text.as_str(), lamp.count("tools/call")), ("TOOLS:ok", 1));
    for process in server.started() {
        let words = process.arguments().join(" ");
        assert!(!words.contains("s3cret-lamp") && !words.contains("--mcp-config"), "{words}");
    }
    // Killed, and resumed by another child.
    bench.on_disk(1).await;
    bench.only_cli().kill();
    let (tools, text) = turn(site, Some("lamp"), "[[say:two]]").await;
    assert_eq!((tools.as_slice(), text.as_str()), (&["mcp__lamp__shine".to_owned()][..], "two"));
    assert_eq!(bench.conversations().len(), 1, "one conversation");
    // Not chosen any more.
    let (tools, text) = turn(site, None, "[[say:three]]").await;
    assert_eq!((tools, text.as_str()), (Vec::new(), "three"));
}

/// Server that never connects delays and does not prevent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unconnected_server_delays_but_allows_turn() {
    let Some(bench) = Bench::of_newest().await else { return };
    let lamp = McpServer::start(Duration::from_secs(600)).await;
    let config = format!(
        "[mcp]\nconnect_timeout = \"1s\"\n[mcp.servers.lamp]\nurl = \"{}\"\n\
         [mcp.servers.none]\ncommand = \"/nowhere/at/all\"\n",
        lamp.url
    );
    let server = bench.serve(&config).await;
    let client = server.client();
    for name in ["lamp", "none"] {
        let (tools, text) = turn(client.http(), Some(name), "[[say:without]]").await;
        assert_eq!((tools, text.as_str()), (Vec::new(), "without"), "{name}");
    }
    assert!(lamp.count("initialize") > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_in_a_definition_is_expanded() {
    let Some(bench) = Bench::of_newest().await else { return };
    let lamp = McpServer::start(Duration::ZERO).await;
    let system = bench.embed(|_| {}).await;
    let with = |token: &str| {
        let definition = json!({ "type": "http", "url": lamp.url, "headers": { "Authorization": token } });
        let servers = McpServers::defined([("lamp".to_owned(), definition)].into_iter().collect());
        TurnOptions::default().mcp_servers(servers)
    };
    let refused = system.alice().send_with("hello", with("${ANTHROPIC_API_KEY}")).await;
    assert!(matches!(refused, Err(TurnError::InvalidMcpServers(_))), "{refused:?}");
    let options = with(TOKEN);
    let mut turn = system.alice().send_with("[[say:lit]]", options).await.expect("it is accepted");
    let mut tools = Vec::new();
    while let Some(event) = turn.next().await {
        let event: Event = event.expect("an event");
        let line: Value = serde_json::from_slice(event.as_bytes()).unwrap();
        if line["subtype"] == "init" {
            tools = mcp_tools(&line);
        }
    }
    assert_eq!(tools, ["mcp__lamp__shine"]);
    let seen = lamp.seen.lock().unwrap().clone();
    let sent: Vec<_> = seen.iter().map(|seen| (seen.method.as_str(), seen.authorization.as_str())).collect();
    assert!(sent.iter().all(|(_, token)| *token == TOKEN), "something was expanded: {sent:?}");
    system.end().await;
}

/// In the middle of a turn and without another child; the caller's own tools stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_is_added_to_a_running_child() {
    let Some(bench) = Bench::of_newest().await else { return };
    let lamp = McpServer::start(Duration::ZERO).await;
    let url = lamp.url.clone();
    let configured = move |config: &mut Config| {
        config.permissions.policy = PermissionPolicy::Allow;
        // Otherwise a server with an address needs another child.
        config.isolation.egress = Some(Egress::Open);
        let server = toml::from_str(&format!("url = \"{url}\"")).expect("a definition");
        config.mcp.servers.insert("lamp".into(), server);
    };
    let system = bench.embed(configured).await;
    let alice = system.alice();
    let tool =
        CallerTool::new("add", None, json!({ "type": "object" }).as_object().unwrap().clone()).unwrap();
    let options = || {
        let mut options = TurnOptions::default();
        options.tools = vec![tool.clone()];
        options
    };
    let turn = alice.send_with("[[say:a]][[hold:text]][[say:b]]", options()).await.expect("accepted");
    bench.api.entered("text", 1).await;
    let applied = alice.add_mcp_servers(McpServers::configured(["lamp"])).await;
    assert_eq!(applied, Ok(McpApplied::Now), "during the turn");
    bench.api.release("text");
    assert!(turn.finish().await.is_ok());
    let servers = alice.mcp_servers().await.expect("readable");
    let [server] = &servers[..] else { panic!("{servers:?}") };
    assert_eq!((server.name.as_str(), server.status.as_deref()), ("lamp", Some("connected")));
    assert_eq!(server.tools, ["shine"]);
    alice.reconnect_mcp_server("lamp").await.expect("it answers");
    assert!(lamp.count("initialize") >= 2);
    assert_eq!(alice.reconnect_mcp_server("none").await, Err(McpError::NotFound));

    let turn = alice.send_with("[[tool:mcp__lamp__shine {}]]", options()).await.expect("accepted");
    assert_eq!(turn.finish().await.text, "TOOLS:ok");
    let called =
        alice.send_with("[[tool:mcp__caller__add {}]]", options()).await.expect("accepted").finish().await;
    assert_eq!(called.tool_calls.len(), 1, "{called:?}");
    assert_eq!(alice.status().expect("in memory").generation, 1, "one child did all of it");

    assert_eq!(alice.remove_mcp_server("lamp").await, Ok(McpApplied::Now));
    assert!(alice.mcp_servers().await.expect("readable").is_empty());
    // The CLI keeps the connection of the tool whose result it waits for.
    let results = Prompt::ToolResults(vec![ToolResult::text(&called.tool_calls[0].id, "forty-two")]);
    let ended = alice.send_with(results, options()).await.expect("accepted").finish().await;
    assert_eq!(ended.text, "TOOLS:ok");
    let requests = bench.api.requests();
    let sent = serde_json::to_string(&requests.last().expect("a request").body["messages"]).unwrap();
    assert!(
        sent.contains("forty-two") && !sent.contains("is_error\":true"),
        "as the result of the call: {sent}"
    );
    assert_eq!(alice.status().expect("in memory").generation, 1);
    alice.add_mcp_servers(McpServers::configured(["lamp"])).await.expect("added");
    // The next child has it as well.
    alice.evict().await.expect("stopped");
    let servers = alice.mcp_servers().await.expect("readable");
    assert_eq!((servers[0].name.as_str(), &servers[0].status), ("lamp", &None));
    let calls = lamp.count("tools/call");
    let turn = alice.send_with("[[tool:mcp__lamp__shine {}]]", options()).await.expect("accepted");
    assert_eq!((turn.finish().await.text.as_str(), lamp.count("tools/call")), ("TOOLS:ok", calls + 1));
    system.end().await;
}
