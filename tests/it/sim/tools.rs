//! Tool calls: real commands in sessions of their own, permissions, background tasks.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::harness::{Home, Leftover, Sim, eventually, number_in, user};

const ASKING: &[&str] = &["--permission-prompt-tool", "stdio"];

fn bash(command: &str) -> String {
    format!("[[tool:Bash {}]]", json!({ "command": command }))
}

fn tool_result(lines: &[Value]) -> &Value {
    let blocks = lines.iter().map(|line| &line["message"]["content"][0]);
    blocks.into_iter().find(|block| block["type"] == "tool_result").unwrap()
}

#[test]
fn a_command_really_runs_in_a_session_of_its_own() {
    let home = Home::new();
    let mut sim = home.start(&["--allowedTools", "Bash"]);
    // Process, group and session of the shell are one number: it leads them all.
    sim.user(&bash("echo $$; cut -d' ' -f5,6 /proc/$$/stat; echo $CLAUDECODE; exit 0"));
    let lines = sim.until(|line| line["type"] == "result");
    let text = tool_result(&lines)["content"].as_str().unwrap().to_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words.len(), 4, "{text}");
    assert!(words[0] == words[1] && words[1] == words[2] && words[3] == "1", "{text}");
    assert_eq!(lines.last().unwrap()["result"], "TOOLS:ok");
    assert_eq!(sim.ask(&bash("echo no; exit 3")), "TOOLS:err");
}

#[test]
fn an_interrupt_kills_the_command() {
    let home = Home::new();
    let mut sim = home.start(&["--allowedTools", "Bash"]);
    let (shell, child) = (home.path("shell"), home.path("child"));
    let script = format!("echo $$ > {}; sleep 600 & echo $! > {}; wait", shell.display(), child.display());
    sim.user(&bash(&script));
    let left = [Leftover(number_in(&shell)), Leftover(number_in(&child))];
    sim.request("i", json!({"subtype":"interrupt"}));
    let result = sim.result();
    assert_eq!((&result["terminal_reason"], &result["num_turns"]), (&json!("aborted_tools"), &json!(3)));
    eventually("the command and its child are gone", || {
        left.iter().all(|process| !process.lives()).then_some(())
    });
    assert_eq!(sim.ask("next"), "echo 2: next");
}

#[test]
fn sigterm_and_sigkill_leave_the_command_alive() {
    for signal in [Signal::TERM, Signal::KILL] {
        let home = Home::new();
        let mut sim = home.start(&["--allowedTools", "Bash"]);
        let file = home.path("pid");
        sim.user(&bash(&format!("echo $$ > {}; exec sleep 600", file.display())));
        let left = Leftover(number_in(&file));
        sim.signal(signal);
        sim.status();
        assert!(left.lives());
    }
}

#[test]
fn a_message_during_a_tool_joins_the_turn() {
    let home = Home::new();
    let mut sim = home.start(&["--replay-user-messages", "--allowedTools", "Bash"]);
    let (started, go) = (home.path("started"), home.path("go"));
    sim.user(&bash(&format!(
        "echo $$ > {}; until [ -e {} ]; do sleep 0.02; done",
        started.display(),
        go.display()
    )));
    number_in(&started);
    sim.user("into the turn");
    let mut later = user("after it");
    later["priority"] = json!("later");
    sim.send(&later);
    sim.initialize();
    std::fs::write(go, "").unwrap();
    let lines = sim.until(|line| line["type"] == "result");
    let replayed = |text: &str| lines.iter().any(|line| line["message"]["content"] == text);
    assert!(replayed("into the turn") && !replayed("after it"));
    assert_eq!(sim.result()["result"], "echo 2: after it");
    let recalled = sim.ask("[[recall]]");
    assert!(recalled.ends_with("| into the turn | after it"), "{recalled}");
}

#[test]
fn an_urgent_message_ends_the_turn() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[sleep:60000]]");
    let mut urgent = user("urgent");
    urgent["priority"] = json!("now");
    sim.send(&urgent);
    let first = sim.result();
    assert_eq!((&first["subtype"], &first["result"]), (&json!("success"), &json!("")));
    assert_eq!(first["terminal_reason"], "aborted_tools");
    assert_eq!(sim.result()["result"], "echo 2: urgent");
}

fn asked(sim: &mut Sim, command: &str) -> String {
    sim.user(&bash(command));
    let question = sim.until(|line| line["type"] == "control_request").pop().unwrap();
    assert_eq!(question["request"]["subtype"], "can_use_tool");
    question["request_id"].as_str().unwrap().to_owned()
}

fn answer(sim: &mut Sim, id: &str, body: Value) {
    sim.send(
        &json!({"type":"control_response","response":{"subtype":"success","request_id":id,"response":body}}),
    );
}

#[test]
fn the_host_decides_and_may_change_the_input() {
    let home = Home::new();
    let mut sim = home.start(ASKING);
    let id = asked(&mut sim, "touch a");
    answer(&mut sim, "another-id", json!({"behavior":"deny","message":"not for you"}));
    answer(&mut sim, &id, json!({"behavior":"allow","updatedInput":{"command":"touch b"}}));
    assert_eq!(sim.result()["result"], "TOOLS:ok");
    assert!(home.path("work").join("b").exists() && !home.path("work").join("a").exists());

    for bad in [json!({"behavior":"allow"}), json!({"behavior":"deny","message":"no"}), json!(7)] {
        let id = asked(&mut sim, "touch c");
        answer(&mut sim, &id, bad);
        let result = sim.result();
        assert_eq!((&result["result"], &result["subtype"]), (&json!("TOOLS:denied"), &json!("success")));
        assert_eq!(result["permission_denials"][0]["tool_input"]["command"], "touch c");
    }
    let id = asked(&mut sim, "touch c");
    answer(&mut sim, &id, json!({"behavior":"deny","message":"no","interrupt":true}));
    assert_eq!(sim.result()["terminal_reason"], "aborted_tools");
    assert!(!home.path("work").join("c").exists());
}

/// A question is a state and waits for ever unless the input ends.
#[test]
fn question_waits_until_answer_or_end_of_input() {
    let home = Home::new();
    let mut sim = home.start_with(ASKING, &[("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "1")]);
    sim.user(&bash("touch a"));
    let lines = sim.until(|line| line["type"] == "control_request");
    assert_eq!(lines[lines.len() - 2]["state"], "requires_action");
    assert!(sim.is_silent(Duration::from_millis(100)));
    let (lines, code) = sim.finish();
    let text = tool_result(&lines)["content"].as_str().unwrap();
    assert!(text.ends_with("Tool permission stream closed before response received"), "{text}");
    assert_eq!(code, 0);
}

#[test]
fn without_anybody_to_ask_calls_are_denied() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user(&bash("touch a"));
    let lines = sim.until(|line| line["type"] == "result");
    assert_eq!(tool_result(&lines)["content"], "This command requires approval");
    assert_eq!(lines.last().unwrap()["permission_denials"][0]["tool_name"], "Bash");
    let mut sim = home.start(&["--permission-mode", "acceptEdits"]);
    assert_eq!(sim.ask(&bash("touch a")), "TOOLS:ok");
}

#[test]
fn background_tasks_start_turns_unless_switched_off() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    assert_eq!(sim.ask("[[background:0.2]]"), "TOOLS:ok");
    let unsolicited = sim.result();
    assert_eq!(unsolicited["origin"], json!({"kind":"task-notification"}));
    assert!(sim.ask("hello").starts_with("echo 2"), "the user's turns alone count");

    let mut sim =
        home.start_with(&["--allowedTools", "Bash"], &[("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "1")]);
    assert_eq!(sim.ask("[[background:1]]"), "TOOLS:ok");
    let call = r#"[[tool:Bash {"command":"sleep 1","run_in_background":true}]]"#;
    assert_eq!(sim.ask(call), "TOOLS:err");
    let (rest, code) = sim.finish();
    assert_eq!((rest.len(), code), (0, 1 - 1));
}

#[test]
fn the_end_of_input_waits_a_little_for_tasks() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[background:0.3]]");
    let (lines, code) = sim.finish();
    let last = lines.last().unwrap();
    assert_eq!((&last["origin"]["kind"], code), (&json!("task-notification"), 0));
}
