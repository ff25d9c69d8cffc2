//! The caller's own tools and structured answers, in an embedding program.

use pilotlight::{CallerTool, Prompt, ToolCall, ToolResult};
use serde_json::{Map, json};

use super::*;
use crate::common::bench::killed_idle;

fn with_tool() -> TurnOptions {
    TurnOptions::default().tools([CallerTool::new("add", Some("Adds.".to_owned()), Map::new()).unwrap()])
}

const CALLS: &str = r#"[[tool:mcp__caller__add {"a":1}]][[tool:mcp__caller__add {"a":2}]]"#;

async fn called(session: &Session) -> Vec<ToolCall> {
    let outcome = session.send_with(CALLS, with_tool()).await.unwrap().finish().await;
    assert!(outcome.is_ok(), "{outcome:?}");
    outcome.tool_calls
}

#[tokio::test(flavor = "multi_thread")]
async fn results_go_on_with_the_turn_of_their_calls() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let calls = called(&alice).await;
    assert_eq!((calls[1].name.as_str(), &calls[1].input), ("add", &json!({ "a": 2 })));
    assert_eq!(alice.status().unwrap().state, SessionState::Idle);
    let results = calls.iter().map(|call| ToolResult::text(&call.id, "three")).collect();
    let answered = alice.send_with(Prompt::ToolResults(results), with_tool()).await.unwrap().finish().await;
    assert_eq!(answered.text, "TOOLS:ok three three");
    let status = alice.status().unwrap();
    assert_eq!((status.generation, status.turns), (1, 2));
    bench.end().await;
}

/// Nobody waits for the results: they are a message of the conversation.
#[tokio::test(flavor = "multi_thread")]
async fn results_after_an_eviction_are_a_message() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let calls = called(&alice).await;
    alice.evict().await.unwrap();
    let failed = ToolResult::text(&calls[0].id, "[[say:late]]").failed();
    let answered =
        alice.send_with(Prompt::ToolResults(vec![failed]), with_tool()).await.unwrap().finish().await;
    assert_eq!((answered.text.as_str(), answered.context_lost), ("late", false));
    bench.end().await;
}

/// A child that is killed while the caller works loses nothing that was answered.
#[tokio::test(flavor = "multi_thread")]
async fn kill_while_a_caller_works_loses_nothing() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "before").await;
    let calls = called(&alice).await;
    killed_idle(&alice).await;
    let result = ToolResult::text(&calls[0].id, "[[recall]]");
    let answered =
        alice.send_with(Prompt::ToolResults(vec![result]), with_tool()).await.unwrap().finish().await;
    assert!(answered.text.contains("before") && !answered.context_lost, "{answered:?}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn structured_answer_is_the_text() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let options = TurnOptions::default().output_schema(json!({ "type": "object" }));
    let outcome = alice.send_with(r#"[[output:{"a":1}]]"#, options).await.unwrap().finish().await;
    assert_eq!(outcome.text, r#"{"a":1}"#);
    let wrong = TurnOptions::default().output_schema(json!([]));
    let refused = alice.send_with("x", wrong).await.unwrap_err();
    assert!(matches!(refused, TurnError::InvalidTools(_)), "{refused}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupt_reaches_a_turn_that_waits() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    called(&alice).await;
    assert!(alice.interrupt().await.unwrap(), "the CLI's turn is not over");
    eventually("the turn is over", || alice.status().unwrap().total_cost_usd > 0.0).await;
    assert!(!alice.interrupt().await.unwrap());
    let next = alice.send_with("next", with_tool()).await.unwrap().finish().await;
    assert_eq!(next.text, "echo 2: next");
    assert_eq!(alice.status().unwrap().generation, 1, "the child stays");
    bench.end().await;
}
