//! A tool that the program itself runs: the model calls it, and the next turn brings the result.
//!
//! `cargo run --example caller_tools` talks to the built-in simulation, whose call is in the message; with a real CLI the model
//! decides by the tool's name, description and schema.

use std::error::Error;
use std::time::Duration;

use pilotlight::{CallerTool, Config, Pilotlight, Prompt, Session, ToolCall, ToolResult, TurnOptions};
use serde_json::{Value, json};

/// A model that only calls tools must end at some time.
const MAX_ROUNDS: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    pilotlight::shim::run_if_asked();
    pilotlight::sim::run_if_asked();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let data_dir = std::env::temp_dir().join(format!("pilotlight-tools-{}", std::process::id()));
    let mut config = Config::new(&data_dir);
    config.cli.program = "sim".to_owned();
    let pilot = Pilotlight::start(config).await?;
    let answer =
        ask(&pilot.session("alice"), r#"What is 17 + 25? [[tool:mcp__caller__add {"a":17,"b":25}]]"#).await;
    pilot.shutdown(Duration::from_secs(10)).await;
    std::fs::remove_dir_all(data_dir)?;
    println!("{}", answer?);
    Ok(())
}

/// One question and its answer, with the calls between them.
async fn ask(session: &Session, question: &str) -> Result<String, Box<dyn Error>> {
    let schema = json!({ "type": "object", "required": ["a", "b"],
                         "properties": { "a": { "type": "number" }, "b": { "type": "number" } } });
    let schema = schema.as_object().cloned().unwrap_or_default();
    let add = CallerTool::new("add", Some("Adds two numbers.".to_owned()), schema)?;
    // Each turn states all tools: others than the child's own restart it.
    let options = TurnOptions::default().tools([add]);
    let mut prompt = Prompt::from(question);
    for _ in 0..MAX_ROUNDS {
        let outcome = session.send_with(prompt, options.clone()).await?.finish().await;
        if !outcome.is_ok() {
            return Err(format!("{:?}", outcome.status).into());
        }
        if outcome.tool_calls.is_empty() {
            return Ok(outcome.text);
        }
        prompt = Prompt::ToolResults(outcome.tool_calls.iter().map(result).collect());
    }
    Err("the model calls tools without end".into())
}

/// The input is what the model wrote: it is checked like that of a stranger.
fn result(call: &ToolCall) -> ToolResult {
    let number = |key| call.input.get(key).and_then(Value::as_f64);
    match (call.name.as_str(), number("a"), number("b")) {
        ("add", Some(a), Some(b)) => {
            println!("add({a}, {b})");
            ToolResult::text(&call.id, (a + b).to_string())
        }
        _ => ToolResult::text(&call.id, "add needs two numbers, a and b").failed(),
    }
}
