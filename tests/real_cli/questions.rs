//! Questions for a person: of the model (`AskUserQuestion`) and of MCP servers (elicitation).

use std::time::Duration;

use pilotlight::config::PermissionPolicy;
use pilotlight::model::{Decision, PermissionRequest, RequestKind};
use pilotlight::turn::McpServers;
use pilotlight::{Config, Session, TurnOptions};
use serde_json::{Map, json};

use super::bench::Bench;
use super::embedded::{finish, send};
use crate::common::{SOON, eventually_some};

const QUESTION: &str = r#"[[tool:AskUserQuestion {"questions":[{"question":"Which color?","header":"Color","multiSelect":false,"options":[{"label":"Red","description":"r"},{"label":"Blue","description":"b"}]}]}]]"#;

/// An MCP server that asks the user when its tool is called, and gives the answer as the tool's text.
const ASKER: &str = r#"while read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\("[^"]*"\|[0-9]*\).*/\1/p')
  say() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$1"; }
  case $line in
    *'"method":"initialize"'*) say '{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"asker","version":"1"}}' ;;
    *'"method":"tools/list"'*) say '{"tools":[{"name":"ask","inputSchema":{"type":"object"},"_meta":{"anthropic/alwaysLoad":true}}]}' ;;
    *'"method":"tools/call"'*) call=$id
      printf '{"jsonrpc":"2.0","id":"asked","method":"elicitation/create","params":{"message":"Who are you?","requestedSchema":{"type":"object","properties":{"name":{"type":"string"}},"required":["name"]}}}\n' ;;
    *'"asked"'*) id=$call; said=$(printf '%s' "$line" | tr -d '"\\' ); say "{\"content\":[{\"type\":\"text\",\"text\":\"$said\"}]}" ;;
    *) test -n "$id" && say '{}' ;;
  esac
done
"#;

async fn question(session: &Session) -> PermissionRequest {
    let pending = async || session.permissions().first().map(|pending| pending.request.clone());
    eventually_some("a question", SOON, pending).await
}

fn policy(policy: PermissionPolicy) -> impl FnOnce(&mut Config) {
    move |config| {
        config.permissions.policy = policy;
        config.cli.args = vec!["--allowedTools".into(), "mcp__asker".into()];
        config.session.permission_timeout = Duration::from_secs(20);
    }
}

/// All that the model was sent last.
fn last_request(bench: &Bench) -> String {
    bench.api.requests().pop().expect("a request").body["messages"].to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn question_of_the_model_is_answered() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(policy(PermissionPolicy::Ask)).await;
    let alice = system.alice();
    let turn = send(&alice, QUESTION).await;
    let asked = question(&alice).await;
    assert_eq!((asked.kind, asked.tool_name.as_str()), (RequestKind::Question, "AskUserQuestion"));
    assert_eq!(asked.input["questions"][0]["question"], "Which color?");
    let answers = Map::from_iter([("Which color?".to_owned(), json!("chartreuse"))]);
    alice.answer_permission(&asked.request_id, Decision::Answer { answers }).await.expect("it waits");
    assert_eq!(finish(turn).await.text, "TOOLS:ok");
    assert!(last_request(&bench).contains(r#"\"Which color?\"=\"chartreuse\""#), "{}", last_request(&bench));
    system.end().await;
}

/// A policy has no answer: the model is asked to go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn question_of_the_model_for_nobody_is_denied() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(policy(PermissionPolicy::Allow)).await;
    let alice = system.alice();
    assert_eq!(finish(send(&alice, QUESTION).await).await.text, "TOOLS:err");
    assert!(last_request(&bench).contains("nobody is there to answer"), "{}", last_request(&bench));
    system.end().await;
}

/// The options of a turn with the server that asks.
fn with_asker() -> TurnOptions {
    let servers = json!({ "asker": { "type": "stdio", "command": "sh", "args": ["-c", ASKER] } });
    TurnOptions::default().mcp_servers(McpServers::defined(servers.as_object().expect("an object").clone()))
}

async fn elicited(bench: &Bench, decision: Option<Decision>, policy_of: PermissionPolicy) -> String {
    let system = bench.embed(policy(policy_of)).await;
    let (alice, options) = (system.alice(), with_asker());
    let turn = alice.send_with("[[tool:mcp__asker__ask {}]]", options).await.expect("accepted");
    if let Some(decision) = decision {
        let asked = question(&alice).await;
        assert_eq!((asked.kind, asked.tool_name.as_str()), (RequestKind::Elicitation, "asker"));
        assert_eq!(asked.input["message"], "Who are you?");
        assert_eq!(asked.input["requested_schema"]["required"], json!(["name"]));
        alice.answer_permission(&asked.request_id, decision).await.expect("it waits");
    }
    let outcome = finish(turn).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    let seen = last_request(bench);
    system.end().await;
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn question_of_an_mcp_server_is_answered() {
    let Some(bench) = Bench::of_newest().await else { return };
    let content = Some(json!({ "name": "Bob" }));
    let seen = elicited(&bench, Some(Decision::Accept { content }), PermissionPolicy::Ask).await;
    assert!(seen.contains("action:accept") && seen.contains("name:Bob"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn question_of_an_mcp_server_is_declined() {
    let Some(bench) = Bench::of_newest().await else { return };
    let seen = elicited(&bench, Some(Decision::Decline), PermissionPolicy::Ask).await;
    assert!(seen.contains("action:decline"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn question_of_an_mcp_server_for_nobody_is_cancelled() {
    let Some(bench) = Bench::of_newest().await else { return };
    let seen = elicited(&bench, None, PermissionPolicy::Allow).await;
    assert!(seen.contains("action:cancel"), "{seen}");
}
