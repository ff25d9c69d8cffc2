//! Turns in which the model calls the caller's tools.

use super::super::lines::PassedOn;
use super::*;
use crate::model::{CallerTool, ToolResult};

pub(super) const BEGIN: &str =
    r#"{"type":"stream_event","event":{"type":"message_start","message":{}},"parent_tool_use_id":null}"#;
pub(super) const END: &str = r#"{"type":"stream_event","event":{"type":"message_delta","usage":{"output_tokens":7}},"parent_tool_use_id":null}"#;
const LIST: &str = r#"{"type":"control_request","request_id":"l","request":{"subtype":"mcp_message","server_name":"caller","message":{"method":"tools/list","jsonrpc":"2.0","id":1}}}"#;

pub(super) fn asked(id: &str) -> String {
    format!(
        r#"{{"type":"control_request","request_id":"r-{id}","request":{{"subtype":"mcp_message","server_name":"caller","message":{{"method":"tools/call","params":{{"name":"add","_meta":{{"claudecode/toolUseId":"{id}"}}}},"jsonrpc":"2.0","id":2}}}}}}"#
    )
}

pub(super) fn made(id: &str) -> String {
    format!(
        r#"{{"type":"assistant","message":{{"content":[{{"type":"tool_use","id":"{id}","name":"mcp__caller__add","input":{{}}}}]}},"parent_tool_use_id":null,"uuid":"u-{id}"}}"#
    )
}

/// How a child with a caller's tool is launched.
pub(super) fn launch() -> LaunchSettings {
    let tool = CallerTool::new("add", None, serde_json::Map::new()).unwrap();
    LaunchSettings { caller_tools: [tool].into(), ..LaunchSettings::default() }
}

fn with_tools() -> Bench {
    let mut bench = Bench::opening(config(), &launch());
    assert_eq!(bench.drain(), ["write initialize"]);
    assert_eq!(bench.line(LIST), ["write success"], "also before the child is ready");
    assert_eq!(bench.line(line::GREETING), ["emit greeted", "emit ready"]);
    bench
}

/// A child that waits for the results of two calls of turn 1.
fn waiting() -> Bench {
    let mut bench = with_tools();
    bench.turn(1);
    assert_eq!(bench.line(BEGIN), ["first output", "keep"]);
    assert_eq!(bench.line(&made("a")), ["keep"]);
    assert_eq!(bench.line(&asked("a")), [""; 0], "the message has not ended");
    assert_eq!(bench.line(&made("b")), ["keep"]);
    assert_eq!(bench.line(END), ["end turn 1 called 2", "keep"]);
    bench
}

fn results(bench: &mut Bench, turn: u64, ids: &[&str]) -> Vec<String> {
    let (mut job, reader) = job(turn);
    job.results = ids.iter().map(|id| ToolResult::text(*id, "3")).collect();
    bench.readers.push(reader);
    bench.protocol.take_turn(job, None, bench.now).expect("the child takes it");
    bench.drain()
}

#[test]
fn results_go_into_the_waiting_turn() {
    let mut bench = waiting();
    assert_eq!(
        results(&mut bench, 2, &["a", "b"]),
        ["wait answered", "write success", "grant reader"],
        "no message"
    );
    assert_eq!(bench.line(&asked("b")), ["write success"], "known before it is asked for");
    assert_eq!(bench.line(BEGIN), ["first output", "keep"]);
    assert_eq!(bench.line(line::RESULT), ["end turn 2 answered 0.5", "keep"]);
    assert_eq!(bench.protocol.next_deadline(), None);
}

#[test]
fn another_message_ends_the_wait() {
    let mut bench = waiting();
    assert_eq!(bench.turn(2), ["wait message", "write interrupt"]);
    assert_eq!(bench.line(&line::withdrawal("r-a")), [""; 0]);
    assert_eq!(bench.line(line::RESULT), ["emit own turn 0.5", "write user", "grant reader"]);
    assert_eq!(bench.line(line::RESULT), ["end turn 2 answered 0", "keep"]);
}

#[test]
fn results_of_other_calls_are_a_message() {
    let mut bench = waiting();
    assert_eq!(results(&mut bench, 2, &["z"]), ["wait message", "write interrupt"]);
    assert_eq!(bench.line(line::RESULT), ["emit own turn 0.5", "write user", "grant reader"]);
}

#[test]
fn wait_is_bounded() {
    let mut bench = waiting();
    let limit = bench.protocol.config.session.tool_timeout;
    assert_eq!(bench.after(limit), ["wait expired", "write interrupt"]);
    assert_eq!(results(&mut bench, 2, &["a", "b"]), [""; 0], "too late: it is held until the turn has ended");
    let again = bench.protocol.config.session.stop_interrupt;
    assert_eq!(bench.after(again), ["write interrupt"]);
    assert_eq!(bench.line(line::RESULT), ["emit own turn 0.5", "write user", "grant reader"]);
    let mut deaf = waiting();
    deaf.after(limit);
    for _ in 0..4 {
        assert_eq!(deaf.after(again), ["write interrupt"]);
    }
    assert_eq!(deaf.after(again), ["hang no_progress", "terminate"]);
}

#[test]
fn interrupt_ends_the_wait() {
    let mut bench = waiting();
    let interrupted = |bench: &mut Bench| {
        let mut waited = None;
        let actions = bench.act(|it, now| waited = Some(it.interrupt_wait(now)));
        (waited.unwrap(), actions)
    };
    assert_eq!(interrupted(&mut bench), (true, vec!["wait interrupted".into(), "write interrupt".into()]));
    assert_eq!(interrupted(&mut bench), (true, vec![]), "it is about to end");
    assert_eq!(bench.line(line::RESULT), ["emit own turn 0.5"]);
    assert_eq!(interrupted(&mut bench), (false, vec![]));
}

#[test]
fn stop_interrupts_first() {
    let mut bench = waiting();
    assert_eq!(bench.act(Protocol::stop), ["wait stopped", "write interrupt"]);
    assert_eq!(bench.line(line::RESULT), ["emit own turn 0.5", "close input"]);
    let mut deaf = waiting();
    deaf.act(Protocol::stop);
    let time = deaf.protocol.config.session.stop_interrupt;
    assert_eq!(deaf.after(time), ["close input"]);
}

#[test]
fn deltas_need_no_judgement_unless_a_call_is_open() {
    let mut bench = with_tools();
    bench.turn(1);
    assert_eq!(bench.protocol.passed_on(), PassedOn::Nothing, "the first output is measured");
    bench.line(BEGIN);
    let passed_on = bench.protocol.passed_on();
    assert!(passed_on.has(line::DELTA.as_bytes()));
    assert!(![BEGIN, END, &made("a"), &asked("a")].iter().any(|line| passed_on.has(line.as_bytes())));
    bench.line(&asked("a"));
    assert_eq!(bench.protocol.passed_on(), PassedOn::Nothing, "each line of an open call is heard");
}

#[test]
fn calls_of_an_interrupted_turn_get_errors() {
    let mut bench = with_tools();
    bench.turn(1);
    bench.line(BEGIN);
    bench.line(&made("a"));
    assert_eq!(bench.act(|it, now| it.interrupt_turn(TurnId(1), now)), ["write interrupt"]);
    assert_eq!(bench.line(&asked("a")), ["write success"]);
    assert_eq!(bench.line(line::RESULT), ["end turn 1 answered 0.5", "keep"]);
}

#[test]
fn message_without_an_end_counts_after_a_silence() {
    let mut bench = with_tools();
    bench.turn(1);
    bench.line(&made("a"));
    bench.line(&asked("a"));
    assert_eq!(bench.after(Duration::from_secs(4)), [""; 0]);
    assert_eq!(bench.after(SECOND), ["end turn 1 called 1"]);
    // A call that is in no message.
    let mut bench = with_tools();
    bench.turn(1);
    bench.line(&asked("z"));
    assert_eq!(bench.after(5 * SECOND), ["write success"]);
}

/// Nobody would answer the call, and the next turn would wait for its end.
#[test]
fn call_without_a_turn_gets_an_error() {
    let mut bench = with_tools();
    assert_eq!(bench.line(&asked("a")), ["write success"]);
    assert!(!bench.protocol.calls.are_open());
    let mut without = Bench::opening(config(), &LaunchSettings::default());
    without.drain();
    without.line(line::GREETING);
    without.turn(1);
    assert_eq!(without.line(&asked("a")), ["write success"], "it has no tools");
}

#[test]
fn list_of_tools_is_not_repeated_for_ever() {
    let mut bench = with_tools();
    let lists = (0..100).filter(|_| bench.line(LIST) == ["write success"]).count();
    assert_eq!(lists, 100, "each gets a response");
    assert!(!bench.protocol.calls.may_list());
}
