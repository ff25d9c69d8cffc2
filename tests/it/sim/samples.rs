//! The recorded conversations, replayed: the same lines in the same order, with the same fields of the same types.
//!
//! Not replayed: `subagent` (there are no agents behind the simulation), `not-logged-in` (it needs no login) and
//! `mcp-failed-and-pending` (it starts no servers).

use std::path::PathBuf;

use serde_json::Value;

use super::harness::{Home, Sim};

/// Fields of the samples that ours may lack. There is none, and there should be a good reason for the first.
const LEFT_OUT: &[&str] = &[];

/// What to wait for after a line of the host.
#[derive(Clone, Copy)]
enum Wait {
    Nothing,
    Response,
    Question,
    Deltas(usize),
    Results(usize),
}
use Wait::{Deltas, Nothing, Question, Response, Results};

fn sample(name: &str) -> Vec<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn wait(sim: &mut Sim, what: Wait) -> Vec<Value> {
    let of = |kind: &'static str| move |line: &Value| line["type"] == kind;
    match what {
        Nothing => Vec::new(),
        Response => sim.until(of("control_response")),
        Question => sim.until(of("control_request")),
        Deltas(count) => (0..count)
            .flat_map(|_| sim.until(|line| line["event"]["delta"]["type"] == "text_delta"))
            .collect(),
        Results(count) => (0..count).flat_map(|_| sim.until(of("result"))).collect(),
    }
}

/// Sends the sample's lines, each followed by its wait, and compares all that came.
fn replay(name: &str, flags: &[&str], env: &[(&str, &str)], waits: &[Wait]) {
    let home = Home::new();
    let mut sim = home.start_with(flags, env);
    let (mut ours, mut unsent) = (Vec::new(), String::new());
    let input = sample(&format!("{name}.in.jsonl"));
    assert_eq!(input.len(), waits.len(), "{name}: one wait for each line");
    for (mut line, what) in input.into_iter().zip(waits) {
        if line["type"] == "control_response" {
            let question = ours.iter().rfind(|line: &&Value| line["type"] == "control_request").unwrap();
            line["response"]["request_id"] = question["request_id"].clone();
        }
        unsent.push_str(&format!("{line}\n"));
        // Lines that follow at once go in one write: no slow machine can put a turn's end between them.
        if !matches!(what, Nothing) {
            sim.raw(std::mem::take(&mut unsent).as_bytes());
        }
        ours.extend(wait(&mut sim, *what));
    }
    ours.extend(sim.finish().0);
    compare(name, &sample(&format!("{name}.out.jsonl")), &ours);
}

fn is_delta(line: &Value) -> bool {
    line["event"]["type"] == "content_block_delta"
}

/// Lines with runs of deltas of one kind made one: how a text is cut is not the protocol's business.
fn folded(lines: &[Value]) -> Vec<&Value> {
    let mut out: Vec<&Value> = Vec::new();
    for line in lines {
        let same = |last: &&Value| {
            is_delta(last) && last["event"]["delta"]["type"] == line["event"]["delta"]["type"]
        };
        if !(is_delta(line) && out.last().is_some_and(same)) {
            out.push(line);
        }
    }
    out
}

fn label(line: &Value) -> String {
    let name = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let parts = [&line["type"], &line["subtype"], &line["event"]["type"], &line["state"]];
    parts.map(name).join("/")
}

fn compare(name: &str, sample: &[Value], ours: &[Value]) {
    let (sample, ours) = (folded(sample), folded(ours));
    let labels = |lines: &[&Value]| lines.iter().map(|line| label(line)).collect::<Vec<_>>();
    assert_eq!(labels(&sample), labels(&ours), "{name}: order of lines");
    for (theirs, ours) in sample.iter().zip(&ours) {
        assert_shape(&format!("{name}: {}", label(theirs)), theirs, ours);
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn assert_shape(place: &str, sample: &Value, ours: &Value) {
    assert_eq!(kind(sample), kind(ours), "{place}: {ours}");
    match (sample, ours) {
        (Value::Object(sample), Value::Object(ours)) => {
            for (key, value) in sample.iter().filter(|(key, _)| !LEFT_OUT.contains(&key.as_str())) {
                let own = ours.get(key).unwrap_or_else(|| panic!("{place}: no {key} in {ours:?}"));
                assert_shape(&format!("{place}.{key}"), value, own);
            }
        }
        (Value::Array(sample), Value::Array(ours)) => {
            if let Some(first) = sample.first() {
                let own = ours.first().unwrap_or_else(|| panic!("{place}: empty"));
                assert_shape(&format!("{place}[0]"), first, own);
            }
        }
        _ => {}
    }
}

const RESULT: Wait = Results(1);

#[test]
fn turns_basic() {
    replay("turns-basic", &[], &[], &[Response, RESULT, RESULT]);
}

#[test]
fn turn_partial_replay_thinking() {
    let flags = ["--include-partial-messages", "--replay-user-messages"];
    replay("turn-partial-replay-thinking", &flags, &[], &[Response, RESULT]);
}

#[test]
fn session_state_events() {
    let env = [("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "1")];
    replay("session-state-events", &[], &env, &[Response, RESULT]);
}

#[test]
fn interrupt() {
    replay(
        "interrupt",
        &["--include-partial-messages"],
        &[],
        &[Response, Deltas(7), RESULT, Response, RESULT],
    );
}

#[test]
fn tools_permission_allow_deny_cancel() {
    let waits = [Response, Question, RESULT, Question, RESULT, Question, RESULT];
    replay("tools-permission-allow-deny-cancel", &["--permission-prompt-tool", "stdio"], &[], &waits);
}

#[test]
fn tool_denied_without_prompt_tool() {
    replay("tool-denied-without-prompt-tool", &[], &[], &[Response, RESULT]);
}

#[test]
fn merged_and_duplicate_messages() {
    let waits = [Response, Nothing, Nothing, Nothing, Results(2)];
    replay("merged-and-duplicate-messages", &["--replay-user-messages"], &[], &waits);
}

#[test]
fn resume_unknown() {
    replay("resume-unknown", &["--resume", "00000000-0000-4000-8000-000000000000"], &[], &[RESULT]);
}

#[test]
fn slash_commands() {
    replay("slash-commands", &[], &[], &[Response, RESULT, RESULT, RESULT, RESULT, RESULT]);
}

#[test]
fn api_errors() {
    replay("api-errors", &[], &[], &[Response, RESULT, RESULT, RESULT, RESULT]);
}

#[test]
fn api_retry_then_success() {
    replay("api-retry-then-success", &[], &[], &[Response, RESULT, RESULT]);
}

#[test]
fn control_requests() {
    replay("control-requests", &[], &[], &[Response; 10]);
}

#[test]
fn refusal() {
    replay("refusal", &[], &[], &[Response, RESULT]);
}

#[test]
fn max_turns() {
    replay("max-turns", &["--max-turns", "2"], &[], &[Response, RESULT]);
}

#[test]
fn max_budget() {
    replay("max-budget", &["--max-budget-usd", "0.001"], &[], &[Response, RESULT, RESULT]);
}

#[test]
fn background_task_unsolicited_turn() {
    replay("background-task-unsolicited-turn", &[], &[], &[Response, Results(2)]);
}
