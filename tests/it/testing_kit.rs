//! The test kit of embedding programs, as their tests use it.

use std::time::Duration;

use pilotlight::testing::{Fault, Reply, Simulation};
use pilotlight::turn::Status;
use pilotlight::{Config, Outcome, Pilotlight, Session, TurnError, TurnOptions};
use serde_json::json;

use crate::common::built::copy_program;

const GRACE: Duration = Duration::from_secs(10);

async fn started(config: Config) -> Pilotlight {
    Pilotlight::start(config).await.unwrap()
}

async fn say(session: &Session, text: &str) -> String {
    let outcome = session.send(text).await.unwrap().finish().await;
    assert!(outcome.is_ok(), "{outcome:?}");
    outcome.text
}

fn aborted(outcome: Outcome) -> TurnError {
    match outcome.status {
        Status::Aborted(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn rules_answer_in_order_and_are_used_up() {
    let simulation = Simulation::new().unwrap();
    simulation.reply_once("weather", "It rains ]] today.").unwrap();
    simulation.reply("weather", Reply::text("It is sunny.").usage(7, 9)).unwrap();
    let pilot = started(simulation.config()).await;
    let alice = pilot.session("alice");
    assert_eq!(say(&alice, "How is the weather?").await, "It rains ]] today.");
    let outcome = alice.send("And the weather now?").await.unwrap().finish().await;
    assert_eq!((outcome.text.as_str(), outcome.usage.output_tokens), ("It is sunny.", 9));
    assert_eq!(say(&alice, "Hello").await, "echo 3: Hello");
    // A rule holds for a running process.
    simulation.reply("Hello", "Good day.").unwrap();
    assert_eq!(say(&alice, "Hello").await, "Good day.");
    let rules: Vec<_> = simulation.received().unwrap().into_iter().map(|message| message.rule).collect();
    assert_eq!(rules, [Some(0), Some(1), None, Some(2)]);
    pilot.shutdown(GRACE).await;
}

#[tokio::test]
async fn received_messages_show_crash_and_resume() {
    let simulation = Simulation::new().unwrap();
    simulation.reply_once("first", Reply::text("one").failing(Fault::CrashAfterAnswer)).unwrap();
    let pilot = started(simulation.config()).await;
    let alice = pilot.session("alice");
    assert_eq!(say(&alice, "first").await, "one");
    let options = TurnOptions::default().system_prompt("Be brief.");
    let turn = alice.send_with("second", options).await.unwrap();
    assert!(turn.finish().await.is_ok());
    let received = simulation.received().unwrap();
    let [first, second] = received.as_slice() else { panic!("{received:?}") };
    assert_eq!((first.text.as_str(), first.resumed), ("first", false));
    assert_eq!((second.text.as_str(), second.resumed), ("second", true));
    assert_eq!(second.system_prompt.as_deref(), Some("Be brief."));
    assert!(first.pid != second.pid && first.session_id == second.session_id, "{received:?}");
    pilot.shutdown(GRACE).await;
}

#[tokio::test]
async fn failures_are_typed_errors_with_their_cause() {
    let simulation = Simulation::new().unwrap();
    simulation.reply("long", Reply::context_full()).unwrap();
    simulation.reply("no", Reply::refusal()).unwrap();
    simulation.reply("broken", Reply::text("half").failing(Fault::CrashWhileAnswering)).unwrap();
    simulation.fail_starts(1, "the licence has expired").unwrap();
    let mut config = simulation.config();
    config.restart.intensity = 0;
    config.restart.circuit_pause = Duration::from_millis(1);
    let pilot = started(config).await;
    let alice = pilot.session("alice");
    let refused = alice.send("Hello").await;
    let outcome = match refused {
        Ok(turn) => aborted(turn.finish().await),
        Err(error) => error,
    };
    assert!(outcome.to_string().contains("the licence has expired"), "{outcome}");

    let ended = |text: &'static str| {
        let bob = pilot.session("bob");
        async move { bob.send(text).await.unwrap().finish().await }
    };
    assert!(matches!(ended("long").await.status, Status::Failed(_)));
    assert_eq!(ended("no").await.stop_reason.as_deref(), Some("refusal"));
    assert!(matches!(aborted(ended("broken").await), TurnError::SessionLost(_)));
    pilot.shutdown(GRACE).await;
}

#[tokio::test]
async fn recorded_turn_is_replayed_in_this_conversation() {
    let simulation = Simulation::new().unwrap();
    simulation.reply_once("think", Reply::text("Forty-two.").thinking("six ]] by nine")).unwrap();
    let pilot = started(simulation.config()).await;
    let mut recorded = String::new();
    let mut turn = pilot.session("alice").send("think").await.unwrap();
    while let Some(event) = turn.next().await {
        recorded.push_str(&event.unwrap().to_text());
        recorded.push('\n');
    }
    simulation.reply("again", Reply::recorded(&recorded).unwrap()).unwrap();
    let bob = pilot.session("bob");
    let mut turn = bob.send("again").await.unwrap();
    let (mut text, mut lines) = (String::new(), String::new());
    while let Some(event) = turn.next().await {
        let event = event.unwrap();
        text.push_str(&event.text_delta().unwrap_or_default());
        lines.push_str(&event.to_text());
    }
    assert_eq!(text, "Forty-two.");
    assert!(lines.contains("six ]] by nine"), "{lines}");
    assert_eq!(turn.outcome().unwrap().text, "Forty-two.");
    // The answer is a part of the conversation.
    assert!(say(&bob, "[[context]]").await.contains("Forty-two."));
    let error = Reply::recorded("{}\n\nno").unwrap_err();
    assert_eq!(error.to_string(), "line 3 of the recorded turn is no JSON object");
    pilot.shutdown(GRACE).await;
}

#[tokio::test]
async fn tools_and_documents_are_scripted() {
    let simulation = Simulation::new().unwrap();
    simulation.reply("list", Reply::default().calling("Bash", &json!({"command": "touch made"}))).unwrap();
    simulation.reply("json", Reply::document(&json!({"answer": 42}))).unwrap();
    let pilot = started(simulation.config()).await;
    let alice = pilot.session("alice");
    assert_eq!(say(&alice, "list").await, "TOOLS:denied");
    let schema = json!({"type": "object", "required": ["answer"]});
    let options = TurnOptions::default().output_schema(schema);
    let outcome = alice.send_with("json", options).await.unwrap().finish().await;
    assert_eq!(outcome.text, r#"{"answer":42}"#);
    pilot.shutdown(GRACE).await;
}

#[tokio::test]
async fn conversation_survives_a_crash() -> Result<(), Box<dyn std::error::Error>> {
    let simulation = Simulation::new()?;
    simulation.reply_once("weather", Reply::text("It is sunny.").failing(Fault::CrashAfterAnswer))?;
    simulation.reply("", "I do not know.")?;

    let pilot = Pilotlight::start(simulation.config()).await?;
    let alice = pilot.session("alice");
    assert_eq!(alice.send("How is the weather?").await?.finish().await.into_text()?, "It is sunny.");
    assert_eq!(alice.send("And tomorrow?").await?.finish().await.into_text()?, "I do not know.");

    let received = simulation.received()?;
    assert!(received[1].resumed && received[0].pid != received[1].pid);
    pilot.shutdown(Duration::from_secs(10)).await;
    Ok(())
}

/// A test function in a documentation test is compiled and never run.
#[test]
fn example_of_the_module_is_a_test_here() {
    let page = include_str!("../../src/testing.rs");
    let (_, example) = page.split_once("//! #[tokio::test]\n").unwrap();
    let (example, _) = example.split_once("//! ```").unwrap();
    let lines = example.lines().map(|line| line.trim_start_matches("//!").strip_prefix(' ').unwrap_or(""));
    let example: String = lines.flat_map(|line| [line, "\n"]).collect();
    assert!(include_str!("testing_kit.rs").contains(&example), "{example}");
}

/// In the repository a shim lies beside every test; a program that embeds pilotlight has none.
#[tokio::test]
async fn test_program_is_its_own_shim() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("it");
    copy_program(std::env::current_exe().unwrap(), &copy);
    let mut run = tokio::process::Command::new(&copy);
    run.args(["--exact", "testing_kit::rules_answer_in_order_and_are_used_up"]).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), run.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
