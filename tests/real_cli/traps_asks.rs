//! Tools that ask for permission: allowed, denied, left without an answer, withdrawn; one and several.

use std::time::Duration;

use pilotlight::config::PermissionPolicy;
use pilotlight::model::PermissionRequest;
use pilotlight::model::{Decision, PermissionError};
use pilotlight::{Config, Session};
use serde_json::json;

use super::bench::Bench;
use super::embedded::{child, failure, finish, read, say, send};
use crate::common::{SOON, eventually_some};

const TOUCH: &str = r#"[[tool:Bash {"command":"touch made-by-a-tool"}]]"#;

fn asks(config: &mut Config) {
    config.permissions.policy = PermissionPolicy::Ask;
}

/// Waits for the question of a tool.
async fn question(session: &Session) -> PermissionRequest {
    let pending = async || session.permissions().first().map(|pending| pending.request.clone());
    eventually_some("a question", SOON, pending).await
}

async fn has_made(session: &Session, file: &str) -> bool {
    session.workspace().await.expect("directories").work.join(file).exists()
}

fn allow() -> Decision {
    Decision::Allow { updated_input: None }
}

/// A tool that was allowed runs with the input it was given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn allowed_tool_runs_with_given_input() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(asks).await;
    let alice = system.alice();
    let turn = send(&alice, TOUCH).await;
    let asked = question(&alice).await;
    assert_eq!((asked.tool_name.as_str(), &asked.input["command"]), ("Bash", &json!("touch made-by-a-tool")));
    let other = json!({"command": "touch made-instead"});
    let decision = Decision::Allow { updated_input: Some(other) };
    alice.answer_permission(&asked.request_id, decision).await.expect("it waits");
    let (events, outcome) = read(turn).await;
    assert_eq!(outcome.text, "TOOLS:ok");
    assert!(events.iter().any(|event| event["type"] == "control_request"), "its reader sees the question");
    assert!(has_made(&alice, "made-instead").await && !has_made(&alice, "made-by-a-tool").await);
    assert!(alice.permissions().is_empty());
    let late = alice.answer_permission(&asked.request_id, allow()).await;
    assert!(matches!(late, Err(PermissionError::Late | PermissionError::Unknown)), "{late:?}");
    system.end().await;
}

/// A tool that was denied does not run and the turn goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_tool_does_not_run_turn_continues() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(asks).await;
    let alice = system.alice();
    let turn = send(&alice, TOUCH).await;
    let asked = question(&alice).await;
    let decision = Decision::Deny { message: "not today".into() };
    alice.answer_permission(&asked.request_id, decision).await.expect("it waits");
    assert_eq!(finish(turn).await.text, "TOOLS:err");
    assert!(!has_made(&alice, "made-by-a-tool").await);
    system.end().await;
}

/// A question nobody answers is denied in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_16_unanswered_question_is_denied() {
    let Some(bench) = Bench::new().await else { return };
    let soon = |config: &mut Config| {
        asks(config);
        config.session.permission_timeout = Duration::from_secs(1);
        // A turn that waits for a person is not idle.
        config.session.idle_timeout = Duration::from_millis(300);
        config.session.stall_timeout = Duration::from_millis(300);
    };
    let system = bench.embed(soon).await;
    let alice = system.alice();
    let turn = send(&alice, TOUCH).await;
    question(&alice).await;
    assert_eq!(finish(turn).await.text, "TOOLS:err");
    assert!(!has_made(&alice, "made-by-a-tool").await && alice.permissions().is_empty());
    assert_eq!(alice.status().expect("in memory").generation, 1, "one process did all of it");
    system.end().await;
}

/// A question that an interrupt withdraws is open no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_16_withdrawn_question_is_closed() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(asks).await;
    let alice = system.alice();
    let turn = send(&alice, TOUCH).await;
    let asked = question(&alice).await;
    let cli = child(&alice);
    assert!(alice.interrupt().await.expect("it can be reached"));
    let (events, outcome) = read(turn).await;
    assert!(failure(&outcome).interrupted, "{outcome:?}");
    assert!(events.iter().any(|event| event["type"] == "control_cancel_request"), "the trap is not there");
    assert!(alice.permissions().is_empty());
    assert!(alice.answer_permission(&asked.request_id, allow()).await.is_err());
    assert_eq!(say(&alice, "[[say:fine]]").await, "fine");
    assert_eq!(child(&alice), cli);
    assert!(!has_made(&alice, "made-by-a-tool").await);
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_called_side_by_side_are_asked_about_each() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(asks).await;
    let alice = system.alice();
    let calls: String = (0..4).map(|n| format!(r#"[[tool:Bash {{"command":"touch made-{n}"}}]]"#)).collect();
    let turn = send(&alice, &calls).await;
    let answering = async {
        for number in 0..4 {
            let asked = question(&alice).await;
            // The second is the only one that may not.
            let may = asked.input["command"] != "touch made-1";
            let decision = if may { allow() } else { Decision::Deny { message: "no".into() } };
            alice.answer_permission(&asked.request_id, decision).await.expect("it waits");
            let is_gone = async || {
                let mut pending = alice.permissions().into_iter();
                (!pending.any(|other| other.request.request_id == asked.request_id)).then_some(())
            };
            eventually_some(&format!("answer {number} is taken"), SOON, is_gone).await;
        }
    };
    let (outcome, ()) = tokio::join!(finish(turn), answering);
    assert!(outcome.is_ok(), "{outcome:?}");
    for number in 0..4 {
        assert_eq!(has_made(&alice, &format!("made-{number}")).await, number != 1, "{number}");
    }
    assert_eq!(bench.api.requests().len(), 2, "one call with all the results");
    system.end().await;
}
